/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the socket router's BPF programs and the control plane share.
 *
 * This file is the one source of truth: Python reads every layout, size and
 * number below from the BTF of the compiled object. `struct manifest` has a
 * member of each type for that reason alone: BTF drops what nothing uses.
 */
#pragma once

#include "flow_entry.h"
#include "kernel.h"

enum limit {
	/* Raised when a layout or a meaning here changes: pinned state of another
	 * number is never adopted. */
	ROUTER_ABI = 2,
	GENERATIONS = 32, /* live at once in a service */
	WORKERS = 256, /* in a generation */
	SPREAD_SLOTS = 4096, /* of a generation's weight table */
	CPUS = 1024, /* known to the CPU spread; higher ones wrap */
	FLOW_KEY_WORDS = 24, /* four, and four for each word that is hashed */
	VIP_SLOTS_SHIFT = 10,
	VIP_SLOTS = 1 << VIP_SLOTS_SHIFT, /* of a service's cache of VIPs */
	ID_MAX = 20, /* octets of a connection ID: RFC 9000, section 17.2 */
	ID_HOST = 5, /* octets of an ID that are the host's: see host_id.h */
	ID_MIN = 8, /* three octets before the host's is the least that varies */
};

/* How a worker is picked for a new flow. */
enum spread {
	SPREAD_HASH = 0,
	SPREAD_WEIGHTS = 1,
	SPREAD_CPU = 2,
};

/* How a packet finds its owner; each has a program of its own. */
enum flow_mode {
	FLOW_MODE_TCP = 0,
	FLOW_MODE_QUIC = 1,
	FLOW_MODE_TUPLE = 2,
	FLOW_MODE_COOKIE = 3,
	FLOW_MODE_NONE = 4,
};

enum vip_flag {
	/* A wildcard bind with VIPs of their own below it: look at the packet's
	 * destination too. */
	VIP_HAS_MEMBERS = 1,
	/* The server mints IDs that are not ours: remember flows by address too. */
	VIP_FOREIGN_IDS = 2,
	VIP_V6ONLY = 4, /* the control plane's */
	VIP_MEMBER = 8, /* of a wildcard; the control plane's */
};

/* What was decided for a packet, counted per VIP. */
enum decision {
	OWNER_BY_ID = 0, /* the packet's ID names its owner */
	OWNER_BY_TABLE = 1, /* the flow table knows it */
	NEW_FLOW = 2, /* to the published generation */
	STRAY = 3, /* a later packet of no known flow: published, not remembered */
	MIGRATED = 4, /* TCP: from a closing listener to a live one */
	FALLBACK_WORKER = 5, /* the worker picked is gone: another of its generation */
	FALLBACK_GENERATION = 6, /* the generation picked is gone: an older one */
	OWNER_WORKER_GONE = 7, /* a known flow whose worker is gone: as new */
	OWNER_GENERATION_GONE = 8, /* a known flow whose generation is closed: as new */
	KERNEL_HASH = 9, /* no live socket in any array: left to the kernel */
	UNPUBLISHED = 10, /* nothing published yet: refused */
	UNKNOWN_VIP = 11, /* the socket's address is no VIP of this service (VIP 0) */
	FLOW_STORED = 12, /* flow table: an entry was written */
	FLOW_EVICTED = 13, /* flow table: and it took the place of a live one */
	FLOW_LOST = 14, /* flow table: a concurrent writer won; not remembered */
	PROBED = 15, /* a readiness probe, to the worker it names */
	DECISIONS = 16,
};

/* A bound address as its socket has it: IPv4 is mapped (::ffff:a.b.c.d), so that
 * 0.0.0.0 and :: differ. Addresses in network order, the port in host order. */
struct vip_key {
	__u32 address[4];
	__u16 port;
	__u8 protocol;
	__u8 reserved;
};

struct vip {
	__u32 group; /* which sockets: see array_index; never 0 */
	__u32 index; /* of the VIP's counters; never 0 */
	__u8 spread; /* enum spread */
	__u8 flags; /* enum vip_flag */
	__u8 id_length; /* octets of an ID where the packet does not tell */
	__u8 flow; /* enum flow_mode; the control plane's */
	__u16 id_offset; /* cookie mode: where in the payload it starts */
	__u16 reserved2;
};

/*
 * A place of the service's cache of VIPs, at vip_slot(key). The map `vips` is the
 * truth; what is here is a copy that a packet finds without a hash look-up. A slot
 * is free while its protocol is 0, which is written last and cleared first.
 */
struct vip_slot {
	struct vip_key key;
	struct vip vip;
	__u64 reserved[3]; /* a cache line */
};

struct generation {
	__u32 number; /* 0: the slot is free; else number % GENERATIONS is its slot */
	__u32 workers;
	__u32 fallback; /* number of the generation to try when this one has no socket */
	__u32 state; /* enum generation_state; the control plane's, not read here */
	__u64 opened_at; /* seconds since the epoch; the control plane's */
};

enum generation_state {
	GENERATION_FREE = 0,
	GENERATION_PREPARING = 1,
	GENERATION_LIVE = 2, /* published, or was and may be again */
};

/*
 * A readiness probe: the connection from this address and port goes to one
 * worker of a generation that is not published yet. One at a time: whoever
 * holds the service's lock.
 */
struct probe {
	__u32 address[4]; /* IPv4 mapped, network order */
	__u16 port; /* host order; 0: no probe */
	__u16 worker;
	__u32 generation;
};

/* One per service, in a map of its own that the control plane maps into memory. */
struct service {
	/* The generation of new flows, by number; 0: none. Publishing is a store here. */
	__u32 published;
	__u32 last_number; /* highest generation number ever given; the control plane's */
	__u32 lock_holder; /* process id of who is changing the service, as a hint */
	__u32 reserved;
	struct probe probe;
	struct generation generations[GENERATIONS];
	/* A CPU's place on the line of workers, as a fraction of 2^32 (CPU spread). */
	__u32 cpu_point[CPUS];
	__u32 cpu_width; /* how much of that line a CPU covers */
	__u32 reserved2[15];
	struct vip_slot vip_slots[VIP_SLOTS];
};

/* Worker of each weight slot of a generation; a SPREAD_WEIGHTS VIP reads it. */
struct weights {
	__u16 worker[SPREAD_SLOTS];
};

struct vip_counters {
	__u64 decision[DECISIONS];
};

struct worker_counters {
	__u64 new_flows; /* packets that opened a flow (or came without one) */
	__u64 owned; /* packets of flows that the worker owned already */
};

/* Set before load, constant after: the verifier folds them into the program. */
struct router_config {
	__u64 id_key[2]; /* SipHash key of the host's octets; workers know it */
	__u64 flow_key[FLOW_KEY_WORDS]; /* of the flow table's hash; nobody else knows it */
	__u32 flow_mask; /* buckets - 1 */
	__u32 flow_timeout; /* ticks until an entry by address is free again */
	__u32 id_timeout; /* ticks until an entry by ID is free again */
	__u32 abi; /* ROUTER_ABI */
	__u64 build; /* digest of the object that the programs came from */
};

struct manifest {
	enum limit limit;
	enum flow_limit flow_limit;
	enum spread spread;
	enum flow_mode flow_mode;
	enum vip_flag vip_flag;
	enum decision decision;
	enum generation_state generation_state;
	enum flow_seen flow_seen;
	struct vip_key vip_key;
	struct vip vip;
	struct vip_slot vip_slot;
	struct probe probe;
	struct service service;
	struct weights weights;
	struct flow_bucket flow_bucket;
	struct vip_counters vip_counters;
	struct worker_counters worker_counters;
	struct router_config config;
};
