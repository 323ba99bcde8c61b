/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The socket router: which process and which worker gets a packet.
 *
 * One program for each flow mode, all over the same maps. A reuseport group (one
 * bound address, port and protocol) has the program of its VIP's mode attached;
 * so no packet pays for a mode that is not its own, and the kernel's run
 * statistics tell what each mode costs.
 *
 * A known flow goes to the generation and worker that own it, a new one to the
 * published generation. Whoever is picked may be gone (its process died): then a
 * live one is searched for, and only with none left is the choice the kernel's.
 */
#include "flow_key.h"
#include "flow_table.h"
#include "host_id.h"
#include "pick.h"
#include "quic.h"
#include "router_maps.h"
#include "vip.h"

#include <linux/tcp.h>

char LICENSE[] SEC("license") = "GPL";

/* Keeps every shared type in the object's BTF at the price of a pointer; see router.h. */
const struct manifest *const volatile manifest = NULL;

#define PAYLOAD sizeof(struct udphdr)

static ALWAYS_INLINE void remember(struct packet *packet, __u64 hash, int owner, __u32 by_id,
				   __u32 now)
{
	count_outcome(packet, FLOW_STORED + flow_store(hash, config.flow_mask, owner, by_id, now));
}

/* A new flow, remembered under one key. */
static ALWAYS_INLINE int route_new(struct packet *packet, __u64 hash, __u32 by_id, __u32 now)
{
	int verdict, owner;

	owner = deliver_new(packet, NEW_FLOW, &verdict);
	if (owner != NOBODY)
		remember(packet, hash, owner, by_id, now);
	return verdict;
}

/* A packet that opens nothing and is known to nobody: answered, not remembered. */
static ALWAYS_INLINE int route_stray(struct packet *packet)
{
	int verdict;

	deliver_new(packet, STRAY, &verdict);
	return verdict;
}

static ALWAYS_INLINE bool deliver_known(struct packet *packet, __u64 hash, __u32 now)
{
	int owner = flow_find(hash, config.flow_mask, now, true);

	return owner != FLOW_UNKNOWN && deliver_owner(packet, owner, OWNER_BY_TABLE);
}

static ALWAYS_INLINE int route_by_address(struct packet *packet)
{
	__u32 now = flow_tick();
	__u64 hash;

	if (unlikely(!flow_by_address(packet->ctx, &packet->vip, &hash)))
		return route_stray(packet);
	if (likely(deliver_known(packet, hash, now)))
		return SK_PASS;
	return route_new(packet, hash, 0, now);
}

/* Any UDP: a flow is two addresses and two ports. */
SEC("sk_reuseport")
int route_tuple(struct sk_reuseport_md *ctx)
{
	struct packet packet;

	if (unlikely(!packet_init(&packet, ctx, IPPROTO_UDP)))
		return SK_PASS;
	return route_by_address(&packet);
}

/* Every packet for itself: one question, one answer. */
SEC("sk_reuseport")
int route_none(struct sk_reuseport_md *ctx)
{
	struct packet packet;
	int verdict;

	if (unlikely(!packet_init(&packet, ctx, IPPROTO_UDP)))
		return SK_PASS;
	deliver_new(&packet, NEW_FLOW, &verdict);
	return verdict;
}

/* Octets at an offset of the payload that the application chose: minted by the
 * host as an ID is, or any value that stays the same for a flow. */
SEC("sk_reuseport")
int route_cookie(struct sk_reuseport_md *ctx)
{
	__u8 bytes[QUIC_ID_SPAN] = {};
	__u32 offset, length, now;
	struct packet packet;
	struct id id;
	__u64 hash;
	int owner;

	if (unlikely(!packet_init(&packet, ctx, IPPROTO_UDP)))
		return SK_PASS;
	offset = PAYLOAD + packet.vip.id_offset;
	length = packet.vip.id_length;
	if (ctx->len < offset + length || !WITHIN(length, ID_MAX))
		return route_by_address(&packet);
	if (bpf_skb_load_bytes(ctx, offset, bytes, length))
		return route_by_address(&packet);
	id_load(&id, bytes, length);
	owner = host_id_read(&id);
	if (owner != NOT_OURS && deliver_owner(&packet, owner, OWNER_BY_ID))
		return SK_PASS;
	now = flow_tick();
	hash = flow_by_id(&id, &packet.vip);
	if (deliver_known(&packet, hash, now))
		return SK_PASS;
	return route_new(&packet, hash, 0, now);
}

/*
 * A long header whose ID is not ours. It is the client's own choice, in its first
 * flight, or it was issued by a server that mints its own IDs. The first kind is
 * known by that ID, so that its retransmissions meet their worker from whatever
 * port they come; the second by the addresses and the client's own ID, which
 * stays the same through a handshake and differs between connections.
 */
static NO_INLINE int route_quic_long(struct packet *packet, struct quic_long *header)
{
	bool foreign = packet->vip.flags & VIP_FOREIGN_IDS;
	__u64 by_id = flow_by_id(&header->to, &packet->vip);
	__u64 by_address = 0, by_client = 0;
	__u32 now = flow_tick();
	int owner, verdict;
	/* A client's choice has eight octets at least (RFC 9000, section 7.2). A shorter
	 * one is a server's that has short or no IDs: many connections share it. */
	bool chosen = header->opens && header->to.length >= ID_MIN;

	if (chosen && deliver_known(packet, by_id, now))
		return SK_PASS;
	if (foreign && flow_by_address(packet->ctx, &packet->vip, &by_address)) {
		by_client = flow_by_client(by_address, &header->from, &packet->vip);
		if (deliver_known(packet, by_client, now))
			return SK_PASS;
	}
	if (!header->opens)
		return route_stray(packet);
	owner = deliver_new(packet, NEW_FLOW, &verdict);
	if (owner == NOBODY)
		return verdict;
	if (chosen)
		remember(packet, by_id, owner, FLOW_BY_ID, now);
	if (by_client) {
		remember(packet, by_client, owner, FLOW_BY_ID, now);
		remember(packet, by_address, owner, 0, now);
	}
	return verdict;
}

static NO_INLINE int route_quic_long_header(struct packet *packet)
{
	struct quic_long header;
	int owner;

	if (!quic_read_long(packet->ctx, PAYLOAD, &header))
		return route_stray(packet);
	/* Also an Initial: after a Retry, or of a client that knows the server's ID
	 * already, it names one of ours (RFC 9000, section 7.2). */
	owner = host_id_read(&header.to);
	if (owner != NOT_OURS && deliver_owner(packet, owner, OWNER_BY_ID))
		return SK_PASS;
	return route_quic_long(packet, &header);
}

/* A short header whose ID is not ours, or is of an owner that is gone. */
static NO_INLINE int route_quic_foreign(struct packet *packet)
{
	__u64 hash;

	if (packet->vip.flags & VIP_FOREIGN_IDS &&
	    flow_by_address(packet->ctx, &packet->vip, &hash) &&
	    deliver_known(packet, hash, flow_tick()))
		return SK_PASS;
	return route_stray(packet);
}

/* QUIC: the connection ID names generation and worker. */
SEC("sk_reuseport")
int route_quic(struct sk_reuseport_md *ctx)
{
	__u8 *payload = ctx->data + PAYLOAD;
	__u8 bytes[1 + QUIC_ID_SPAN];
	struct packet packet;
	struct id id;
	int owner;

	if (unlikely(!packet_init(&packet, ctx, IPPROTO_UDP)))
		return SK_PASS;
	/* The shortest packet that can be decrypted has 21 octets and an ID (RFC 9001,
	 * section 5.4.2), so nothing of use is shorter than this window. */
	if (likely((void *)(payload + sizeof(bytes)) <= ctx->data_end)) {
		if (payload[0] & QUIC_LONG)
			return route_quic_long_header(&packet);
		id_load(&id, payload + 1, packet.vip.id_length);
	} else {
		/* Short, or in pages that the driver did not copy. */
		if (bpf_skb_load_bytes(ctx, PAYLOAD, bytes, sizeof(bytes)))
			return route_quic_foreign(&packet);
		if (bytes[0] & QUIC_LONG)
			return route_quic_long_header(&packet);
		id_load(&id, bytes + 1, packet.vip.id_length);
	}
	owner = host_id_read(&id);
	if (likely(owner != NOT_OURS) && deliver_owner(&packet, owner, OWNER_BY_ID))
		return SK_PASS;
	return route_quic_foreign(&packet);
}

/* A readiness probe's connection: to the worker that is being asked. */
static NO_INLINE bool tcp_probe(struct packet *packet, const struct tcphdr *tcp)
{
	struct sk_reuseport_md *ctx = packet->ctx;
	__u32 source[4] = { 0, 0, IPV4_MAPPED, 0 };
	const struct probe *probe = &service.probe;
	bool ipv4 = is_ipv4(ctx);

	if ((void *)(tcp + 1) > ctx->data_end || tcp->source != swap16(probe->port))
		return false;
	if (ipv4 ? bpf_skb_load_bytes_relative(ctx, offsetof(struct iphdr, saddr), &source[3], 4,
					       BPF_HDR_START_NET) :
		   bpf_skb_load_bytes_relative(ctx, offsetof(struct ipv6hdr, saddr), source, 16,
					       BPF_HDR_START_NET))
		return false;
	if (source[0] != probe->address[0] || source[1] != probe->address[1] ||
	    source[2] != probe->address[2] || source[3] != probe->address[3])
		return false;
	if (!generation_find(probe->generation) ||
	    !select_socket(ctx, packet->vip.group, probe->generation, probe->worker))
		return false;
	count(packet, PROBED);
	return true;
}

/*
 * TCP: only the choice of a listener is made here; what is established has a
 * socket of its own. Also called when a listener closes, for each connection that
 * it has not handed out yet, and when a SYN cookie comes back.
 */
SEC("sk_reuseport/migrate")
int route_tcp(struct sk_reuseport_md *ctx)
{
	const struct tcphdr *tcp = ctx->data;
	enum decision why = STRAY;
	struct packet packet;
	int verdict;

	if (unlikely(!packet_init(&packet, ctx, IPPROTO_TCP)))
		return SK_PASS;
	if (ctx->migrating_sk) {
		why = MIGRATED;
	} else {
		if (unlikely(service.probe.port) && tcp_probe(&packet, tcp))
			return SK_PASS;
		if ((void *)(tcp + 1) <= ctx->data_end && tcp->syn)
			why = NEW_FLOW;
	}
	deliver_new(&packet, why, &verdict);
	return verdict;
}
