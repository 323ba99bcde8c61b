/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a frame, once: what it is and where its headers are.
 *
 * Positions are octets from the start of the frame; pointers would not survive a
 * change of the frame. A header is read only behind a check against `data_end` of
 * the very pointer that reads it, which is all that the verifier accepts.
 */
#pragma once

#include "balancer_maps.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define IPV4_MAPPED swap32(0xffff)
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV4_FRAGMENT 0x3fff /* more to come, or an offset */
#define IPV4_OFFSET 0x1fff
#define VLAN_TAG 4

/* RFC 792 and RFC 4443; the UAPI's own headers want a C library. */
enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_ECHO_REQUEST = 128,
	ICMP6_ECHO_REPLY = 129,
};

#define ICMP_FRAGMENTATION_NEEDED 4 /* code of ICMP_UNREACHABLE */

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 rest; /* the MTU, for one */
};

#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_ICMPV6 58
#define NEXT_OPTIONS 60

/* What reading came to. */
enum parsed {
	PARSED_FLOW, /* TCP or UDP with ports */
	PARSED_FRAGMENT, /* TCP or UDP without */
	PARSED_ICMP, /* IPv4's or IPv6's */
	PARSED_OTHER, /* nothing of ours: passed */
	PARSED_MALFORMED,
};

struct packet {
	/* Of a flow's packets towards the VIP, whoever sent this one. */
	__u32 client[4];
	__u32 address[4]; /* the VIP's */
	__u16 client_port; /* network order, here and below */
	__u16 port;
	__u8 protocol;
	/* Of the packet itself. */
	__u8 is_ipv4;
	__u8 plain; /* no IPv4 options, no IPv6 extension headers */
	__u8 opens; /* TCP: SYN and no ACK */
	__u8 tos; /* DSCP and ECN */
	__u8 ttl;
	__u8 dont_fragment;
	__u8 quoting; /* it is an ICMP error, the flow that of the packet quoted */
	__u32 l3; /* where the IP header is */
	__u32 l4; /* and what follows it and its extensions */
	__u32 length; /* of the IP packet */
};

static ALWAYS_INLINE void *frame_start(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data;
}

static ALWAYS_INLINE void *frame_end(const struct xdp_md *ctx)
{
	return (void *)(long)ctx->data_end;
}

/* A bound that the compiler must not see through, for the verifier has to see it. */
#define BOUND(value, limit)                        \
	({                                         \
		__u32 bounded_ = (value);          \
		asm volatile("" : "+r"(bounded_)); \
		bounded_ &= (limit);               \
		bounded_;                          \
	})

static ALWAYS_INLINE bool is_vlan(__u16 type)
{
	return type == swap16(ETH_P_8021Q) || type == swap16(ETH_P_8021AD);
}

/* Whether `length` octets of IP are in the frame. */
static ALWAYS_INLINE bool frame_has(struct xdp_md *ctx, __u32 l3, __u32 length)
{
	if (likely((__u64)l3 + length <= (__u64)(frame_end(ctx) - frame_start(ctx))))
		return true;
	/* More than the first buffer holds: a jumbo frame. */
	return length + l3 <= bpf_xdp_get_buff_len(ctx);
}

/* Ports and what a VIP's flow needs of the transport header at `l4`. */
static ALWAYS_INLINE enum parsed parse_transport(struct xdp_md *ctx, struct packet *packet)
{
	void *start = frame_start(ctx) + packet->l4, *end = frame_end(ctx);
	__u32 left = packet->length - (packet->l4 - packet->l3);

	if (packet->protocol == IPPROTO_TCP) {
		const struct tcphdr *tcp = start;

		if ((void *)(tcp + 1) > end || left < sizeof(*tcp) || tcp->doff < 5)
			return PARSED_MALFORMED;
		packet->client_port = tcp->source;
		packet->port = tcp->dest;
		packet->opens = tcp->syn && !tcp->ack;
		return PARSED_FLOW;
	}
	if (packet->protocol == IPPROTO_UDP) {
		const struct udphdr *udp = start;

		if ((void *)(udp + 1) > end || left < sizeof(*udp) ||
		    (udp->len && swap16(udp->len) < sizeof(*udp)))
			return PARSED_MALFORMED;
		packet->client_port = udp->source;
		packet->port = udp->dest;
		return PARSED_FLOW;
	}
	return PARSED_OTHER;
}

static ALWAYS_INLINE enum parsed parse_ipv4(struct xdp_md *ctx, struct packet *packet)
{
	const struct iphdr *ip = frame_start(ctx) + packet->l3;
	__u32 header;

	if ((void *)(ip + 1) > frame_end(ctx))
		return PARSED_MALFORMED;
	header = ip->ihl * 4;
	packet->length = swap16(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || packet->length < header ||
	    !frame_has(ctx, packet->l3, packet->length))
		return PARSED_MALFORMED;
	packet->is_ipv4 = true;
	packet->plain = header == sizeof(*ip);
	packet->protocol = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	packet->dont_fragment = !!(ip->frag_off & swap16(IPV4_DONT_FRAGMENT));
	packet->client[2] = IPV4_MAPPED;
	packet->client[3] = ip->saddr;
	packet->address[2] = IPV4_MAPPED;
	packet->address[3] = ip->daddr;
	packet->l4 = packet->l3 + header;
	if (unlikely(ip->frag_off & swap16(IPV4_FRAGMENT)))
		return ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP ?
			       PARSED_FRAGMENT :
			       PARSED_OTHER;
	if (unlikely(ip->protocol == IPPROTO_ICMP))
		return PARSED_ICMP;
	return parse_transport(ctx, packet);
}

/* Octets of an extension header that are read: next header, length, and the offset of
 * a fragment. */
struct extension {
	__u8 next;
	__u8 length;
	__u16 fragment;
};

static ALWAYS_INLINE bool is_extension(__u8 next)
{
	return next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT ||
	       next == NEXT_OPTIONS;
}

/* What walk_extensions() found, in one number, for the verifier proves a function that is not
 * static once, by itself, and takes no more than a number back. */
enum walked {
	WALKED_AT = 0x3fff,
	WALKED_PROTOCOL_SHIFT = 16,
	WALKED_FRAGMENT = 1 << 24,
};

/*
 * Walk the extension headers. Returns where the transport header is, its protocol and whether a
 * fragment header was met (enum walked), or -1.
 *
 * The barrier keeps the compiler from entering the loop in its middle: Linux 6.1 takes what
 * follows such a loop for an endless one ("back-edge").
 */
NO_INLINE int walk_extensions(struct xdp_md *ctx, __u32 at, __u32 until, __u32 next)
{
	for (int i = 0; i <= EXTENSIONS; i++) {
		const struct extension *extension;
		__u32 length;

		asm volatile("" : "+r"(i), "+r"(next));
		at = BOUND(at, WALKED_AT);
		next &= 0xff;
		if (!is_extension(next))
			return at | next << WALKED_PROTOCOL_SHIFT;
		if (i == EXTENSIONS)
			break;
		extension = frame_start(ctx) + at;
		if ((void *)extension + 8 > frame_end(ctx) || at + 8 > until)
			break;
		length = next == NEXT_FRAGMENT ? 8 : (extension->length + 1) * 8;
		if (at + length > until)
			break;
		if (next == NEXT_FRAGMENT && extension->fragment & swap16(0xfff9))
			return BOUND(at + length, WALKED_AT) |
			       (__u32)extension->next << WALKED_PROTOCOL_SHIFT | WALKED_FRAGMENT;
		next = extension->next;
		at += length;
	}
	return -1;
}

static ALWAYS_INLINE enum parsed parse_ipv6(struct xdp_md *ctx, struct packet *packet)
{
	const struct ipv6hdr *ip = frame_start(ctx) + packet->l3;
	bool fragment = false;
	int walked;
	__u8 next;

	if ((void *)(ip + 1) > frame_end(ctx))
		return PARSED_MALFORMED;
	packet->length = sizeof(*ip) + swap16(ip->payload_len);
	if (ip->version != 6 || !frame_has(ctx, packet->l3, packet->length))
		return PARSED_MALFORMED;
	packet->plain = true;
	packet->dont_fragment = true;
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->ttl = ip->hop_limit;
	__builtin_memcpy(packet->client, &ip->saddr, 16);
	__builtin_memcpy(packet->address, &ip->daddr, 16);
	packet->l4 = packet->l3 + sizeof(*ip);
	next = ip->nexthdr;
	if (unlikely(is_extension(next))) {
		packet->plain = false;
		walked = walk_extensions(ctx, packet->l4, packet->l3 + packet->length, next);
		if (walked < 0)
			return PARSED_MALFORMED;
		packet->l4 = walked & WALKED_AT;
		next = walked >> WALKED_PROTOCOL_SHIFT;
		fragment = walked & WALKED_FRAGMENT;
	}
	packet->protocol = next;
	if (unlikely(fragment))
		return next == IPPROTO_TCP || next == IPPROTO_UDP ? PARSED_FRAGMENT : PARSED_OTHER;
	if (unlikely(next == NEXT_ICMPV6))
		return PARSED_ICMP;
	return parse_transport(ctx, packet);
}

/* `packet` is zero before. */
static ALWAYS_INLINE enum parsed packet_parse(struct xdp_md *ctx, struct packet *packet)
{
	const struct ethhdr *ethernet = frame_start(ctx);
	__u32 at = sizeof(*ethernet);
	__u16 type;

	if ((void *)(ethernet + 1) > frame_end(ctx))
		return PARSED_OTHER;
	type = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const __u16 *tag = frame_start(ctx) + at;

		if (likely(!is_vlan(type)))
			break;
		if ((void *)(tag + 2) > frame_end(ctx))
			return PARSED_OTHER;
		type = tag[1];
		at += VLAN_TAG;
	}
	packet->l3 = at;
	if (likely(type == swap16(ETH_P_IP)))
		return parse_ipv4(ctx, packet);
	if (type == swap16(ETH_P_IPV6))
		return parse_ipv6(ctx, packet);
	return PARSED_OTHER;
}

/*
 * The packet that an ICMP error quotes, as the flow that it belongs to: what the
 * quote says went the other way. False: it quotes nothing of a VIP.
 */
NO_INLINE int parse_quoted(struct xdp_md *ctx, struct packet *packet)
{
	__u32 at, until, header;
	const __u16 *ports;

	if (!packet)
		return false;
	at = BOUND(packet->l4, 0x3fff) + sizeof(struct icmp_header);
	until = packet->l3 + packet->length;
	if (packet->is_ipv4) {
		const struct iphdr *ip = frame_start(ctx) + at;

		if ((void *)(ip + 1) > frame_end(ctx))
			return false;
		header = ip->ihl * 4;
		if (ip->version != 4 || header < sizeof(*ip) ||
		    ip->frag_off & swap16(IPV4_OFFSET) || ip->saddr != packet->address[3])
			return false;
		packet->client[3] = ip->daddr;
		packet->protocol = ip->protocol;
	} else {
		const struct ipv6hdr *ip = frame_start(ctx) + at;

		if ((void *)(ip + 1) > frame_end(ctx) || ip->version != 6)
			return false;
		header = sizeof(*ip);
		for (int i = 0; i < 4; i++) {
			if (ip->saddr.in6_u.u6_addr32[i] != packet->address[i])
				return false;
			packet->client[i] = ip->daddr.in6_u.u6_addr32[i];
		}
		packet->protocol = ip->nexthdr;
	}
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return false;
	at += header;
	ports = frame_start(ctx) + at;
	if ((void *)(ports + 2) > frame_end(ctx) || at + 4 > until)
		return false;
	packet->port = ports[0];
	packet->client_port = ports[1];
	packet->quoting = true;
	return true;
}
