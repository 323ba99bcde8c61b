/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The version-independent part of a QUIC packet (RFC 8999), as far as routing
 * needs it, and which long headers open a connection (RFC 9000, section 17.2;
 * RFC 9369, section 3.2, gives version 2 other type bits).
 *
 * Only the first packet of a datagram is read: all packets of a datagram go to
 * one connection ID (RFC 9000, section 12.2).
 */
#pragma once

#include "host_id.h"

#define QUIC_V1 0x00000001
#define QUIC_V2 0x6b3343cf
#define QUIC_LONG 0x80
#define QUIC_WINDOW 72 /* of a long header: flags, version, two IDs and their lengths */
#define QUIC_ID_SPAN 24 /* octets read for an ID, whatever its length */

struct quic_long {
	struct id to; /* Destination Connection ID */
	struct id from; /* Source Connection ID: the client's own */
	bool opens; /* Initial or 0-RTT, or a version that is not known here */
};

static ALWAYS_INLINE bool quic_opens(__u8 flags, __u32 version)
{
	__u8 type = flags >> 4 & 3;

	if (version == QUIC_V1)
		return type < 2; /* Initial 0, 0-RTT 1 */
	if (version == QUIC_V2)
		return type == 1 || type == 2; /* Initial 1, 0-RTT 2 */
	return version != 0; /* a server may answer with its versions: any worker can */
}

/*
 * Reads a long header at `offset` of the datagram. False: it is cut short, or an
 * ID is longer than any that this server could have issued (a Version
 * Negotiation answer is all it can get, and any worker gives that).
 */
static ALWAYS_INLINE bool quic_read_long(struct sk_reuseport_md *ctx, __u32 offset,
					 struct quic_long *header)
{
	__u8 window[QUIC_WINDOW] = {};
	__u32 available = ctx->len - offset;
	__u8 to_length, from_length;
	__u32 version;

	if (ctx->len <= offset + 7)
		return false;
	if (available > QUIC_WINDOW)
		available = QUIC_WINDOW;
	if (!WITHIN(available, QUIC_WINDOW))
		return false;
	if (bpf_skb_load_bytes(ctx, offset, window, available))
		return false;
	version = (__u32)window[1] << 24 | window[2] << 16 | window[3] << 8 | window[4];
	to_length = window[5];
	if (to_length > ID_MAX || 7u + to_length > available)
		return false;
	from_length = window[6 + to_length];
	if (from_length > ID_MAX || 7u + to_length + from_length > available)
		return false;
	id_load(&header->to, window + 6, to_length);
	id_load(&header->from, window + 7 + to_length, from_length);
	header->opens = quic_opens(window[0], version);
	return true;
}
