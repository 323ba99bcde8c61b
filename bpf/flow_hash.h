/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hash of the flow table: multilinear (Lemire and Kaser, "Strongly universal
 * string hashing is fast", 2012) twice over, then mixed.
 *
 * Each half is the high word of m0 + m1 * w1 + m2 * w2 ... with random 64-bit m and
 * 32-bit w: two flows that were chosen without knowing the numbers m meet with a
 * probability of 2^-64. Nobody outside sees a hash, so it need not be a secret
 * function of more than that; and ten products cost a third of SipHash's rounds.
 * The sums are close to linear: mixing keeps who finds two flows in one bucket from
 * finding a third by the same distance.
 *
 * Inputs differ in their number of words; the last is never 0, so that none is
 * another's with zeros added.
 */
#pragma once

#include "router_maps.h"

static ALWAYS_INLINE __u64 flow_hash(const __u64 *words, __u32 count)
{
	const volatile __u64 *key = config.flow_key;
	__u64 high = key[0], low = key[1], hash;

	for (__u32 i = 0; i < count; i++) {
		__u64 first = (__u32)words[i], second = words[i] >> 32;

		high += key[4 + 4 * i] * first + key[5 + 4 * i] * second;
		low += key[6 + 4 * i] * first + key[7 + 4 * i] * second;
	}
	hash = (high >> 32 << 32) | low >> 32;
	hash = (hash ^ hash >> 32) * (key[2] | 1);
	hash = (hash ^ hash >> 29) * (key[3] | 1);
	return hash ^ hash >> 32;
}
