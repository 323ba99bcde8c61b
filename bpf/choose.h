/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From a packet to its VIP, and from there to its backend.
 *
 * In the steady state a slot of the ring has one backend, and no packet needs, reads
 * or writes any memory of connections: a flood of SYNs fills nothing. While a slot
 * is in transition it knows its previous backend too, and the connection table
 * tells the flows that opened since the change from the older ones.
 */
#pragma once

#include "balancer_maps.h"
#include "flow_table.h"
#include "packet.h"

#define NOBODY 0

/* What was chosen, and what `explain` shows of how. */
struct choice {
	__u64 hash;
	__u32 slot;
	__u16 current, previous;
	__u16 known;
	__u16 backend; /* number */
	__u32 stamp; /* server ID that the packet carries */
	__u8 outcome; /* enum outcome */
	__u8 in_transition;
};

static ALWAYS_INLINE __u32 balancer_tick(void)
{
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

static ALWAYS_INLINE bool same_address(const __u32 *a, const __u32 *b)
{
	return a[3] == b[3] && a[2] == b[2] && a[1] == b[1] && a[0] == b[0];
}

/* The entry of (address, port, protocol), or NULL. */
static ALWAYS_INLINE struct vip_entry *vip_find(const __u32 *address, __u16 port, __u8 protocol)
{
	__u32 mixed =
		address[0] ^ address[1] ^ address[2] ^ address[3] ^ (port | (__u32)protocol << 16);
	__u32 index = mixed * 0x9e3779b1u >> config.vip_shift;

#pragma unroll
	for (int probe = 0; probe < VIP_PROBES; probe++) {
		struct vip_bucket *bucket = bpf_map_lookup_elem(&vips, &index);

		if (!bucket)
			return NULL;
#pragma unroll
		for (int way = 0; way < VIP_WAYS; way++) {
			struct vip_entry *entry = &bucket->way[way];

			if (!entry->in_use)
				return NULL;
			if (entry->port == port && entry->protocol == protocol &&
			    same_address(entry->address, address) && !(entry->flags & VIP_DELETED))
				return entry;
		}
		index = (index + 1) & (~0u >> config.vip_shift);
	}
	return NULL;
}

/* A VIP of this port, or of any. */
static ALWAYS_INLINE struct vip_entry *vip_of(const struct packet *packet)
{
	struct vip_entry *vip = vip_find(packet->address, packet->port, packet->protocol);

	if (likely(vip || !settings.any_port))
		return vip;
	return vip_find(packet->address, 0, packet->protocol);
}

/*
 * One hash for the slot, the connection table and all that varies by flow: a sum of
 * products with secret numbers (Lemire and Kaser, "Strongly universal string hashing
 * is fast", 2012), then mixed with two more. Whoever does not know the numbers can't
 * say which flows meet. SipHash would be five times as dear, half of what a packet
 * costs, and protect no better: it is no output of this that anybody sees.
 */
static ALWAYS_INLINE __u64 flow_hash(const struct packet *packet, bool by_source)
{
	const volatile __u64 *key = config.hash_key;
	__u64 sum = key[0];

	if (packet->is_ipv4) {
		sum += key[1] * packet->client[3];
	} else {
		sum += key[2] * packet->client[0] + key[3] * packet->client[1] +
		       key[4] * packet->client[2] + key[5] * packet->client[3];
	}
	if (!by_source) {
		sum += key[6] * (packet->client_port | (__u32)packet->port << 16) +
		       key[7] * packet->protocol + key[8] * packet->address[3];
		if (!packet->is_ipv4)
			sum += key[9] * packet->address[0] + key[10] * packet->address[1] +
			       key[11] * packet->address[2];
	}
	sum = (sum ^ sum >> 32) * (key[12] | 1);
	sum = (sum ^ sum >> 29) * (key[13] | 1);
	return sum ^ sum >> 32;
}

static ALWAYS_INLINE struct backend *backend_up(__u32 number)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &number);

	return number != NOBODY && backend && backend->flags & BACKEND_UP ? backend : NULL;
}

static ALWAYS_INLINE void count_at(__u32 index, __u32 outcome)
{
	struct vip_counters *counters = bpf_map_lookup_elem(&vip_counters, &index);

	/* The compiler knows the range, and would drop a bound that the verifier has to see. */
	asm volatile("" : "+r"(outcome));
	if (counters && outcome < OUTCOMES)
		counters->outcome[outcome]++;
}

/* Whether the VIP may remember one more connection now. GCRA: one compare-and-swap;
 * who loses it to another CPU is let through, which a limit can bear. */
static ALWAYS_INLINE bool within_limit(__u32 index, bool dry)
{
	struct limit *limit = bpf_map_lookup_elem(&limits, &index);
	__u64 now, before, arrival;

	if (!limit || !limit->interval)
		return true;
	now = bpf_ktime_get_coarse_ns();
	before = *(volatile __u64 *)&limit->arrival;
	arrival = before > now ? before : now;
	if (arrival - now > limit->burst)
		return false;
	if (!dry)
		__sync_val_compare_and_swap(&limit->arrival, before, arrival + limit->interval);
	return true;
}

struct asked {
	__u64 hash;
	__u32 flow_mask;
	__u32 index; /* of the VIP */
	__u16 current, previous;
	__u8 protocol;
	__u8 opens;
	__u8 forgetful; /* an ICMP error or a fragment: nothing is remembered */
	__u8 dry;
	__u32 udp_until;
	__u32 now;
};

static ALWAYS_INLINE void remember(const struct asked *asked, __u16 backend)
{
	int result;

	if (asked->dry)
		return;
	result = flow_store(asked->hash, asked->flow_mask, backend,
			    asked->protocol == IPPROTO_UDP ? FLOW_BY_ID : 0,
			    asked->now & FLOW_TICK_MASK);
	count_at(asked->index, STORED + result);
}

/* The backend that the connection table has for the flow, if it is up. */
static ALWAYS_INLINE __u16 known_backend(const struct asked *asked)
{
	int owner =
		flow_find(asked->hash, asked->flow_mask, asked->now & FLOW_TICK_MASK, !asked->dry);

	return owner != FLOW_UNKNOWN && backend_up(owner & 0xffff) ? owner : NOBODY;
}

#define CHOSEN(outcome, backend) ((__u32)(outcome) << 16 | (backend))

/* A slot in transition. Returns CHOSEN(); `*known` is for explanations. */
NO_INLINE __u32 choose_in_transition(const struct asked *asked, __u16 *known)
{
	bool udp, early;
	__u16 backend;

	if (!asked || !known)
		return NOBODY;
	udp = asked->protocol == IPPROTO_UDP;
	early = asked->now <= asked->udp_until;
	*known = NOBODY;
	if (asked->opens && !asked->forgetful) {
		/* The previous backend of a slot needs no memory: later packets of the flow
		 * that is unknown go there too. */
		if (!within_limit(asked->index, asked->dry))
			return CHOSEN(OVER_LIMIT, asked->previous);
		remember(asked, asked->current);
		return CHOSEN(NEW_FLOW, asked->current);
	}
	*known = known_backend(asked);
	if (*known)
		return CHOSEN(BY_TABLE, *known);
	if (!udp)
		return CHOSEN(BY_PREVIOUS, asked->previous);
	backend = early ? asked->previous : asked->current;
	if (asked->forgetful)
		return CHOSEN(early ? BY_PREVIOUS : BY_RING, backend);
	if (within_limit(asked->index, asked->dry))
		remember(asked, backend);
	else if (!early)
		return CHOSEN(OVER_LIMIT, backend);
	return CHOSEN(early ? BY_PREVIOUS : NEW_FLOW, backend);
}

/* Every flow in the table, as balancers without a history do it. */
NO_INLINE __u32 choose_by_table(const struct asked *asked, __u16 *known)
{
	if (!asked || !known)
		return NOBODY;
	*known = asked->opens ? NOBODY : known_backend(asked);
	if (*known)
		return CHOSEN(BY_TABLE, *known);
	if (asked->forgetful)
		return CHOSEN(BY_RING, asked->current);
	if (!within_limit(asked->index, asked->dry))
		return CHOSEN(OVER_LIMIT, asked->current);
	remember(asked, asked->current);
	return CHOSEN(NEW_FLOW, asked->current);
}

/* False: the pool is not there, or its ring. */
static ALWAYS_INLINE bool choose_backend(const struct packet *packet, const struct vip_entry *vip,
					 const struct pool *pool, __u16 stamped, bool fragment,
					 bool dry, struct choice *choice)
{
	__u32 at, line, slot, chosen = 0;
	const struct ring_line *slots;
	__u16 current, previous;

	choice->hash = flow_hash(packet, vip->flags & VIP_BY_SOURCE);
	if (stamped) {
		/* Neither the ring nor the table is looked at. */
		choice->backend = stamped;
		choice->outcome = BY_STAMP;
		return true;
	}
	choice->slot = scale(choice->hash, pool->size);
	at = pool->ring + choice->slot;
	line = at >> RING_LINE_SHIFT;
	slots = bpf_map_lookup_elem(&rings, &line);
	if (unlikely(!slots))
		return false;
	/* Read once: the control plane may write while this runs. */
	slot = *(volatile __u32 *)&slots->slot[at & (RING_LINE - 1)];
	current = slot & RING_BACKEND;
	previous = slot >> RING_PREVIOUS_SHIFT;
	choice->current = current;
	choice->previous = previous;
	choice->known = NOBODY;
	choice->in_transition = false;
	choice->backend = current;
	choice->outcome = BY_RING;
	if (config.memory == MEMORY_TABLE || unlikely(previous && config.memory)) {
		struct asked asked = {
			.hash = choice->hash,
			.flow_mask = vip->flow_mask,
			.index = vip->index,
			.current = current,
			.previous = previous,
			.protocol = packet->protocol,
			.opens = packet->opens && !packet->quoting,
			.forgetful = packet->quoting || fragment,
			.dry = dry,
			.udp_until = pool->udp_until,
			.now = balancer_tick(),
		};

		if (config.memory == MEMORY_TABLE) {
			chosen = choose_by_table(&asked, &choice->known);
		} else if (asked.now <= pool->history_until && backend_up(previous)) {
			/* Also one that has its first backend again: the table knows the
			 * flows of those that it had in between. */
			choice->in_transition = true;
			chosen = choose_in_transition(&asked, &choice->known);
		} else {
			return true;
		}
		choice->backend = chosen & 0xffff;
		choice->outcome = chosen >> 16;
	}
	return true;
}
