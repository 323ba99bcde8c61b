/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading the ID of its server out of a packet: of a TCP option, or of a QUIC
 * connection ID. A packet with one needs no memory of its flow.
 */
#pragma once

#include "balancer_maps.h"
#include "packet.h"
#include "read_quic_id.h"

#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_TIMESTAMPS swap32(0x0101080a) /* two of nothing, kind and length */
#define TIMESTAMPS_OCTETS 12
#define STAMP_OCTETS 6
#define SHARED_OCTETS 8 /* with the number of an experiment (RFC 6994) */

static ALWAYS_INLINE __u32 tcp_number(__u32 octets)
{
	return stamp_number(settings.tcp_little_endian ? octets : swap32(octets));
}

/* Whether a stamp's option is at `option`, all of which is there. */
static ALWAYS_INLINE bool is_stamp(const __u8 *option, __u32 length)
{
	return option[0] == settings.tcp_kind && option[1] == length &&
	       (length == STAMP_OCTETS ||
		(option[2] | (__u16)option[3] << 8) == settings.tcp_experiment);
}

static ALWAYS_INLINE __u32 stamp_at(struct xdp_md *ctx, __u32 at, __u32 end, __u32 length)
{
	const __u8 *option = frame_start(ctx) + BOUND(at, 0x3fff);
	__u32 id;

	if (at + length > end || (void *)(option + SHARED_OCTETS) > frame_end(ctx)) {
		/* The packet may end with the stamp. */
		if (length != STAMP_OCTETS || at + length > end ||
		    (void *)(option + STAMP_OCTETS) > frame_end(ctx))
			return NO_STAMP;
	}
	if (length == STAMP_OCTETS) {
		if ((void *)(option + STAMP_OCTETS) > frame_end(ctx) || !is_stamp(option, length))
			return NO_STAMP;
		__builtin_memcpy(&id, option + 2, 4);
		return tcp_number(id);
	}
	if ((void *)(option + SHARED_OCTETS) > frame_end(ctx) || !is_stamp(option, length))
		return NO_STAMP;
	__builtin_memcpy(&id, option + 4, 4);
	return tcp_number(id);
}

/* A walk over options, for a packet whose options are unusual. */
struct options {
	struct xdp_md *ctx;
	__u32 at;
	__u32 end;
	__u32 length; /* of a stamp's option */
	__u32 stamp;
};

enum {
	GO_ON = 0,
	STOP = 1,
};

/* One option; a callback of bpf_loop(), so that the verifier goes through it once. */
static long look_at_option(__u32 index, struct options *options)
{
	struct xdp_md *ctx = options->ctx;
	/* Always 0, which the verifier can't know: else it would go through the loop once for
	 * each place that an option could be at, and does not come to an end. */
	__u32 unknown = settings.zero;
	__u32 at = BOUND(options->at | unknown, 0x3fff), octets;
	const __u8 *option = frame_start(ctx) + at;

	(void)index;
	if (at >= options->end || (void *)(option + 1) > frame_end(ctx) || *option == OPTION_END)
		return STOP;
	if (*option == OPTION_NOTHING) {
		options->at = (at + 1) | unknown;
		return GO_ON;
	}
	options->stamp = BAD_STAMP;
	if (at + 2 > options->end || (void *)(option + 2) > frame_end(ctx))
		return STOP;
	octets = option[1];
	if (octets < 2 || at + octets > options->end)
		return STOP;
	options->stamp = NO_STAMP;
	options->at = (at + octets) | unknown;
	if (option[0] != settings.tcp_kind || octets != options->length)
		return GO_ON;
	options->stamp = stamp_at(ctx, at, options->end, options->length);
	/* Of another experiment's there may be more. */
	return options->stamp || octets == STAMP_OCTETS ? STOP : GO_ON;
}

static NO_INLINE __u32 walk_options(struct xdp_md *ctx, __u32 at, __u32 end, __u32 length)
{
	struct options options = { .ctx = ctx, .at = at, .end = end, .length = length };

	bpf_loop(STAMP_OPTIONS, look_at_option, &options, 0);
	return options.stamp;
}

NO_INLINE __u32 tcp_stamp(struct xdp_md *ctx, __u32 l4, __u32 until)
{
	const struct tcphdr *tcp = frame_start(ctx) + BOUND(l4, 0x3fff);
	__u32 length = settings.tcp_experiment ? SHARED_OCTETS : STAMP_OCTETS;
	const __u32 *first = (void *)(tcp + 1);
	__u32 at, end, id;

	if (!settings.tcp_kind || (void *)(tcp + 1) > frame_end(ctx))
		return NO_STAMP;
	at = l4 + sizeof(*tcp);
	end = l4 + tcp->doff * 4;
	if (end <= at)
		return NO_STAMP;
	if (end > until)
		return BAD_STAMP;
	/* Where kernels put it: behind timestamps, or first. */
	if (likely((void *)(first + 1) <= frame_end(ctx) && *first == OPTION_TIMESTAMPS &&
		   at + TIMESTAMPS_OCTETS <= end))
		at += TIMESTAMPS_OCTETS;
	if (at == end)
		return NO_STAMP;
	id = stamp_at(ctx, at, end, length);
	return likely(id) ? id : walk_options(ctx, at, end, length);
}

/* The ID that a packet of a flow carries; NO_STAMP or BAD_STAMP. */
static ALWAYS_INLINE __u32 stamp_of(struct xdp_md *ctx, const struct packet *packet)
{
	if (packet->quoting || packet->opens)
		return NO_STAMP;
	if (packet->protocol == IPPROTO_TCP)
		return tcp_stamp(ctx, packet->l4, packet->l3 + packet->length);
	return quic_stamp(ctx, packet->l4, packet->l3 + packet->length);
}

/* The backend of a pool that has this ID, which is one of 24 bits; 0: none has. */
NO_INLINE __u32 backend_of(__u32 pool, __u32 id)
{
	__u64 key = id | (__u64)pool << ID_POOL_SHIFT;
	__u32 index = (__u32)(key ^ key >> 20) * 0x9e3779b1u >> config.id_shift;

#pragma unroll
	for (int probe = 0; probe < ID_PROBES; probe++) {
		struct id_bucket *bucket = bpf_map_lookup_elem(&ids, &index);

		if (!bucket)
			return 0;
#pragma unroll
		for (int way = 0; way < ID_WAYS; way++) {
			__u64 word = *(volatile __u64 *)&bucket->word[way];

			if ((word & ((1ULL << ID_BACKEND_SHIFT) - 1)) == key)
				return word >> ID_BACKEND_SHIFT;
		}
		index = (index + 1) & (~0u >> config.id_shift);
	}
	return 0;
}
