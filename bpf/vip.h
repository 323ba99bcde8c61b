/* SPDX-License-Identifier: GPL-2.0-only */
/* Which VIP a packet is for: by its socket's bound address, else by its own. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "router_maps.h"

#define AF_INET 2
#define IPV4_MAPPED swap32(0xffff)

static ALWAYS_INLINE bool is_ipv4(const struct sk_reuseport_md *ctx)
{
	return ctx->eth_protocol == swap16(ETH_P_IP);
}

/* The packet's destination instead of the bind's wildcard; false: unreadable. */
static ALWAYS_INLINE bool vip_key_of_packet(struct sk_reuseport_md *ctx, struct vip_key *key)
{
	if (is_ipv4(ctx)) {
		key->address[0] = 0;
		key->address[1] = 0;
		key->address[2] = IPV4_MAPPED;
		return !bpf_skb_load_bytes_relative(ctx, offsetof(struct iphdr, daddr),
						    &key->address[3], 4, BPF_HDR_START_NET);
	}
	return !bpf_skb_load_bytes_relative(ctx, offsetof(struct ipv6hdr, daddr), key->address, 16,
					    BPF_HDR_START_NET);
}

static NO_INLINE const struct vip *vip_member(struct sk_reuseport_md *ctx, struct vip_key *key)
{
	if (!vip_key_of_packet(ctx, key))
		return NULL;
	return bpf_map_lookup_elem(&vips, key);
}

/*
 * A listener that was closed and destroyed is held by its half-open connections
 * alone. It has its address still, and its port no more; they have it.
 */
static ALWAYS_INLINE __u16 port_of_migrating(struct sk_reuseport_md *ctx)
{
	const struct bpf_sock *migrating = ctx->migrating_sk;

	return migrating ? migrating->src_port : 0;
}

static ALWAYS_INLINE const struct vip *vip_find(struct sk_reuseport_md *ctx, __u8 protocol)
{
	const struct bpf_sock *sk = ctx->sk;
	struct vip_key key = { .protocol = protocol };
	const struct vip *vip;

	if (!sk)
		return NULL;
	key.port = sk->src_port;
	if (protocol == IPPROTO_TCP && unlikely(!key.port))
		key.port = port_of_migrating(ctx);
	if (sk->family == AF_INET) {
		key.address[2] = IPV4_MAPPED;
		key.address[3] = sk->src_ip4;
		/* Else the compiler makes one load of both branches, at an offset that
		 * it computes, which the verifier refuses on a socket. */
		asm volatile("" ::: "memory");
	} else {
		key.address[0] = sk->src_ip6[0];
		key.address[1] = sk->src_ip6[1];
		key.address[2] = sk->src_ip6[2];
		key.address[3] = sk->src_ip6[3];
	}
	vip = bpf_map_lookup_elem(&vips, &key);
	if (vip && unlikely(vip->flags & VIP_HAS_MEMBERS)) {
		const struct vip *member = vip_member(ctx, &key);

		if (member)
			return member;
	}
	return vip;
}
