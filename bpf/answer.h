/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the balancer answers itself: ICMP echo to a VIP, and "too big" to a sender
 * whose packet does not fit into the tunnel.
 */
#pragma once

#include "checksum.h"
#include "packet.h"

#define ANSWER_TTL 64
#define TOS_NETWORK_CONTROL 0xc0 /* of ICMP errors: RFC 1812, section 4.3.2.5 */

/* Whether a source is somebody's: no network, host itself, or group. */
static ALWAYS_INLINE bool answerable(const __u32 *address, bool is_ipv4)
{
	__u8 first = address[3];

	if (is_ipv4)
		return address[3] && first != 127 && first < 224;
	if ((address[0] & 0xff) == 0xff)
		return false;
	return address[0] | address[1] | address[2] | (address[3] & ~swap32(1));
}

static ALWAYS_INLINE void swap_links(struct ethhdr *ethernet)
{
	__u8 link[ETH_ALEN];

	__builtin_memcpy(link, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, link, ETH_ALEN);
}

/* An echo request becomes its reply where it stands. */
NO_INLINE int answer_echo(struct xdp_md *ctx, const struct packet *packet)
{
	struct ethhdr *ethernet = frame_start(ctx);
	void *start;

	if (!packet)
		return XDP_ABORTED;
	start = frame_start(ctx) + BOUND(packet->l3, 0x1f);
	if ((void *)(ethernet + 1) > frame_end(ctx))
		return XDP_ABORTED;
	if (packet->is_ipv4) {
		struct iphdr *ip = start;
		struct icmp_header *icmp = (void *)(ip + 1);
		__u16 before;

		if ((void *)(icmp + 1) > frame_end(ctx))
			return XDP_ABORTED;
		before = ip->ttl;
		ip->ttl = ANSWER_TTL;
		ip->check = checksum_update(ip->check, before, ANSWER_TTL);
		ip->saddr = packet->address[3];
		ip->daddr = packet->client[3];
		icmp->type = ICMP_ECHO_REPLY;
		icmp->checksum =
			checksum_update(icmp->checksum, ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY);
	} else {
		struct ipv6hdr *ip = start;
		struct icmp_header *icmp = (void *)(ip + 1);

		if ((void *)(icmp + 1) > frame_end(ctx))
			return XDP_ABORTED;
		ip->hop_limit = ANSWER_TTL;
		__builtin_memcpy(&ip->saddr, packet->address, 16);
		__builtin_memcpy(&ip->daddr, packet->client, 16);
		icmp->type = ICMP6_ECHO_REPLY;
		icmp->checksum =
			checksum_update(icmp->checksum, ICMP6_ECHO_REQUEST, ICMP6_ECHO_REPLY);
	}
	swap_links(ethernet);
	return XDP_TX;
}

struct quote_ipv4 {
	struct iphdr ip;
	struct icmp_header icmp;
	__u8 quote[QUOTE];
};

struct quote_ipv6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
	__u8 quote[QUOTE];
};

static ALWAYS_INLINE __u16 checksum_of(const void *from, __u32 length, __u32 seed)
{
	__u64 sum = (__u32)bpf_csum_diff(NULL, 0, from, length, seed);

	sum = (sum & 0xffff) + (sum >> 16);
	return ~fold(sum);
}

static ALWAYS_INLINE int write_too_big_ipv4(struct xdp_md *ctx, const struct packet *packet,
					    __u32 at, __u32 mtu)
{
	struct quote_ipv4 *answer = frame_start(ctx) + at;
	__u16 check;

	if ((void *)(answer + 1) > frame_end(ctx))
		return XDP_ABORTED;
	answer->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = TOS_NETWORK_CONTROL,
		.tot_len = swap16(sizeof(*answer)),
		.frag_off = swap16(IPV4_DONT_FRAGMENT),
		.ttl = ANSWER_TTL,
		.protocol = IPPROTO_ICMP,
		.saddr = packet->address[3],
		.daddr = packet->client[3],
	};
	check = checksum_of(&answer->ip, sizeof(answer->ip), 0);
	answer->ip.check = check;
	answer->icmp =
		(struct icmp_header){ .type = ICMP_UNREACHABLE, .code = ICMP_FRAGMENTATION_NEEDED };
	answer->icmp.rest = swap32(mtu); /* 16 bits, after 16 that are 0 */
	/* The helper takes 512 octets at most: the quote, then what stands before it. */
	check = checksum_of(&answer->icmp, sizeof(answer->icmp),
			    (__u16)~checksum_of(answer->quote, QUOTE, 0));
	answer->icmp.checksum = check;
	return XDP_TX;
}

static ALWAYS_INLINE int write_too_big_ipv6(struct xdp_md *ctx, const struct packet *packet,
					    __u32 at, __u32 mtu)
{
	struct quote_ipv6 *answer = frame_start(ctx) + at;
	__u32 seed;
	__u16 check;

	if ((void *)(answer + 1) > frame_end(ctx))
		return XDP_ABORTED;
	*(__u32 *)&answer->ip = swap32(6u << 28);
	answer->ip.payload_len = swap16(sizeof(*answer) - sizeof(answer->ip));
	answer->ip.nexthdr = NEXT_ICMPV6;
	answer->ip.hop_limit = ANSWER_TTL;
	__builtin_memcpy(&answer->ip.saddr, packet->address, 16);
	__builtin_memcpy(&answer->ip.daddr, packet->client, 16);
	answer->icmp = (struct icmp_header){ .type = ICMP6_TOO_BIG };
	answer->icmp.rest = swap32(mtu < MTU_LEAST ? MTU_LEAST : mtu);
	/* The pseudo-header (RFC 8200, section 8.1): addresses, length, protocol. */
	seed = (__u16)~checksum_of(&answer->ip.saddr, 32, 0);
	seed += swap16(sizeof(*answer) - sizeof(answer->ip)) + swap16(NEXT_ICMPV6);
	seed += (__u16)~checksum_of(answer->quote, QUOTE, 0);
	check = checksum_of(&answer->icmp, sizeof(answer->icmp), seed);
	answer->icmp.checksum = check;
	return XDP_TX;
}

/* Returns the XDP verdict, or XDP_ABORTED: no room; the frame may be changed then. */
NO_INLINE int answer_too_big(struct xdp_md *ctx, const struct packet *packet, __u32 mtu)
{
	__u32 length = bpf_xdp_get_buff_len(ctx), head, l3;
	struct ethhdr *ethernet;

	if (!packet)
		return XDP_ABORTED;
	head = packet->is_ipv4 ? offsetof(struct quote_ipv4, quote) :
				 offsetof(struct quote_ipv6, quote);
	l3 = BOUND(packet->l3, 0x1f);
	if (length < l3 + QUOTE)
		return XDP_ABORTED;
	if (bpf_xdp_adjust_tail(ctx, -(int)(length - l3 - QUOTE)))
		return XDP_ABORTED;
	if (bpf_xdp_adjust_head(ctx, -(int)head))
		return XDP_ABORTED;
	/* Link addresses and tags, word by word, for they may overlap. */
	for (__u32 i = 0; i < 11 && 2 * i < l3; i++) {
		__u16 *to = frame_start(ctx) + 2 * i, *from = (void *)to + head;

		if ((void *)(from + 1) > frame_end(ctx))
			return XDP_ABORTED;
		*to = *from;
	}
	ethernet = frame_start(ctx);
	if ((void *)(ethernet + 1) > frame_end(ctx))
		return XDP_ABORTED;
	swap_links(ethernet);
	return packet->is_ipv4 ? write_too_big_ipv4(ctx, packet, l3, mtu) :
				 write_too_big_ipv6(ctx, packet, l3, mtu);
}
