/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The backend's side of the tunnel: what a balancer put around a packet is taken off,
 * and the host sees the client's packet to the VIP, which is an address of its loopback.
 *
 * Only tunnels from configured balancers, to an address of this host that is named,
 * with a packet to a VIP that it serves, are opened; all else is passed untouched: whoever
 * can send to this host can write a tunnel's header, but not one of these for free.
 */
#include "decap.h"
#include "checksum.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

char LICENSE[] SEC("license") = "GPL";

const struct decap_manifest *const volatile manifest = NULL;
const volatile struct decap_config config = {};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_UINT(max_entries, DECAP_BALANCERS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct decap_prefix);
	MAP_TYPE(value, __u8);
} balancers SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, DECAP_ENDS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct decap_address);
	MAP_TYPE(value, __u8);
} ends SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, DECAP_VIPS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct decap_address);
	MAP_TYPE(value, __u8);
} vips SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct decap_counters);
} counters SEC(".maps");

#define IPV4_FRAGMENT 0x3fff
#define ECN_MASK 3
#define ECN_NOT_CAPABLE 0
#define ECN_CE 3

struct tunnel {
	struct decap_prefix source;
	struct decap_address end;
	__u32 l3; /* where the outer IP header is */
	__u32 inner; /* and the inner one */
	__u32 length; /* of the inner packet, as the outer headers have it */
	__u8 ecn; /* the outer header's */
	__u8 inner_is_ipv4;
};

static ALWAYS_INLINE void *at(const struct xdp_md *ctx, __u32 offset)
{
	asm volatile("" : "+r"(offset));
	return (void *)(long)ctx->data + (offset & 0xff);
}

static ALWAYS_INLINE bool is_beyond(const struct xdp_md *ctx, const void *end)
{
	return end > (void *)(long)ctx->data_end;
}

static ALWAYS_INLINE void count(enum decap_outcome outcome)
{
	__u32 zero = 0;
	struct decap_counters *all = bpf_map_lookup_elem(&counters, &zero);

	if (all)
		all->outcome[outcome]++;
}

static ALWAYS_INLINE void map_ipv4(__u32 *address, __u32 from)
{
	address[0] = 0;
	address[1] = 0;
	address[2] = swap32(0xffff);
	address[3] = from;
}

/* The outer IP header; its protocol, or -1: none of a tunnel's. */
static ALWAYS_INLINE int read_outer(struct xdp_md *ctx, __u16 type, struct tunnel *tunnel)
{
	if (type == swap16(ETH_P_IP)) {
		const struct iphdr *ip = at(ctx, tunnel->l3);

		if (is_beyond(ctx, ip + 1) || ip->version != 4 || ip->ihl != 5 ||
		    ip->frag_off & swap16(IPV4_FRAGMENT) || swap16(ip->tot_len) < 2 * sizeof(*ip))
			return -1;
		map_ipv4(tunnel->source.address, ip->saddr);
		map_ipv4(tunnel->end.address, ip->daddr);
		tunnel->ecn = ip->tos & ECN_MASK;
		tunnel->inner = tunnel->l3 + sizeof(*ip);
		tunnel->length = swap16(ip->tot_len) - sizeof(*ip);
		return ip->protocol;
	}
	if (type == swap16(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = at(ctx, tunnel->l3);

		if (is_beyond(ctx, ip + 1) || ip->version != 6)
			return -1;
		__builtin_memcpy(tunnel->source.address, &ip->saddr, 16);
		__builtin_memcpy(tunnel->end.address, &ip->daddr, 16);
		tunnel->ecn = ip->flow_lbl[0] >> 4 & ECN_MASK;
		tunnel->inner = tunnel->l3 + sizeof(*ip);
		tunnel->length = swap16(ip->payload_len);
		return ip->nexthdr;
	}
	return -1;
}

/* Past a UDP header, if it is GUE's. */
static ALWAYS_INLINE bool read_gue(struct xdp_md *ctx, struct tunnel *tunnel)
{
	const struct udphdr *udp = at(ctx, tunnel->inner);

	if (is_beyond(ctx, udp + 1) || !config.gue_port || udp->dest != config.gue_port ||
	    swap16(udp->len) != tunnel->length || tunnel->length < sizeof(*udp))
		return false;
	tunnel->inner += sizeof(*udp);
	tunnel->length -= sizeof(*udp);
	return true;
}

/*
 * RFC 6040, section 4.2: what the way through the tunnel met, told to the inner packet.
 * False: it met congestion, and the inner packet has no way to tell of it.
 */
static ALWAYS_INLINE bool carry_ecn(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	void *start = at(ctx, tunnel->inner);
	__u8 inner, outer = tunnel->ecn;

	if (tunnel->inner_is_ipv4) {
		struct iphdr *ip = start;

		if (is_beyond(ctx, ip + 1))
			return false;
		inner = ip->tos & ECN_MASK;
		if (outer <= ECN_NOT_CAPABLE || outer == inner || inner == ECN_CE)
			return true;
		if (inner == ECN_NOT_CAPABLE)
			return outer != ECN_CE;
		/* ECT(0) becomes ECT(1), and either becomes CE; never the other way. */
		if (outer == 2)
			return true;
		ip->check = checksum_update(ip->check, (__u16)inner << 8, (__u16)outer << 8);
		ip->tos = (ip->tos & ~ECN_MASK) | outer;
	} else {
		struct ipv6hdr *ip = start;

		if (is_beyond(ctx, ip + 1))
			return false;
		inner = ip->flow_lbl[0] >> 4 & ECN_MASK;
		if (outer <= ECN_NOT_CAPABLE || outer == inner || inner == ECN_CE)
			return true;
		if (inner == ECN_NOT_CAPABLE)
			return outer != ECN_CE;
		if (outer == 2)
			return true;
		ip->flow_lbl[0] = (ip->flow_lbl[0] & ~(ECN_MASK << 4)) | outer << 4;
	}
	return true;
}

/* The packet inside: whether it is whole, and where it goes. */
static ALWAYS_INLINE bool read_inner(struct xdp_md *ctx, const struct tunnel *tunnel,
				     struct decap_address *vip)
{
	void *start = at(ctx, tunnel->inner);

	if (tunnel->inner_is_ipv4) {
		const struct iphdr *ip = start;

		if (is_beyond(ctx, ip + 1) || ip->version != 4 || ip->ihl < 5 ||
		    swap16(ip->tot_len) != tunnel->length || tunnel->length < ip->ihl * 4)
			return false;
		map_ipv4(vip->address, ip->daddr);
	} else {
		const struct ipv6hdr *ip = start;

		if (is_beyond(ctx, ip + 1) || ip->version != 6 ||
		    swap16(ip->payload_len) + sizeof(*ip) != tunnel->length)
			return false;
		__builtin_memcpy(vip->address, &ip->daddr, 16);
	}
	return true;
}

/* Takes the outer headers off. Link addresses and tags stay. */
static ALWAYS_INLINE int open_tunnel(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	struct {
		__u32 word[3]; /* both link addresses */
		__u32 tags[2];
	} kept;
	__u32 grown = tunnel->inner - tunnel->l3, tags = tunnel->l3 - sizeof(struct ethhdr);
	__u16 type = tunnel->inner_is_ipv4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	__u32 *start = at(ctx, 0);
	__u16 *last;

	if (is_beyond(ctx, start + 5)) /* the headers that were read are longer */
		return XDP_DROP;
	__builtin_memcpy(&kept, start, sizeof(kept));
	if (bpf_xdp_adjust_head(ctx, grown))
		return XDP_DROP;
	start = at(ctx, 0);
	if (is_beyond(ctx, start + 5))
		return XDP_DROP;
	__builtin_memcpy(start, kept.word, sizeof(kept.word));
	if (tags)
		start[3] = kept.tags[0];
	if (tags > 4)
		start[4] = kept.tags[1];
	last = at(ctx, tags + 2 * ETH_ALEN);
	if (is_beyond(ctx, last + 1))
		return XDP_DROP;
	*last = type;
	return XDP_PASS;
}

static ALWAYS_INLINE int decapsulate(struct xdp_md *ctx)
{
	struct tunnel tunnel = { .l3 = sizeof(struct ethhdr), .source.length = 128 };
	const struct ethhdr *ethernet = at(ctx, 0);
	struct decap_address vip;
	int protocol, verdict;
	__u16 type;

	if (is_beyond(ctx, ethernet + 1))
		return XDP_PASS;
	type = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const __u16 *tag = at(ctx, tunnel.l3);

		if (type != swap16(ETH_P_8021Q) && type != swap16(ETH_P_8021AD))
			break;
		if (is_beyond(ctx, tag + 2))
			return XDP_PASS;
		type = tag[1];
		tunnel.l3 += 4;
	}
	protocol = read_outer(ctx, type, &tunnel);
	if (protocol == IPPROTO_UDP) {
		const __u8 *first;

		if (!read_gue(ctx, &tunnel))
			return XDP_PASS;
		first = at(ctx, tunnel.inner);
		if (is_beyond(ctx, first + 1))
			return XDP_PASS;
		tunnel.inner_is_ipv4 = *first >> 4 == 4;
	} else if (protocol == IPPROTO_IPIP) {
		tunnel.inner_is_ipv4 = true;
	} else if (protocol != IPPROTO_IPV6) {
		return XDP_PASS;
	}
	if (!bpf_map_lookup_elem(&balancers, &tunnel.source)) {
		count(FOREIGN_SOURCE);
		return XDP_PASS;
	}
	if (!bpf_map_lookup_elem(&ends, &tunnel.end)) {
		count(FOREIGN_END);
		return XDP_PASS;
	}
	if (!read_inner(ctx, &tunnel, &vip)) {
		count(DECAP_MALFORMED);
		return XDP_PASS;
	}
	if (!bpf_map_lookup_elem(&vips, &vip)) {
		count(FOREIGN_VIP);
		return XDP_PASS;
	}
	if (!carry_ecn(ctx, &tunnel)) {
		count(ECN_CONTRADICTS);
		return XDP_DROP;
	}
	verdict = open_tunnel(ctx, &tunnel);
	count(verdict == XDP_PASS ? DECAPSULATED : DECAP_FAILED);
	return verdict;
}

SEC("xdp")
int decap(struct xdp_md *ctx)
{
	return decapsulate(ctx);
}

/* The same for frames of more than one page. */
SEC("xdp.frags")
int decap_frags(struct xdp_md *ctx)
{
	return decapsulate(ctx);
}
