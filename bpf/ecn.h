/* SPDX-License-Identifier: GPL-2.0-only */
/* Congestion marks where a tunnel ends: RFC 6040, section 4.2. */
#pragma once

#include "kernel.h"

/* The field's two bits (RFC 3168, section 5). */
enum ecn {
	ECN_NOT = 0, /* the packet's transport does not know of it */
	ECN_ECT1 = 1,
	ECN_ECT0 = 2,
	ECN_CE = 3, /* congestion experienced */
	ECN_MASK = 3,
};

#define ECN_DROP (-1)

/* The field that the inner packet leaves with, or ECN_DROP. */
static ALWAYS_INLINE int ecn_leaving(__u8 inner, __u8 outer)
{
	inner &= ECN_MASK;
	outer &= ECN_MASK;
	if (likely(outer == inner))
		return inner;
	if (outer == ECN_CE)
		return inner == ECN_NOT ? ECN_DROP : ECN_CE;
	if (outer == ECN_ECT1 && inner == ECN_ECT0)
		return ECN_ECT1;
	return inner;
}
