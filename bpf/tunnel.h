/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Putting a packet into a tunnel to its backend.
 *
 * Checksums: an outer IPv4 header has its own, of twenty known octets. UDP has none
 * (over IPv6 by RFC 6935): the inner packet's headers carry theirs, and a sum over the
 * whole packet would cost more than all else that is done to it.
 */
#pragma once

#include "balancer_maps.h"
#include "checksum.h"
#include "choose.h"
#include "packet.h"

#define TUNNEL_TTL 64
#define GUE_PORTS 0xc000 /* source ports vary above this */

static ALWAYS_INLINE __u32 tunnel_overhead(const struct pool *pool, const struct backend *backend)
{
	return (backend->is_ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) +
	       (pool->encapsulation == ENCAP_GUE ? sizeof(struct udphdr) : 0);
}

static ALWAYS_INLINE void lower_ttl(struct xdp_md *ctx, const struct packet *packet)
{
	void *start = frame_start(ctx) + BOUND(packet->l3, 0x1f);

	if (packet->is_ipv4) {
		struct iphdr *ip = start;

		if ((void *)(ip + 1) > frame_end(ctx))
			return;
		ip->ttl--;
		/* The high octet of its word: the word falls by 0x0100. */
		ip->check = checksum_update(ip->check, swap16(0x0100), 0);
	} else {
		struct ipv6hdr *ip = start;

		if ((void *)(ip + 1) > frame_end(ctx))
			return;
		ip->hop_limit--;
	}
}

static ALWAYS_INLINE void write_ipv4(struct iphdr *ip, const struct packet *packet,
				     const struct pool *pool, const struct backend *backend,
				     __u32 varied, __u32 overhead, __u8 protocol)
{
	__u32 source = (pool->source4 & pool->mask4) | (varied & ~pool->mask4);
	__u32 target = backend->address[3];
	__u16 length = swap16(packet->length + overhead);
	__u32 sum;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = packet->tos;
	ip->tot_len = length;
	ip->id = 0;
	ip->frag_off = swap16(IPV4_DONT_FRAGMENT);
	ip->ttl = TUNNEL_TTL;
	ip->protocol = protocol;
	ip->saddr = source;
	ip->daddr = target;
	sum = 0x45 + ((__u32)packet->tos << 8) + length + swap16(IPV4_DONT_FRAGMENT) + TUNNEL_TTL +
	      ((__u32)protocol << 8) + (source & 0xffff) + (source >> 16) + (target & 0xffff) +
	      (target >> 16);
	ip->check = ~fold(sum);
}

static ALWAYS_INLINE void write_ipv6(struct ipv6hdr *ip, const struct packet *packet,
				     const struct pool *pool, const struct backend *backend,
				     __u32 varied, __u32 overhead, __u8 protocol)
{
	*(__u32 *)ip = swap32(6u << 28 | (__u32)packet->tos << 20 | (varied & 0xfffff));
	ip->payload_len = swap16(packet->length + overhead - sizeof(*ip));
	ip->nexthdr = protocol;
	ip->hop_limit = TUNNEL_TTL;
	ip->saddr.in6_u.u6_addr32[0] = pool->source6[0];
	ip->saddr.in6_u.u6_addr32[1] = pool->source6[1];
	ip->saddr.in6_u.u6_addr32[2] = pool->source6[2];
	ip->saddr.in6_u.u6_addr32[3] = (pool->source6[3] & pool->mask6) | (varied & ~pool->mask6);
	__builtin_memcpy(&ip->daddr, backend->address, 16);
}

static ALWAYS_INLINE void write_udp(struct udphdr *udp, const struct packet *packet,
				    const struct pool *pool, __u32 varied)
{
	udp->source = swap16(GUE_PORTS | (varied & 0x3fff));
	udp->dest = pool->gue_port;
	udp->len = swap16(packet->length + sizeof(*udp));
	udp->check = 0;
}

/* The agent has not said: the kernel's routing table and neighbours may know. */
NO_INLINE int ask_route(struct xdp_md *ctx, const struct backend *backend, struct way_out *way)
{
	struct bpf_fib_lookup fib = {};

	if (!backend || !way)
		return false;
	fib.ifindex = ctx->ingress_ifindex;
	if (backend->is_ipv4) {
		fib.family = 2;
		fib.ipv4_dst = backend->address[3];
	} else {
		fib.family = 10;
		__builtin_memcpy(fib.ipv6_dst, backend->address, 16);
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0))
		return false;
	__builtin_memcpy(way->next_hop, fib.dmac, 6);
	__builtin_memcpy(way->own, fib.smac, 6);
	way->ifindex = fib.ifindex;
	return true;
}

/* The tags from their old place to their new one, which is further ahead. */
NO_INLINE int move_tags(struct xdp_md *ctx, __u32 from, __u32 tags)
{
	__u32 *old = frame_start(ctx) + BOUND(from, 0xff), *new = frame_start(ctx) + 2 * ETH_ALEN;

	if ((void *)(old + 2) > frame_end(ctx) || (void *)(new + 2) > frame_end(ctx))
		return false;
	new[0] = old[0];
	if (tags > VLAN_TAG)
		new[1] = old[1];
	return true;
}

/* Returns the XDP verdict, or XDP_ABORTED: the frame has no room, and is as it was but
 * for its TTL. */
static ALWAYS_INLINE int tunnel(struct xdp_md *ctx, const struct packet *packet,
				const struct pool *pool, const struct backend *backend,
				const struct way_out *way, __u64 hash)
{
	__u32 tags = packet->l3 - sizeof(struct ethhdr), outer, overhead, grown;
	__u32 ipv4 = backend->is_ipv4, gue = pool->encapsulation == ENCAP_GUE;
	bool same = way->ifindex == ctx->ingress_ifindex;
	__u8 protocol = packet->is_ipv4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	__u32 varied = hash >> 32;
	struct ethhdr *ethernet;

	overhead = tunnel_overhead(pool, backend);
	lower_ttl(ctx, packet);
	grown = overhead;
	if (unlikely(tags) && !same)
		grown -= tags;
	if (bpf_xdp_adjust_head(ctx, -(int)grown))
		return XDP_ABORTED;
	if (unlikely(tags) && same && !move_tags(ctx, overhead + 2 * ETH_ALEN, tags))
		return XDP_ABORTED;
	ethernet = frame_start(ctx);
	if ((void *)(ethernet + 1) > frame_end(ctx))
		return XDP_ABORTED;
	__builtin_memcpy(ethernet->h_dest, way->next_hop, 6);
	__builtin_memcpy(ethernet->h_source, way->own, 6);
	outer = 0;
	if (unlikely(tags) && same) {
		/* The type stands behind the tags. */
		outer = BOUND(tags, 0xf);
		ethernet = frame_start(ctx) + outer;
		if ((void *)(ethernet + 1) > frame_end(ctx))
			return XDP_ABORTED;
	}
	ethernet->h_proto = ipv4 ? swap16(ETH_P_IP) : swap16(ETH_P_IPV6);
	outer += sizeof(*ethernet);
	if (gue)
		protocol = IPPROTO_UDP;
	if (ipv4) {
		struct iphdr *ip = frame_start(ctx) + outer;
		struct udphdr *udp = (void *)(ip + 1);

		if ((void *)(ip + 1) > frame_end(ctx))
			return XDP_ABORTED;
		write_ipv4(ip, packet, pool, backend, varied, overhead, protocol);
		if (gue) {
			if ((void *)(udp + 1) > frame_end(ctx))
				return XDP_ABORTED;
			write_udp(udp, packet, pool, varied);
		}
	} else {
		struct ipv6hdr *ip = frame_start(ctx) + outer;
		struct udphdr *udp = (void *)(ip + 1);

		if ((void *)(ip + 1) > frame_end(ctx))
			return XDP_ABORTED;
		write_ipv6(ip, packet, pool, backend, varied, overhead, protocol);
		if (gue) {
			if ((void *)(udp + 1) > frame_end(ctx))
				return XDP_ABORTED;
			write_udp(udp, packet, pool, varied);
		}
	}
	return same ? XDP_TX : bpf_redirect(way->ifindex, 0);
}
