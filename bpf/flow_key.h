/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Keys of the flow table: keyed hashes of what a flow is known by.
 *
 * A key's kind and VIP group are hashed with it, so that a connection ID never
 * meets an address and two VIPs never share an entry.
 */
#pragma once

#include <linux/udp.h>

#include "flow_hash.h"
#include "host_id.h"
#include "router_maps.h"
#include "vip.h"

enum flow_kind {
	FLOW_KIND_ADDRESS = 1, /* both addresses, the client's port */
	FLOW_KIND_LONG = 2, /* those and the client's own connection ID */
	FLOW_KIND_ID = 3, /* the connection ID that the packet goes to */
};

/* The last word of each key. */
static ALWAYS_INLINE __u64 flow_domain(const struct vip *vip, enum flow_kind kind, __u32 more)
{
	return (__u64)vip->group << 32 | (__u64)(more & 0xffffff) << 8 | kind;
}

/* Both addresses and the source port; the VIP's group stands for its port. */
static ALWAYS_INLINE bool flow_by_address(struct sk_reuseport_md *ctx, const struct vip *vip,
					  __u64 *hash)
{
	const struct udphdr *udp = ctx->data;
	__u64 words[5];

	if ((const void *)(udp + 1) > ctx->data_end)
		return false;
	if (is_ipv4(ctx)) {
		if (bpf_skb_load_bytes_relative(ctx, offsetof(struct iphdr, saddr), words, 8,
						BPF_HDR_START_NET))
			return false;
		words[1] = flow_domain(vip, FLOW_KIND_ADDRESS, udp->source);
		*hash = flow_hash(words, 2);
		return true;
	}
	if (bpf_skb_load_bytes_relative(ctx, offsetof(struct ipv6hdr, saddr), words, 32,
					BPF_HDR_START_NET))
		return false;
	words[4] = flow_domain(vip, FLOW_KIND_ADDRESS, udp->source);
	*hash = flow_hash(words, 5);
	return true;
}

static ALWAYS_INLINE __u64 flow_by_id(const struct id *id, const struct vip *vip)
{
	__u64 words[4] = { id->word[0], id->word[1], id->word[2],
			   flow_domain(vip, FLOW_KIND_ID, id->length) };

	return flow_hash(words, 4);
}

/* `client`: the ID that the client goes by itself; may be empty. */
static ALWAYS_INLINE __u64 flow_by_client(__u64 address_hash, const struct id *client,
					  const struct vip *vip)
{
	__u64 words[5] = { address_hash, client->word[0], client->word[1], client->word[2],
			   flow_domain(vip, FLOW_KIND_LONG, client->length) };

	return flow_hash(words, 5);
}
