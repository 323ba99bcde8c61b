/* SPDX-License-Identifier: GPL-2.0-only */
/* The Internet checksum (RFC 1071), in the byte order that the packet has. */
#pragma once

#include "kernel.h"

static ALWAYS_INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

/* After a word that it covers has changed: RFC 1624, equation 3. */
static ALWAYS_INLINE __u16 checksum_update(__u16 check, __u16 before, __u16 after)
{
	return ~fold((__u32)(__u16)~check + (__u16)~before + after);
}
