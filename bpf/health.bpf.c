/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Health checks take the way that clients' packets take: what the agent sends to a VIP,
 * with a mark that says which backend is meant, is put into the tunnel to that one.
 * tc, outgoing; all other packets pass after one compare.
 */
#include "health.h"
#include "checksum.h"

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

char LICENSE[] SEC("license") = "GPL";

const struct check_manifest *const volatile manifest = NULL;
DESCRIBE_TYPE(bpf_flow_keys);
const volatile struct check_config config = {};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, CHECK_WAYS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct check_way);
} ways SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct check_counters);
} counters SEC(".maps");

#define OUTER_AT sizeof(struct ethhdr)

static ALWAYS_INLINE int store_headers(struct __sk_buff *skb, void *outer, __u32 length)
{
	/* The helper wants a length that is known. */
	if (length == 20)
		return bpf_skb_store_bytes(skb, OUTER_AT, outer, 20, 0);
	if (length == 28)
		return bpf_skb_store_bytes(skb, OUTER_AT, outer, 28, 0);
	if (length == 40)
		return bpf_skb_store_bytes(skb, OUTER_AT, outer, 40, 0);
	return bpf_skb_store_bytes(skb, OUTER_AT, outer, 48, 0);
}

static ALWAYS_INLINE void fill_udp(void *udp_header, __u32 inner)
{
	struct udphdr *udp = udp_header;

	udp->len = swap16(inner + sizeof(*udp));
}

static ALWAYS_INLINE int put_into_tunnel(struct __sk_buff *skb, const struct check_way *way)
{
	__u32 inner = skb->len - sizeof(struct ethhdr), whole = inner + way->length;
	bool inner_is_ipv4 = skb->protocol == swap16(ETH_P_IP);
	__u8 protocol = inner_is_ipv4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	__u64 flags = way->is_ipv4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;
	__u16 type = way->is_ipv4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	__u8 outer[CHECK_OUTER];

	if (way->gue) {
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
		protocol = IPPROTO_UDP;
	}
	__builtin_memcpy(outer, way->outer, sizeof(outer));
	if (bpf_skb_adjust_room(skb, way->length, BPF_ADJ_ROOM_MAC, flags))
		return TCX_DROP;
	if (way->is_ipv4) {
		struct iphdr *ip = (void *)outer;
		__u32 sum = 0;

		ip->tot_len = swap16(whole);
		ip->protocol = protocol;
#pragma unroll
		for (int i = 0; i < 10; i++)
			sum += ((__u16 *)outer)[i];
		ip->check = ~fold(sum);
		fill_udp(ip + 1, inner);
	} else {
		struct ipv6hdr *ip = (void *)outer;

		ip->payload_len = swap16(whole - sizeof(*ip));
		ip->nexthdr = protocol;
		fill_udp(ip + 1, inner);
	}
	if (store_headers(skb, outer, way->length) ||
	    bpf_skb_store_bytes(skb, 0, way->link, sizeof(way->link), 0) ||
	    bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0))
		return TCX_DROP;
	skb->mark = 0;
	return TCX_PASS;
}

SEC("tc")
int checks(struct __sk_buff *skb)
{
	__u32 mark = skb->mark, number = mark & 0xffff, zero = 0;
	struct check_counters *all;
	struct check_way *way;
	int verdict = TCX_DROP;

	if (!config.mark || (mark & 0xffff0000) != config.mark)
		return TCX_NEXT;
	if (skb->protocol != swap16(ETH_P_IP) && skb->protocol != swap16(ETH_P_IPV6))
		return TCX_NEXT; /* the link's own: neighbours */
	way = bpf_map_lookup_elem(&ways, &number);
	if (way)
		verdict = put_into_tunnel(skb, way);
	all = bpf_map_lookup_elem(&counters, &zero);
	if (all && verdict == TCX_PASS)
		all->sent++;
	else if (all)
		all->refused++;
	return verdict;
}
