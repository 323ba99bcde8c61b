/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The host's octets of a connection ID: which generation and worker made it.
 *
 *   id   = prefix (all but the last five octets) | host (five octets)
 *   h    = SipHash-1-3(id_key, prefix padded with zeros to 15 octets | length)
 *   host = 40 bits, little-endian: owner ^ low 16 bits of h, then the 24 high
 *          bits of h * (2 * owner + 1)
 *
 * The mask keeps an observer from linking the IDs of a worker. The product binds
 * the owner to the check with one multiplication: a client-chosen ID passes with
 * a probability of 2^-24, and one hash is all that a packet pays. The codec's
 * Python side is sockway.wire.host_id.
 */
#pragma once

#include "router_maps.h"
#include "siphash.h"

#define NOT_OURS (-1)

/* An ID as three words, zero beyond its length. */
struct id {
	__u64 word[3];
	__u32 length;
};

/* The octets of a word that belong to the first `length`, given that `before`
 * octets come ahead of it. */
static ALWAYS_INLINE __u64 word_mask(__u32 length, __u32 before)
{
	if (length >= before + 8)
		return ~0ULL;
	if (length <= before)
		return 0;
	return (1ULL << ((length - before) * 8)) - 1;
}

/* `bytes`: 24 readable octets, of which `length` are the ID. */
static ALWAYS_INLINE void id_load(struct id *id, const void *bytes, __u32 length)
{
	struct {
		__u64 word[3];
	} __attribute__((packed)) const *from = bytes;

	id->word[0] = from->word[0] & word_mask(length, 0);
	id->word[1] = from->word[1] & word_mask(length, 8);
	id->word[2] = from->word[2] & word_mask(length, 16);
	id->length = length;
}

/* The owner (generation octet << 8 | worker) that the ID names, or NOT_OURS. The
 * words are passed by value: a function that is proven once takes no pointers. */
NO_INLINE int host_id_owner(__u64 word0, __u64 word1, __u64 word2, __u32 length)
{
	__u32 prefix = length - ID_HOST;
	__u64 message[2], hash, host;
	__u16 owner;

	if (length < ID_MIN || length > ID_MAX)
		return NOT_OURS;

	message[0] = word0 & word_mask(prefix, 0);
	message[1] = (word1 & word_mask(prefix, 8)) | (__u64)length << 56;
	hash = siphash(config.id_key[0], config.id_key[1], message, 2);

	/* The five octets straddle two words, except where the shift is 0. */
	if (prefix < 8) {
		host = word0 >> (prefix * 8) | word1 << (64 - prefix * 8);
	} else {
		host = word1 >> ((prefix - 8) * 8);
		if (prefix > 8)
			host |= word2 << (128 - prefix * 8);
	}
	owner = host ^ hash;
	if (((host >> 16) & 0xffffff) != (hash * (2 * (__u64)owner + 1)) >> 40)
		return NOT_OURS;
	return owner;
}

static ALWAYS_INLINE int host_id_read(const struct id *id)
{
	return host_id_owner(id->word[0], id->word[1], id->word[2], id->length);
}
