/* SPDX-License-Identifier: GPL-2.0-only */
/* What the program of health checks and the control plane share. */
#pragma once

#include "kernel.h"

enum check_limit {
	CHECK_ABI = 1,
	CHECK_WAYS = 65536, /* numbers that a mark has room for */
	CHECK_OUTER = 48, /* octets of the largest outer headers: IPv6 and UDP */
};

/* How a check gets to one backend. */
struct check_way {
	__u8 link[12]; /* link addresses: of the next hop, and of the interface */
	__u8 outer[CHECK_OUTER]; /* headers, with lengths and checksum 0 */
	__u8 length; /* octets of them: 20, 28, 40 or 48 */
	__u8 is_ipv4; /* the tunnel, not what is in it */
	__u8 gue;
	__u8 reserved;
};

struct check_counters {
	__u64 sent;
	__u64 refused; /* marked, and no way is known: dropped, for they must not stray */
};

/* Constant after load. */
struct check_config {
	__u32 mark; /* upper 16 bits of the mark; the lower ones are the way's number */
	__u32 abi;
};

struct check_manifest {
	enum check_limit check_limit;
	struct check_way check_way;
	struct check_counters check_counters;
	struct check_config check_config;
};
