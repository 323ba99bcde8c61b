/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012)
 * over whole 64-bit words: one compression round a word, three to finish.
 *
 * Inputs are always a fixed number of words here, so loops unroll and the final
 * block holds the length alone.
 */
#pragma once

#include "kernel.h"

struct siphash {
	__u64 v0, v1, v2, v3;
};

static ALWAYS_INLINE __u64 rotate_left(__u64 value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static ALWAYS_INLINE void siphash_round(struct siphash *s)
{
	s->v0 += s->v1;
	s->v2 += s->v3;
	s->v1 = rotate_left(s->v1, 13) ^ s->v0;
	s->v3 = rotate_left(s->v3, 16) ^ s->v2;
	s->v0 = rotate_left(s->v0, 32) + s->v3;
	s->v2 += s->v1;
	s->v3 = rotate_left(s->v3, 21) ^ s->v0;
	s->v1 = rotate_left(s->v1, 17) ^ s->v2;
	s->v2 = rotate_left(s->v2, 32);
}

static ALWAYS_INLINE void siphash_word(struct siphash *s, __u64 word)
{
	s->v3 ^= word;
	siphash_round(s);
	s->v0 ^= word;
}

static ALWAYS_INLINE __u64 siphash(__u64 key0, __u64 key1, const __u64 *words, __u32 count)
{
	struct siphash s = {
		.v0 = key0 ^ 0x736f6d6570736575,
		.v1 = key1 ^ 0x646f72616e646f6d,
		.v2 = key0 ^ 0x6c7967656e657261,
		.v3 = key1 ^ 0x7465646279746573,
	};

	for (__u32 i = 0; i < count; i++)
		siphash_word(&s, words[i]);
	siphash_word(&s, (__u64)count << 59); /* length in octets, in the top octet */
	s.v2 ^= 0xff;
	siphash_round(&s);
	siphash_round(&s);
	siphash_round(&s);
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
