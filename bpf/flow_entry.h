/* SPDX-License-Identifier: GPL-2.0-only */
/* The layout of a flow table: what its users and the control plane share. */
#pragma once

#include "kernel.h"

enum flow_limit {
	FLOW_WAYS = 8, /* entries in a bucket of the flow table: one cache line */
};

/*
 * A bucket of the flow table. A word is fingerprint (32 bits), enum flow_seen (16)
 * and owner (16), so that an entry is read and written whole and a bucket is one
 * cache line; 0 is free.
 */
struct flow_bucket {
	__u64 word[FLOW_WAYS];
};

/* When a flow's last packet came, and what is known of it. */
enum flow_seen {
	FLOW_TICK_SHIFT = 30, /* a tick is 2^30 ns */
	FLOW_TICK_MASK = 0x3fff, /* ticks wrap: 4.9 hours */
	FLOW_BY_ID = 0x4000, /* the short timeout: keyed by ID, or UDP */
	FLOW_CONFIRMED = 0x8000, /* a second packet came: evicted last */
};
