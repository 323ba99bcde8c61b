/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Acknowledgements that can't say whose they are. Timestamps and three blocks of SACK,
 * or four blocks, fill the header of a TCP packet, so the client's host finds no room for the stamp,
 * and after a change of the pool such a packet may come to a host that knows nothing of
 * the connection. An answer, a reset, would end it at the host that has it. Nobody
 * misses the packet: the next one has room again.
 */
#pragma once

#include "kernel.h"

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#define FULL_HEADER 14 /* words: four octets of options are left, which is no stamp's */
#define LATER_FRAGMENT 0x1fff
#define STATE_LISTEN 10 /* TCP_LISTEN of <net/tcp_states.h> */

/* Whether a TCP packet's header is full, and there is no connection here that it is of. */
static ALWAYS_INLINE bool is_stray(void *ctx, const void *ip, const void *end, bool is_ipv4)
{
	struct bpf_sock_tuple tuple = {};
	const struct tcphdr *tcp;
	struct bpf_sock *sk;
	bool is_known;

	if (is_ipv4) {
		const struct iphdr *header = ip;

		if ((const void *)(header + 1) > end || header->protocol != IPPROTO_TCP ||
		    header->frag_off & swap16(LATER_FRAGMENT))
			return false;
		tcp = ip + header->ihl * 4;
		tuple.ipv4.saddr = header->saddr;
		tuple.ipv4.daddr = header->daddr;
	} else {
		const struct ipv6hdr *header = ip;

		if ((const void *)(header + 1) > end || header->nexthdr != IPPROTO_TCP)
			return false;
		tcp = (const void *)(header + 1);
		__builtin_memcpy(tuple.ipv6.saddr, &header->saddr, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &header->daddr, 16);
	}
	if ((const void *)(tcp + 1) > end || likely(tcp->doff < FULL_HEADER) || tcp->syn)
		return false;
	if (is_ipv4) {
		tuple.ipv4.sport = tcp->source;
		tuple.ipv4.dport = tcp->dest;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		tuple.ipv6.sport = tcp->source;
		tuple.ipv6.dport = tcp->dest;
		sk = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return true;
	is_known = sk->state != STATE_LISTEN;
	bpf_sk_release(sk);
	return !is_known;
}
