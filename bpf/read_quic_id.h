/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading a server ID out of a QUIC connection ID: of QUIC-LB
 * (draft-ietf-quic-load-balancers), in clear or encrypted, or of another layout that has
 * it in a fixed place. The first three bits of an ID say which configuration made it.
 */
#pragma once

#include "aes.h"
#include "balancer_maps.h"
#include "packet.h"

#define QUIC_LONG 0x80
#define QUIC_V1 swap32(1)
#define QUIC_V2 swap32(0x6b3343cf)
#define QUIC_ID_AT 6 /* of a long header's destination ID; a short one's is at 1 */
/* Behind where an ID begins, each packet has the rest of it, four octets at least of
 * number and payload, and a tag of sixteen (RFC 9001, 5.4.2): so many can be read. */
#define QUIC_ID_READ 20

#define NO_STAMP 0
#define BAD_STAMP (~0u)

/* Numbers above ID_LAST are nobody's. Which one it is tells what is wrong (17 in the other byte
 * order, say), so it is kept, but for those that would read as BAD_STAMP. */
static ALWAYS_INLINE __u32 stamp_number(__u64 number)
{
	return number < BAD_STAMP ? number : BAD_STAMP - 1;
}

/* One side of the network of rounds: 10 octets at most. */
struct half {
	__u64 high; /* its first eight octets */
	__u64 low; /* two more, at the top */
};

static ALWAYS_INLINE __u64 load64(const __u8 *at)
{
	__u64 octets;

	__builtin_memcpy(&octets, at, 8);
	return swap64(octets);
}

static ALWAYS_INLINE void load_half(struct half *half, const __u8 *at, const __u64 *mask)
{
	half->high = load64(at) & mask[0];
	half->low = ((__u64)at[8] << 56 | (__u64)at[9] << 48) & mask[1];
}

/* A round: `from` and its number, encrypted, change `to`. */
static ALWAYS_INLINE void change_half(struct half *to, const struct half *from, const __u64 *mask,
				      const struct quic_ids *ids, __u32 round)
{
	struct aes_block block = { .word = {
					   from->high >> 32,
					   from->high,
					   from->low >> 32,
					   (__u32)ids->together << 8 | round,
				   } };

	aes_encrypt(ids->key, &block);
	to->high ^= ((__u64)block.word[0] << 32 | block.word[1]) & mask[0];
	to->low ^= (__u64)block.word[2] << 32 & mask[1];
}

/* The first eight octets of what the rounds made of server ID and nonce: section 5.5.2 of
 * the draft, from the last round back. The first one is for IDs that reach over the middle. */
static ALWAYS_INLINE __u64 undo_rounds(struct xdp_md *ctx, __u32 at, const struct quic_ids *ids)
{
	const __u8 *left_at = frame_start(ctx) + BOUND(at, 0x3fff), *right_at;
	struct half left, right;

	right_at = left_at + (ids->right_at & 15);
	if ((void *)(left_at + 10) > frame_end(ctx) || (void *)(right_at + 10) > frame_end(ctx))
		return 0;
	load_half(&left, left_at, ids->left);
	load_half(&right, right_at, ids->right);
	change_half(&left, &right, ids->left, ids, 4);
	change_half(&right, &left, ids->right, ids, 3);
	change_half(&left, &right, ids->left, ids, 2);
	if (!ids->over_the_middle)
		return left.high;
	change_half(&right, &left, ids->right, ids, 1);
	return left.high | right.high >> 8 * (ids->right_at & 7);
}

static ALWAYS_INLINE __u64 undo_block(struct xdp_md *ctx, __u32 at, const struct quic_ids *ids)
{
	const __u8 *octets = frame_start(ctx) + BOUND(at, 0x3fff);
	struct aes_block block;
	__u64 high, low;

	if ((void *)(octets + sizeof(block)) > frame_end(ctx))
		return 0;
	high = load64(octets);
	low = load64(octets + 8);
	block.word[0] = high >> 32;
	block.word[1] = high;
	block.word[2] = low >> 32;
	block.word[3] = low;
	aes_decrypt(ids->key, &block);
	return (__u64)block.word[0] << 32 | block.word[1];
}

NO_INLINE __u32 quic_stamp(struct xdp_md *ctx, __u32 l4, __u32 end)
{
	__u32 at = BOUND(l4, 0x3fff) + sizeof(struct udphdr), length;
	const __u8 *quic = frame_start(ctx) + at, *octets;
	const struct quic_ids *ids;
	__u64 word;

	if ((void *)(quic + 1) > frame_end(ctx))
		return NO_STAMP;
	if (unlikely(quic[0] & QUIC_LONG)) {
		__u8 type = quic[0] >> 4 & 3;
		__u32 version;

		if ((void *)(quic + QUIC_ID_AT) > frame_end(ctx))
			return NO_STAMP;
		__builtin_memcpy(&version, quic + 1, 4);
		/* Handshake packets alone: the IDs of Initial and 0-RTT are the client's. */
		if (!(version == QUIC_V1 && type == 2) && !(version == QUIC_V2 && type == 3))
			return NO_STAMP;
		length = quic[5];
		octets = quic + QUIC_ID_AT;
		at += QUIC_ID_AT;
	} else {
		octets = quic + 1;
		at += 1;
		length = end - at;
	}
	if (at + QUIC_ID_READ > end || (void *)(octets + QUIC_ID_READ) > frame_end(ctx))
		return NO_STAMP;
	ids = &quic_ids[octets[0] >> 5];
	if (!ids->shape || length < ids->least)
		return NO_STAMP;
	if (ids->shape == QUIC_CLEAR)
		word = load64(octets) << (ids->skip & 63);
	else if (ids->shape == QUIC_BLOCK)
		word = undo_block(ctx, at + 1, ids);
	else
		word = undo_rounds(ctx, at + 1, ids);
	word >>= ids->drop & 63;
	return stamp_number(word);
}
