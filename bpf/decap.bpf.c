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
#include "stray.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

char LICENSE[] SEC("license") = "GPL";

const struct decap_manifest *const volatile manifest = NULL;
DESCRIBE_TYPE(bpf_flow_keys);
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
#define HEADERS_READ 128 /* Ethernet, the outer headers, the inner IP header */

struct tunnel {
	struct decap_prefix source;
	struct decap_address end;
	__u32 l3; /* where the outer IP header is */
	__u32 inner; /* and the inner one */
	__u32 length; /* of the inner packet, as the outer headers have it */
	__u8 ecn; /* the outer header's */
	__u8 inner_is_ipv4;
};

/* Where a frame is, whoever's it is: the driver's (XDP) or the kernel's (tc). */
struct frame {
	void *data;
	void *end;
};

static ALWAYS_INLINE void *at(const struct frame *frame, __u32 offset)
{
	asm volatile("" : "+r"(offset));
	return frame->data + (offset & 0xff);
}

static ALWAYS_INLINE bool is_beyond(const struct frame *frame, const void *end)
{
	return end > frame->end;
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
static ALWAYS_INLINE int read_outer(const struct frame *frame, __u16 type, struct tunnel *tunnel)
{
	if (type == swap16(ETH_P_IP)) {
		const struct iphdr *ip = at(frame, tunnel->l3);

		if (is_beyond(frame, ip + 1) || ip->version != 4 || ip->ihl != 5 ||
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
		const struct ipv6hdr *ip = at(frame, tunnel->l3);

		if (is_beyond(frame, ip + 1) || ip->version != 6)
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
static ALWAYS_INLINE bool read_gue(const struct frame *frame, struct tunnel *tunnel)
{
	const struct udphdr *udp = at(frame, tunnel->inner);

	if (is_beyond(frame, udp + 1) || !config.gue_port || udp->dest != config.gue_port ||
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
static ALWAYS_INLINE bool carry_ecn(const struct frame *frame, const struct tunnel *tunnel)
{
	void *start = at(frame, tunnel->inner);
	__u8 inner, outer = tunnel->ecn;

	if (tunnel->inner_is_ipv4) {
		struct iphdr *ip = start;

		if (is_beyond(frame, ip + 1))
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

		if (is_beyond(frame, ip + 1))
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
static ALWAYS_INLINE bool read_inner(const struct frame *frame, const struct tunnel *tunnel,
				     struct decap_address *vip)
{
	void *start = at(frame, tunnel->inner);

	if (tunnel->inner_is_ipv4) {
		const struct iphdr *ip = start;

		if (is_beyond(frame, ip + 1) || ip->version != 4 || ip->ihl < 5 ||
		    swap16(ip->tot_len) != tunnel->length || tunnel->length < ip->ihl * 4)
			return false;
		map_ipv4(vip->address, ip->daddr);
	} else {
		const struct ipv6hdr *ip = start;

		if (is_beyond(frame, ip + 1) || ip->version != 6 ||
		    swap16(ip->payload_len) + sizeof(*ip) != tunnel->length)
			return false;
		__builtin_memcpy(vip->address, &ip->daddr, 16);
	}
	return true;
}

#define FRAME_OF(ctx) { .data = (void *)(long)(ctx)->data, .end = (void *)(long)(ctx)->data_end }

/* Takes the outer headers off. Link addresses and tags stay. */
static ALWAYS_INLINE int open_xdp(struct xdp_md *ctx, const struct tunnel *tunnel)
{
	struct frame frame = FRAME_OF(ctx);
	struct {
		__u32 word[3]; /* both link addresses */
		__u32 tags[2];
	} kept;
	__u32 grown = tunnel->inner - tunnel->l3, tags = tunnel->l3 - sizeof(struct ethhdr);
	__u16 type = tunnel->inner_is_ipv4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	__u32 *start = at(&frame, 0);
	__u16 *last;

	if (is_beyond(&frame, start + 5)) /* the headers that were read are longer */
		return XDP_DROP;
	__builtin_memcpy(&kept, start, sizeof(kept));
	if (bpf_xdp_adjust_head(ctx, grown))
		return XDP_DROP;
	frame = (struct frame)FRAME_OF(ctx);
	start = at(&frame, 0);
	if (is_beyond(&frame, start + 5))
		return XDP_DROP;
	__builtin_memcpy(start, kept.word, sizeof(kept.word));
	if (tags)
		start[3] = kept.tags[0];
	if (tags > 4)
		start[4] = kept.tags[1];
	last = at(&frame, tags + 2 * ETH_ALEN);
	if (is_beyond(&frame, last + 1))
		return XDP_DROP;
	*last = type;
	return XDP_PASS;
}

enum found {
	NO_TUNNEL, /* pass */
	UNWANTED, /* drop */
	TUNNEL,
};

/* Whether a frame is a tunnel's that is to be opened; what it meets is counted. */
static ALWAYS_INLINE enum found find_tunnel(void *ctx, const struct frame *frame,
					    struct tunnel *tunnel)
{
	const struct ethhdr *ethernet = at(frame, 0);
	struct decap_address vip;
	int protocol;
	__u16 type;

	if (is_beyond(frame, ethernet + 1))
		return NO_TUNNEL;
	type = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const __u16 *tag = at(frame, tunnel->l3);

		if (type != swap16(ETH_P_8021Q) && type != swap16(ETH_P_8021AD))
			break;
		if (is_beyond(frame, tag + 2))
			return NO_TUNNEL;
		type = tag[1];
		tunnel->l3 += 4;
	}
	protocol = read_outer(frame, type, tunnel);
	if (protocol == IPPROTO_UDP) {
		const __u8 *first;

		if (!read_gue(frame, tunnel))
			return NO_TUNNEL;
		first = at(frame, tunnel->inner);
		if (is_beyond(frame, first + 1))
			return NO_TUNNEL;
		tunnel->inner_is_ipv4 = *first >> 4 == 4;
	} else if (protocol == IPPROTO_IPIP) {
		tunnel->inner_is_ipv4 = true;
	} else if (protocol != IPPROTO_IPV6) {
		return NO_TUNNEL;
	}
	if (!bpf_map_lookup_elem(&balancers, &tunnel->source)) {
		count(FOREIGN_SOURCE);
		return NO_TUNNEL;
	}
	if (!bpf_map_lookup_elem(&ends, &tunnel->end)) {
		count(FOREIGN_END);
		return NO_TUNNEL;
	}
	if (!read_inner(frame, tunnel, &vip)) {
		count(DECAP_MALFORMED);
		return NO_TUNNEL;
	}
	if (!bpf_map_lookup_elem(&vips, &vip)) {
		count(FOREIGN_VIP);
		return NO_TUNNEL;
	}
	if (!carry_ecn(frame, tunnel)) {
		count(ECN_CONTRADICTS);
		return UNWANTED;
	}
	if (is_stray(ctx, at(frame, tunnel->inner), frame->end, tunnel->inner_is_ipv4)) {
		count(STRAY);
		return UNWANTED;
	}
	return TUNNEL;
}

#define EMPTY_TUNNEL { .l3 = sizeof(struct ethhdr), .source.length = 128 }

static ALWAYS_INLINE int decapsulate(struct xdp_md *ctx)
{
	struct tunnel tunnel = EMPTY_TUNNEL;
	struct frame frame = FRAME_OF(ctx);
	enum found found = find_tunnel(ctx, &frame, &tunnel);
	int verdict;

	if (found != TUNNEL)
		return found == NO_TUNNEL ? XDP_PASS : XDP_DROP;
	verdict = open_xdp(ctx, &tunnel);
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

/*
 * The same behind the driver, where XDP can't be attached. VLAN tags are not in the
 * frame here, and the link's header is moved by the kernel.
 */
SEC("tc")
int decap_tc(struct __sk_buff *skb)
{
	struct tunnel tunnel = EMPTY_TUNNEL;
	struct frame frame = FRAME_OF(skb);
	__u64 flags = 0;
	enum found found;
	__u16 type;

	if (frame.data + HEADERS_READ > frame.end) {
		/* Short frames too: what can't be pulled is not there. */
		bpf_skb_pull_data(skb, skb->len < HEADERS_READ ? skb->len : HEADERS_READ);
		frame = (struct frame)FRAME_OF(skb);
	}
	found = find_tunnel(skb, &frame, &tunnel);
	if (found != TUNNEL)
		return found == NO_TUNNEL ? TCX_NEXT : TCX_DROP;
	type = tunnel.inner_is_ipv4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	if (skb->protocol != type)
		flags = tunnel.inner_is_ipv4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 :
					       BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(int)(tunnel.inner - tunnel.l3), BPF_ADJ_ROOM_MAC, flags) ||
	    bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0)) {
		count(DECAP_FAILED);
		return TCX_DROP;
	}
	count(DECAPSULATED);
	return TCX_NEXT;
}
