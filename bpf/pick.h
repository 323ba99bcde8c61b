/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Picking the socket: a worker of a generation, and what to do when it is gone.
 *
 * Every function that delivers returns the owner (generation octet << 8 |
 * worker) or NOBODY, and has counted what it did.
 */
#pragma once

#include "router_maps.h"
#include "vip.h"

#define NOBODY (-1)

/* What a packet's decisions need; on the stack of the program. */
struct packet {
	struct sk_reuseport_md *ctx;
	struct vip vip;
	struct vip_counters *counters;
};

static ALWAYS_INLINE void count(const struct packet *packet, enum decision decision)
{
	if (packet->counters)
		packet->counters->decision[decision]++;
}

/* The same for what a function returned: the compiler knows its range, and so
 * would drop a bound that the verifier has to see. */
static ALWAYS_INLINE void count_outcome(const struct packet *packet, __u32 decision)
{
	asm volatile("" : "+r"(decision));
	if (decision < DECISIONS)
		count(packet, decision);
}

/* False: the packet is for no VIP of this service. */
static ALWAYS_INLINE bool packet_init(struct packet *packet, struct sk_reuseport_md *ctx,
				      __u8 protocol)
{
	__u32 index = 0;
	bool found;

	packet->ctx = ctx;
	found = vip_find(ctx, protocol, &packet->vip);
	if (likely(found))
		index = packet->vip.index;
	packet->counters = bpf_map_lookup_elem(&vip_counters, &index);
	if (unlikely(!found))
		count(packet, UNKNOWN_VIP);
	return found;
}

static ALWAYS_INLINE __u32 owner_of(__u32 number, __u32 worker)
{
	return (number & 0xff) << 8 | worker;
}

static ALWAYS_INLINE const struct generation *generation_in_slot(__u32 slot)
{
	return &service.generations[slot % GENERATIONS];
}

/* Numbers start at 1, so a free slot (0) is never found by its number. */
static ALWAYS_INLINE const struct generation *generation_find(__u32 number)
{
	const struct generation *generation = generation_in_slot(number);

	return number && generation->number == number ? generation : NULL;
}

/* Where a group's sockets of a generation are in `arrays`. The caller has seen that
 * the slot is the generation's; a slot is given anew after a grace period only. */
static ALWAYS_INLINE __u32 array_index(__u32 group, __u32 number)
{
	return group * GENERATIONS + number % GENERATIONS;
}

static ALWAYS_INLINE bool select_socket(struct sk_reuseport_md *ctx, __u32 group, __u32 number,
					__u32 worker)
{
	__u32 index = array_index(group, number);
	void *array = bpf_map_lookup_elem(&arrays, &index);

	return array && !bpf_sk_select_reuseport(ctx, array, &worker, 0);
}

static ALWAYS_INLINE void count_worker(__u32 number, __u32 worker, bool new_flow)
{
	__u32 index = (number % GENERATIONS) * WORKERS + (worker & (WORKERS - 1));
	struct worker_counters *counters = bpf_map_lookup_elem(&worker_counters, &index);

	if (!counters)
		return;
	if (new_flow)
		counters->new_flows++;
	else
		counters->owned++;
}

/* The worker for a new flow, by the VIP's spread. */
static ALWAYS_INLINE __u32 spread_worker(const struct packet *packet, __u32 number, __u32 workers)
{
	__u32 point = packet->ctx->hash;

	if (packet->vip.spread == SPREAD_WEIGHTS) {
		__u32 slot = number % GENERATIONS;
		const struct weights *table = bpf_map_lookup_elem(&weights, &slot);

		if (table)
			return table->worker[scale(point, SPREAD_SLOTS) & (SPREAD_SLOTS - 1)];
	}
	if (packet->vip.spread == SPREAD_CPU)
		point = service.cpu_point[bpf_get_smp_processor_id() % CPUS] +
			scale(point, service.cpu_width);
	return scale(point, workers);
}

/* A search through all that is live, from one worker on. */
struct search {
	struct sk_reuseport_md *ctx;
	__u32 group;
	__u32 number; /* generation being tried */
	__u32 workers; /* it has */
	__u32 tried; /* of them */
	__u32 start;
	int owner;
};

static long search_step(__u32 step, struct search *search)
{
	const struct generation *generation;
	__u32 worker;

	(void)step;
	if (search->tried >= search->workers) {
		generation = generation_find(search->number);
		if (!generation)
			return 1;
		generation = generation_find(generation->fallback);
		if (!generation)
			return 1;
		search->number = generation->number;
		search->workers = generation->workers;
		search->tried = 0;
		return 0;
	}
	worker = (search->start + search->tried) % search->workers;
	search->tried++;
	if (!select_socket(search->ctx, search->group, search->number, worker))
		return 0;
	search->owner = owner_of(search->number, worker);
	count_worker(search->number, worker, true);
	return 1;
}

/* The worker picked has no socket: any other of its generation, then the older
 * generations in the order in which they were published. */
static NO_INLINE int search_live(struct packet *packet, __u32 number, __u32 workers, __u32 start)
{
	struct search search = {
		.ctx = packet->ctx,
		.group = packet->vip.group,
		.number = number,
		.workers = workers,
		.start = start,
		.owner = NOBODY,
	};

	bpf_loop(GENERATIONS * (WORKERS + 1), search_step, &search, 0);
	if (search.owner == NOBODY)
		count(packet, KERNEL_HASH);
	else if (search.number == number)
		count(packet, FALLBACK_WORKER);
	else
		count(packet, FALLBACK_GENERATION);
	return search.owner;
}

/* To the published generation. `*verdict` is SK_DROP when there is none. */
static ALWAYS_INLINE int deliver_new(struct packet *packet, enum decision why, int *verdict)
{
	__u32 number = *(volatile __u32 *)&service.published;
	const struct generation *generation = generation_find(number);
	__u32 worker;

	*verdict = SK_PASS;
	if (unlikely(!generation)) {
		count(packet, UNPUBLISHED);
		*verdict = SK_DROP;
		return NOBODY;
	}
	worker = spread_worker(packet, number, generation->workers);
	if (unlikely(!select_socket(packet->ctx, packet->vip.group, number, worker)))
		return search_live(packet, number, generation->workers, worker);
	count(packet, why);
	count_worker(number, worker, true);
	return owner_of(number, worker);
}

/* To the owner that a packet or the flow table names; false: it is gone. */
static ALWAYS_INLINE bool deliver_owner(struct packet *packet, int owner, enum decision why)
{
	__u32 octet = (__u32)owner >> 8 & 0xff, worker = owner & 0xff;
	__u32 number = generation_in_slot(octet)->number;

	/* Slots are shared by numbers GENERATIONS apart; the octet tells them apart
	 * until 256 releases have gone by. */
	if (unlikely(!number || (number & 0xff) != octet)) {
		count(packet, OWNER_GENERATION_GONE);
		return false;
	}
	if (unlikely(!select_socket(packet->ctx, packet->vip.group, number, worker))) {
		count(packet, OWNER_WORKER_GONE);
		return false;
	}
	count(packet, why);
	count_worker(number, worker, false);
	return true;
}
