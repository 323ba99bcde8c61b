/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a packet that comes by a tunnel, in XDP and tc alike: is it for us, from one
 * of ours, for a VIP of ours, and whole?
 *
 * Positions are octets from the start of the frame. A header is read only behind a check
 * of the very pointer that reads it, which is all that the verifier accepts.
 */
#pragma once

#include "backend_maps.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#define IPV4_MAPPED swap32(0xffff)
#define IPV4_FRAGMENT 0x3fff /* more to come, or an offset */
#define IPV4_OFFSET 0x1fff
#define VLAN_TAG 4
#define VLAN_TAGS 2 /* at most */
#define WHOLE_ADDRESS 128

/* A position that the verifier knows to be small: the compiler must not see through. */
#define POSITION(value)                            \
	({                                         \
		__u32 bounded_ = (value);          \
		asm volatile("" : "+r"(bounded_)); \
		bounded_ &= 0x7f;                  \
		bounded_;                          \
	})

struct tunneled {
	__u32 l3; /* where the outer IP header is */
	__u32 headers; /* octets of the tunnel's headers, which follow */
	__u32 length; /* of the outer IP packet */
	__u32 room; /* octets that the tunnel carries */
	__u8 protocol; /* of the outer packet: 4, 41 or 17 */
	__u8 outer_ipv4;
	__u8 inner_ipv4;
	__u8 fragment;
	__u8 outer_tos; /* DSCP and ECN */
	__u8 inner_tos;
	__u16 inner_length; /* of the inner IP packet */
};

static ALWAYS_INLINE void address_ipv4(struct address *address, __u32 word)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = IPV4_MAPPED;
	address->words[3] = word;
}

/* False: it is IPv4 in disguise, which must not pass for the address that it names. */
static ALWAYS_INLINE bool address_ipv6(struct address *address, const struct in6_addr *from)
{
	__builtin_memcpy(address, from, sizeof(*address));
	return address->words[0] || address->words[1] || address->words[2] != IPV4_MAPPED;
}

static ALWAYS_INLINE bool has_role(const struct address *address, enum address_role role)
{
	const __u32 *roles = bpf_map_lookup_elem(&addresses, address);

	return roles && *roles & role;
}

static ALWAYS_INLINE bool is_balancer(const struct address *address)
{
	struct prefix asked = { .bits = WHOLE_ADDRESS, .address = *address };

	return bpf_map_lookup_elem(&balancers, &asked);
}

static ALWAYS_INLINE bool is_vlan(__u16 type)
{
	return type == swap16(ETH_P_8021Q) || type == swap16(ETH_P_8021AD);
}

/* What the outer header's protocol says is a tunnel: its own headers, and what is left. */
static ALWAYS_INLINE bool read_protocol(const void *after, const void *end, bool later,
					struct tunneled *packet)
{
	const struct udphdr *udp = after;
	__u32 length;

	if (packet->protocol == IPPROTO_IPIP || packet->protocol == IPPROTO_IPV6) {
		packet->inner_ipv4 = packet->protocol == IPPROTO_IPIP;
		return true;
	}
	if (packet->protocol != IPPROTO_UDP || !config.gue_port || later ||
	    (void *)(udp + 1) > end || udp->dest != config.gue_port)
		return false;
	packet->headers += sizeof(*udp);
	length = swap16(udp->len);
	/* What makes no sense leaves no room, and is found to be malformed. */
	packet->room = length >= sizeof(*udp) && length <= packet->room ? length - sizeof(*udp) : 0;
	return true;
}

/*
 * Whether the frame looks like one for a tunnel. Only what it takes to tell is read, and
 * no map is asked: most of what a host receives leaves here.
 *
 * Outer packets with IPv4 options or IPv6 extension headers are none: balancers send none.
 */
static ALWAYS_INLINE bool read_outer(const void *start, const void *end, struct tunneled *packet)
{
	const struct ethhdr *ethernet = start;
	__u32 at = sizeof(*ethernet);
	__u16 type;

	if ((void *)(ethernet + 1) > end)
		return false;
	type = ethernet->h_proto;
#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		const __u16 *tag = start + at;

		if (likely(!is_vlan(type)))
			break;
		if ((void *)(tag + 2) > end)
			return false;
		type = tag[1];
		at += VLAN_TAG;
	}
	packet->l3 = at;
	if (likely(type == swap16(ETH_P_IP))) {
		const struct iphdr *ip = start + at;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5)
			return false;
		packet->outer_ipv4 = true;
		packet->protocol = ip->protocol;
		packet->outer_tos = ip->tos;
		packet->length = swap16(ip->tot_len);
		packet->headers = sizeof(*ip);
		packet->fragment = !!(ip->frag_off & swap16(IPV4_FRAGMENT));
		packet->room = packet->length > sizeof(*ip) ? packet->length - sizeof(*ip) : 0;
		return read_protocol(ip + 1, end, ip->frag_off & swap16(IPV4_OFFSET), packet);
	}
	if (type == swap16(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = start + at;

		if ((void *)(ip + 1) > end || ip->version != 6)
			return false;
		packet->outer_ipv4 = false;
		packet->protocol = ip->nexthdr;
		packet->outer_tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
		packet->room = swap16(ip->payload_len);
		packet->length = packet->room + sizeof(*ip);
		packet->headers = sizeof(*ip);
		packet->fragment = false; /* its header would be an extension */
		return read_protocol(ip + 1, end, false, packet);
	}
	return false;
}

/* The ends of the tunnel. TAKEN_OFF_IP: so far, nothing is against it. */
static ALWAYS_INLINE enum taken judge_outer(const void *start, const void *end,
					    const struct tunneled *packet)
{
	const void *at = start + POSITION(packet->l3);
	struct address source, target;

	if (packet->outer_ipv4) {
		const struct iphdr *ip = at;

		if ((void *)(ip + 1) > end)
			return NOT_OURS;
		address_ipv4(&source, ip->saddr);
		address_ipv4(&target, ip->daddr);
		if (!has_role(&target, ADDRESS_TUNNEL))
			return NOT_OURS;
		if (packet->fragment)
			return OUTER_FRAGMENT;
		return is_balancer(&source) ? TAKEN_OFF_IP : FOREIGN_SOURCE;
	} else {
		const struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > end)
			return NOT_OURS;
		if (!address_ipv6(&target, &ip->daddr) || !has_role(&target, ADDRESS_TUNNEL))
			return NOT_OURS;
		return address_ipv6(&source, &ip->saddr) && is_balancer(&source) ? TAKEN_OFF_IP :
										   FOREIGN_SOURCE;
	}
}

/* What the tunnel carries. */
static ALWAYS_INLINE enum taken judge_inner(const void *start, const void *end, __u32 frame,
					    struct tunneled *packet)
{
	const void *at = start + POSITION(packet->l3 + packet->headers);
	const struct ipv6hdr *ipv6 = at;
	const struct iphdr *ipv4 = at;
	struct address target;

	if (packet->l3 + packet->length > frame || at + sizeof(*ipv4) > end)
		return MALFORMED;
	/* GUE, variant 1: the first two bits are 01, which IPv4 and IPv6 both begin with. */
	if (packet->protocol == IPPROTO_UDP)
		packet->inner_ipv4 = ipv4->version == 4;
	if (packet->inner_ipv4) {
		__u32 header = ipv4->ihl * 4, length = swap16(ipv4->tot_len);

		if (ipv4->version != 4 || header < sizeof(*ipv4) || length < header ||
		    length > packet->room)
			return MALFORMED;
		packet->inner_length = length;
		packet->inner_tos = ipv4->tos;
		address_ipv4(&target, ipv4->daddr);
	} else {
		__u32 length;

		if ((void *)(ipv6 + 1) > end || ipv6->version != 6)
			return MALFORMED;
		length = sizeof(*ipv6) + swap16(ipv6->payload_len);
		if (length > packet->room)
			return MALFORMED;
		packet->inner_length = length;
		packet->inner_tos = ipv6->priority << 4 | ipv6->flow_lbl[0] >> 4;
		if (!address_ipv6(&target, &ipv6->daddr))
			return FOREIGN_TARGET;
	}
	if (!has_role(&target, ADDRESS_VIP))
		return FOREIGN_TARGET;
	return packet->protocol == IPPROTO_UDP ? TAKEN_OFF_GUE : TAKEN_OFF_IP;
}
