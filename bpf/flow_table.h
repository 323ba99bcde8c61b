/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which worker owns a flow whose packets do not say so.
 *
 * A set-associative table in one array: two buckets of eight entries that a
 * flow may be in. An entry is one word (fingerprint, generation octet, worker),
 * so readers need no lock and writers one compare-and-swap. The kernel's LRU map
 * evicts before it is full, in an order that it does not tell, and cannot count
 * what it evicted; here a live entry goes only when sixteen places are live, the
 * one that has been idle longest, entries that saw a single packet first, so
 * that a flood of new flows pushes out itself.
 *
 * The key is a keyed 64-bit hash: low bits choose the bucket, the high 48 are the
 * fingerprint. Nobody outside can aim at a bucket or at another's entry.
 */
#pragma once

#include "router_maps.h"
#include "siphash.h"

#define FLOW_UNKNOWN (-1)

static ALWAYS_INLINE __u32 flow_tick(void)
{
	return (bpf_ktime_get_coarse_ns() >> FLOW_TICK_SHIFT) & FLOW_TICK_MASK;
}

static ALWAYS_INLINE __u64 flow_fingerprint(__u64 hash)
{
	__u64 fingerprint = hash >> 16;

	return fingerprint ?: 1; /* a word of 0 is a free entry */
}

static ALWAYS_INLINE struct flow_bucket *flow_bucket(__u64 hash, bool second)
{
	/* The second bucket depends on the fingerprint alone, as one hash is paid. */
	__u32 index = second ? (hash >> 32) * 0x9e3779b1u >> 7 : hash;

	index &= config.flow_mask;
	return bpf_map_lookup_elem(&flows, &index);
}

/* Ticks since the entry's last packet. */
static ALWAYS_INLINE __u32 flow_idle(__u32 seen, __u32 now)
{
	return (now - seen) & FLOW_TICK_MASK;
}

static ALWAYS_INLINE bool flow_expired(__u32 seen, __u32 now)
{
	return flow_idle(seen, now) >
	       (seen & FLOW_BY_ID ? config.id_timeout : config.flow_timeout);
}

static ALWAYS_INLINE int flow_find_in(struct flow_bucket *bucket, __u64 fingerprint, __u32 now)
{
	for (int i = 0; i < FLOW_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u32 seen;

		if (likely(word >> 16 != fingerprint))
			continue;
		seen = *(volatile __u32 *)&bucket->seen[i];
		if (flow_expired(seen, now))
			return FLOW_UNKNOWN;
		/* Written at most once a tick, so a busy flow's line stays shared. */
		if (!(seen & FLOW_CONFIRMED) || (seen & FLOW_TICK_MASK) != now)
			*(volatile __u32 *)&bucket->seen[i] =
				(seen & FLOW_BY_ID) | FLOW_CONFIRMED | now;
		return word & 0xffff;
	}
	return FLOW_UNKNOWN;
}

/* The flow's owner (generation octet << 8 | worker), or FLOW_UNKNOWN. */
static NO_INLINE int flow_find(__u64 hash, __u32 now)
{
	__u64 fingerprint = flow_fingerprint(hash);
	struct flow_bucket *bucket = flow_bucket(hash, false);
	int owner;

	if (!bucket)
		return FLOW_UNKNOWN;
	owner = flow_find_in(bucket, fingerprint, now);
	if (likely(owner != FLOW_UNKNOWN))
		return owner;
	bucket = flow_bucket(hash, true);
	return bucket ? flow_find_in(bucket, fingerprint, now) : FLOW_UNKNOWN;
}

/* Where a new entry would go: the better of what was seen so far. */
struct flow_place {
	struct flow_bucket *bucket;
	__u32 way;
	__u32 cost; /* 0: the flow's own entry; 1: free or expired; else a live one */
	__u64 word; /* what stands there */
};

static ALWAYS_INLINE void flow_consider(struct flow_place *best, struct flow_bucket *bucket,
					__u64 fingerprint, __u32 now)
{
	for (__u32 i = 0; i < FLOW_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u32 seen = bucket->seen[i];
		__u32 cost;

		if (word >> 16 == fingerprint)
			cost = 0;
		else if (!word || flow_expired(seen, now))
			cost = 1;
		else /* the longer idle the cheaper; confirmed entries above all others */
			cost = 2 + (FLOW_TICK_MASK - flow_idle(seen, now)) +
			       (seen & FLOW_CONFIRMED ? FLOW_TICK_MASK : 0);
		if (cost < best->cost) {
			best->bucket = bucket;
			best->way = i;
			best->cost = cost;
			best->word = word;
		}
	}
}

/* Remember the flow's owner; `by_id` is FLOW_BY_ID or 0. Returns what to count. */
static NO_INLINE enum decision flow_store(__u64 hash, __u32 owner, __u32 by_id, __u32 now)
{
	__u64 fingerprint = flow_fingerprint(hash);
	struct flow_place best = { .cost = ~0U };
	struct flow_bucket *bucket;
	__u64 word = fingerprint << 16 | (owner & 0xffff);
	__u32 way;

	bucket = flow_bucket(hash, false);
	if (bucket)
		flow_consider(&best, bucket, fingerprint, now);
	if (best.cost > 0) {
		/* Even where the first bucket has room: the flow's own, older entry may
		 * stand in the second, and two owners of one flow must not be. */
		bucket = flow_bucket(hash, true);
		if (bucket)
			flow_consider(&best, bucket, fingerprint, now);
	}
	bucket = best.bucket;
	if (!bucket)
		return FLOW_LOST;
	way = best.way & (FLOW_WAYS - 1);
	/* First the time, then the word: a reader that finds the word finds it fresh. */
	*(volatile __u32 *)&bucket->seen[way] = by_id | now;
	if (__sync_val_compare_and_swap(&bucket->word[way], best.word, word) != best.word)
		return FLOW_LOST;
	return best.cost > 1 ? FLOW_EVICTED : FLOW_STORED;
}
