/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which worker owns a flow whose packets do not say so.
 *
 * A set-associative table in one array: two buckets of eight entries that a
 * flow may be in. An entry is one word (fingerprint, time, owner) and a bucket one
 * cache line, so readers need no lock and writers one compare-and-swap. The kernel's LRU map
 * evicts before it is full, in an order that it does not tell, and cannot count
 * what it evicted; here a live entry goes only when sixteen places are live, the
 * one that has been idle longest, entries that saw a single packet first, so
 * that a flood of new flows pushes out itself.
 *
 * The key is a keyed 64-bit hash: low bits choose the bucket, the high 32 are the
 * fingerprint. Nobody outside can aim at a bucket or at another's entry.
 *
 * Whoever includes this has a map `flows` of struct flow_bucket, and a `config` with
 * flow_timeout and id_timeout. `mask` is the number of buckets that a flow may be
 * in, less one: all of them, or a part that nothing else of its kind outgrows.
 */
#pragma once

#include "flow_entry.h"

#define FLOW_UNKNOWN (-1)

enum flow_result {
	FLOW_IS_STORED = 0,
	FLOW_HAS_EVICTED = 1, /* stored in the place of a live entry */
	FLOW_IS_LOST = 2, /* a concurrent writer won */
};

static ALWAYS_INLINE __u32 flow_tick(void)
{
	return (bpf_ktime_get_coarse_ns() >> FLOW_TICK_SHIFT) & FLOW_TICK_MASK;
}

/* Never 0, which is a free entry's. */
static ALWAYS_INLINE __u32 flow_fingerprint(__u64 hash)
{
	return hash >> 32 ?: 1;
}

static ALWAYS_INLINE struct flow_bucket *flow_bucket(__u64 hash, __u32 mask, bool second)
{
	/* The second is the fingerprint's, mixed with the first: one hash pays for all. */
	__u32 index = second ? hash ^ (__u32)(hash >> 32) * 0x9e3779b1u >> 7 : hash;

	index &= mask;
	return bpf_map_lookup_elem(&flows, &index);
}

/* An entry: fingerprint << 32 | seen << 16 | owner. */
static ALWAYS_INLINE __u64 flow_word(__u32 fingerprint, __u32 seen, __u32 owner)
{
	return (__u64)fingerprint << 32 | seen << 16 | (owner & 0xffff);
}

static ALWAYS_INLINE __u64 flow_limit(__u64 seen)
{
	return seen & FLOW_BY_ID ? config.id_timeout : config.flow_timeout;
}

/* The entry in a bucket, or FLOW_UNKNOWN. */
static ALWAYS_INLINE int flow_find_in(struct flow_bucket *bucket, __u32 fingerprint, __u32 now,
				      bool touch)
{
	__u64 word = 0;
	__u32 seen, way;

	for (way = 0; way < FLOW_WAYS; way++) {
		word = *(volatile __u64 *)&bucket->word[way];
		if (unlikely(word >> 32 == fingerprint))
			goto found;
	}
	return FLOW_UNKNOWN;
found:
	seen = word >> 16 & 0xffff;
	if (((now - seen) & FLOW_TICK_MASK) > flow_limit(seen))
		return FLOW_UNKNOWN;
	/* Written at most once a tick, so a busy flow's line stays shared. Who loses to
	 * another writer has nothing to add. */
	if (unlikely(touch && (seen & ~FLOW_BY_ID) != (FLOW_CONFIRMED | now)))
		__sync_val_compare_and_swap(
			&bucket->word[way & (FLOW_WAYS - 1)], word,
			flow_word(fingerprint, (seen & FLOW_BY_ID) | FLOW_CONFIRMED | now, word));
	return word & 0xffff;
}

/* The flow's owner, 16 bits, or FLOW_UNKNOWN. `touch`: it has been seen now.
 *
 * Not static, here and below: the verifier then proves a function once, by itself,
 * and not again on each path that leads to it. */
NO_INLINE int flow_find(__u64 hash, __u32 mask, __u32 now, bool touch)
{
	__u32 fingerprint = flow_fingerprint(hash);
	struct flow_bucket *bucket = flow_bucket(hash, mask, false);
	int owner;

	if (!bucket)
		return FLOW_UNKNOWN;
	owner = flow_find_in(bucket, fingerprint, now, touch);
	if (likely(owner != FLOW_UNKNOWN))
		return owner;
	bucket = flow_bucket(hash, mask, true);
	return bucket ? flow_find_in(bucket, fingerprint, now, touch) : FLOW_UNKNOWN;
}

/*
 * Choosing a place has no branches: the verifier would follow every outcome of
 * each of sixteen places, which is more than it has patience for, and a machine
 * would guess wrong. A truth is 0 or 1; all numbers compared are below 2^63.
 */
static ALWAYS_INLINE __u64 less(__u64 a, __u64 b)
{
	return (a - b) >> 63;
}

static ALWAYS_INLINE __u64 is_zero(__u64 value)
{
	return ((value | -value) >> 63) ^ 1;
}

static ALWAYS_INLINE __u64 choose(__u64 truth, __u64 yes, __u64 no)
{
	__u64 mask = -truth;

	/* The compiler must not know that the mask is all or nothing: it would make
	 * the branch again. */
	asm volatile("" : "+r"(mask));
	return no ^ ((yes ^ no) & mask);
}

/*
 * What it costs to put a new entry in this place: 0 it is the flow's own, 1 it is
 * free or expired, else a live entry is lost. Longer idle is cheaper; entries that
 * a second packet confirmed cost more than all others.
 */
static ALWAYS_INLINE __u64 flow_cost(__u64 word, __u64 fingerprint, __u64 now)
{
	__u64 idle = (now - (word >> 16)) & FLOW_TICK_MASK;
	__u64 limit = choose(word >> 30 & 1, config.id_timeout, config.flow_timeout);
	__u64 live = 2 + (FLOW_TICK_MASK - idle) + choose(word >> 31 & 1, FLOW_TICK_MASK, 0);
	__u64 cost = choose(is_zero(word) | less(limit, idle), 1, live);

	return choose(is_zero(word >> 32 ^ fingerprint), 0, cost);
}

/* The cheapest place of a bucket, as cost << 4 | place. */
static ALWAYS_INLINE __u64 flow_cheapest(const struct flow_bucket *bucket, __u64 fingerprint,
					 __u32 now, __u64 best, __u32 first)
{
	for (__u32 i = 0; i < FLOW_WAYS; i++) {
		__u64 word = *(volatile __u64 *)&bucket->word[i];
		__u64 place = flow_cost(word, fingerprint, now) << 4 | (first + i);

		best = choose(less(place, best), place, best);
	}
	return best;
}

/*
 * Remember the flow's owner; `by_id` is FLOW_BY_ID or 0. Returns what it came to
 * (enum flow_result). Both buckets are looked at even where the first has room: the
 * flow's own, older entry may stand in the second, and a flow must not have two.
 */
NO_INLINE int flow_store(__u64 hash, __u32 mask, __u32 owner, __u32 by_id, __u32 now)
{
	struct flow_bucket *first = flow_bucket(hash, mask, false);
	struct flow_bucket *second = flow_bucket(hash, mask, true);
	__u32 fingerprint = flow_fingerprint(hash);
	__u64 word = flow_word(fingerprint, by_id | now, owner);
	struct flow_bucket *bucket;
	__u64 best, before;
	__u32 way;

	if (!first || !second)
		return FLOW_IS_LOST;
	best = flow_cheapest(first, fingerprint, now, 1ULL << 62, 0);
	if (best >> 4)
		best = flow_cheapest(second, fingerprint, now, best, FLOW_WAYS);
	bucket = best & FLOW_WAYS ? second : first;
	way = best & (FLOW_WAYS - 1);
	before = *(volatile __u64 *)&bucket->word[way];
	if (__sync_val_compare_and_swap(&bucket->word[way], before, word) != before)
		return FLOW_IS_LOST;
	return best >> 4 > 1 ? FLOW_HAS_EVICTED : FLOW_IS_STORED;
}
