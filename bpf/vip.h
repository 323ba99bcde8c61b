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

/* The VIP's place in the service's cache. */
static ALWAYS_INLINE struct vip_slot *vip_slot(const struct vip_key *key)
{
	__u32 hash = key->address[0] ^ key->address[1] ^ key->address[2] ^ key->address[3] ^
		     key->port ^ (__u32)key->protocol << 16;

	return &service.vip_slots[hash * 0x9e3779b1u >> (32 - VIP_SLOTS_SHIFT)];
}

/* By the map: a VIP that is not in the cache, or a wildcard's member. */
static NO_INLINE bool vip_look_up(const struct vip_key *key, struct vip *vip)
{
	const struct vip *found = bpf_map_lookup_elem(&vips, key);

	if (found)
		*vip = *found;
	return found;
}

static NO_INLINE void vip_member(struct sk_reuseport_md *ctx, struct vip_key *key, struct vip *vip)
{
	if (vip_key_of_packet(ctx, key))
		vip_look_up(key, vip);
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

/* Copies the VIP: what follows is proven once, wherever it was found. */
static ALWAYS_INLINE bool vip_find(struct sk_reuseport_md *ctx, __u8 protocol, struct vip *vip)
{
	const struct bpf_sock *sk = ctx->sk;
	struct vip_key key = { .protocol = protocol };
	const struct vip_slot *slot;

	if (!sk)
		return false;
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
	slot = vip_slot(&key);
	if (likely(slot->key.address[3] == key.address[3] && slot->key.port == key.port &&
		   slot->key.protocol == protocol && slot->key.address[2] == key.address[2] &&
		   slot->key.address[1] == key.address[1] &&
		   slot->key.address[0] == key.address[0]))
		*vip = slot->vip;
	else if (!vip_look_up(&key, vip))
		return false;
	if (unlikely(vip->flags & VIP_HAS_MEMBERS))
		vip_member(ctx, &key, vip);
	return true;
}
