/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the backend's program and the control plane share: the one source of every
 * layout and number of theirs. Addresses are in network order, IPv4 mapped.
 */
#pragma once

#include "kernel.h"

enum decap_limit {
	DECAP_ABI = 1,
	DECAP_BALANCERS = 1024, /* prefixes that tunnels may come from */
	DECAP_ENDS = 256, /* addresses of this host that tunnels may end at */
	DECAP_VIPS = 8192, /* addresses that this host serves */
};

struct decap_prefix {
	__u32 length; /* bits, of 128 */
	__u32 address[4];
};

struct decap_address {
	__u32 address[4];
};

/* What became of a packet that looked like a tunnel's; all others are not counted. */
enum decap_outcome {
	DECAPSULATED = 0,
	FOREIGN_SOURCE = 1, /* not of a balancer: passed */
	FOREIGN_END = 2, /* not to a tunnel's end here: passed */
	FOREIGN_VIP = 3, /* the packet inside is for no VIP of this host: passed */
	DECAP_MALFORMED = 4, /* cut short, or lengths that contradict: passed */
	ECN_CONTRADICTS = 5, /* congestion met by a packet that can't tell of it: dropped */
	DECAP_FAILED = 6, /* the frame could not be changed: dropped */
	STRAY = 7, /* of no connection here, and no room for a stamp (see stray.h): dropped */
	DECAP_OUTCOMES = 8,
};

struct decap_counters {
	__u64 outcome[DECAP_OUTCOMES];
};

/* Constant after load. */
struct decap_config {
	__u16 gue_port; /* network order; 0: none */
	__u16 reserved;
	__u32 abi; /* DECAP_ABI */
	__u64 build;
};

struct decap_manifest {
	enum decap_limit decap_limit;
	enum decap_outcome decap_outcome;
	struct decap_prefix decap_prefix;
	struct decap_address decap_address;
	struct decap_counters decap_counters;
	struct decap_config decap_config;
};
