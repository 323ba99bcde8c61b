/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the balancer's BPF programs and the control plane share: the one source of
 * every layout and number of theirs, read by Python from the object's BTF.
 *
 * Addresses are in network order, IPv4 mapped (::ffff:a.b.c.d), ports in network
 * order too, so that a packet's octets are compared as they are.
 */
#pragma once

#include "aes.h"
#include "balancer_notes.h"
#include "flow_entry.h"
#include "kernel.h"

enum balancer_limit {
	/* Raised when a layout or a meaning here changes: pinned state of another
	 * number is never adopted. */
	BALANCER_ABI = 2,
	RING_SIZE = 65537, /* slots of a ring unless configured; prime */
	BACKENDS = 65535, /* numbers 1 to this; 0 is nobody */
	VIP_WAYS = 2, /* entries in a bucket of the VIP table: one cache line */
	VIP_PROBES = 4, /* buckets in a row that an entry may be in */
	EXTENSIONS = 6, /* IPv6 extension headers that are walked */
	QUOTE = 512, /* octets of a packet that an ICMP error of ours quotes */
	CAPTURE_OCTETS = 2048, /* of a packet that are captured, at most */
	HASH_KEYS = 14, /* secret numbers of the flow hash */
	MTU_LEAST = 1280, /* of the path to a backend */
	ID_WAYS = 8, /* entries in a bucket of the table of server IDs: one cache line */
	ID_PROBES = 2, /* buckets in a row that an entry may be in */
	ID_LAST = 0xffffff, /* a server ID has 24 bits */
	STAMP_OPTIONS = 40, /* octets of options, and so options, that are walked */
	QUIC_CONFIGS = 7, /* rotations of connection IDs; 7 stands for none */
	TICK_SHIFT = 30, /* a tick is 2^30 ns, by the clock of bpf_ktime_get_coarse_ns */
};

/* Which protocol carries a packet to its backend; the inner protocol follows the packet. */
enum encapsulation {
	ENCAP_IP = 0, /* IP in IP: protocols 4 and 41 (RFC 2003, 2473, 4213) */
	ENCAP_GUE = 1, /* UDP, variant 1: the inner packet follows (draft-ietf-intarea-gue) */
};

/* How flows are remembered; constant after load. */
enum memory {
	MEMORY_NONE = 0, /* the ring alone */
	MEMORY_TABLE = 1, /* every flow in the connection table: what others do */
	MEMORY_HISTORY = 2, /* slots know their previous backend; the table is for those */
};

enum balancer_vip_flag {
	VIP_BY_SOURCE = 1, /* flows are hashed by the client's address alone */
	VIP_ECHO = 2, /* of an address: ICMP echo is answered */
	VIP_DELETED = 4, /* no VIP any more, and not the end of a row of probes */
	VIP_STAMPED = 8, /* packets may carry their server's ID */
};

/*
 * An entry of the VIP table: (address, port, protocol). Port 0 is any port. Protocol
 * 0 with port 0 stands for the address itself: what ICMP and fragments are looked up by.
 * `in_use` is written last when an entry is made.
 */
struct vip_entry {
	__u32 address[4];
	__u16 port; /* network order */
	__u8 protocol;
	__u8 flags; /* enum balancer_vip_flag */
	__u16 pool;
	__u16 in_use; /* 0: free, and nothing was ever put behind it */
	__u32 index; /* of the VIP's counters and limit; never 0 */
	__u32 flow_mask; /* buckets - 1 of the connection table that its flows may use */
};

struct vip_bucket {
	struct vip_entry way[VIP_WAYS];
};

struct pool {
	__u32 ring; /* the slot of `rings` where its ring starts */
	__u32 size; /* slots; 0: the pool is not there */
	/* Ticks; see balancer_tick(). Until then slots go by their previous backend, */
	__u32 history_until;
	/* and unknown UDP flows of such slots belong to it. */
	__u32 udp_until;
	__u32 source4; /* of the tunnel; bits outside of the mask vary by flow */
	__u32 mask4;
	__u32 source6[4];
	__u32 mask6; /* of the last word alone */
	__u8 encapsulation; /* enum encapsulation */
	__u8 reserved;
	__u16 gue_port; /* network order */
	__u32 reserved2[4];
};

/* A slot of a ring: current backend, and previous << 16. */
enum ring_slot {
	RING_BACKEND = 0xffff,
	RING_PREVIOUS_SHIFT = 16,
	RING_LINE_SHIFT = 4,
	RING_LINE = 1 << RING_LINE_SHIFT, /* slots in a cache line */
};

/* An array map gives each value 8 octets at least, so slots come by the line. Seen
 * from outside, `rings` is an array of 32-bit slots, one pool's behind the other's. */
struct ring_line {
	__u32 slot[RING_LINE];
};

enum backend_flag {
	BACKEND_UP = 1, /* takes packets; a draining one does */
	BACKEND_LOCAL = 2, /* this host itself: packets are passed to it */
	BACKEND_RESOLVED = 4, /* its way out is known */
};

/* Where a packet leaves. */
struct way_out {
	__u8 next_hop[6]; /* link address of the next hop, */
	__u8 own[6]; /* and of the interface towards it */
	__u32 ifindex; /* of that interface */
};

struct backend {
	__u32 address[4]; /* of the tunnel's end */
	struct way_out way;
	__u16 mtu; /* of the path; the tunnel's headers included */
	__u8 flags; /* enum backend_flag */
	__u8 is_ipv4; /* the tunnel's end has an IPv4 address */
	__u32 server_id; /* 24 bits */
	__u32 reserved[6];
};

/*
 * The table of server IDs. An entry is one word: server ID, pool << 24, backend << 40;
 * 0 is free. An ID counts for the pools that its backend is in, and for no other: who
 * invents IDs reaches nobody that its VIP does not lead to anyway.
 */
enum id_word {
	ID_POOL_SHIFT = 24,
	ID_BACKEND_SHIFT = 40,
};

struct id_bucket {
	__u64 word[ID_WAYS];
};

/* New connections that may be remembered (GCRA, ITU-T I.371). */
struct limit {
	__u64 arrival; /* theoretical arrival time, ns; the program's */
	__u64 interval; /* ns between connections; 0: no limit */
	__u64 burst; /* ns that arrival may be ahead */
	__u64 reserved;
};

/* What became of a packet. Each packet for a VIP counts once. */
enum outcome {
	/* Sent to a backend, because: */
	BY_RING = 0, /* its slot has one backend */
	BY_TABLE = 1, /* the connection table knows the flow */
	NEW_FLOW = 2, /* it opens a flow in a slot in transition: current, remembered */
	BY_PREVIOUS = 3, /* unknown in a slot in transition: older than the change */
	OVER_LIMIT = 4, /* a new flow over the VIP's limit: not remembered */
	BY_STAMP = 5, /* it carries the ID of that backend */
	ICMP_ERROR = 6, /* it quotes a packet of that backend */
	TO_LOCAL = 7, /* the backend is this host: passed */
	/* Answered: */
	ECHOED = 8,
	TOO_BIG = 9, /* an ICMP error told the sender the tunnel's MTU */
	/* Dropped: */
	TOO_BIG_DROPPED = 10, /* too big for the tunnel, and nobody to tell */
	FRAGMENT = 11,
	TTL_EXPIRED = 12,
	NO_BACKEND = 13, /* the slot has none that is up */
	NO_ROUTE = 14, /* no next hop towards the backend is known */
	NO_ROOM = 15, /* the frame has no room for the tunnel's headers */
	/* Beside one of those, for a flow that was to be remembered: */
	STORED = 16,
	EVICTED = 17, /* and it took a live one's place */
	LOST = 18, /* another CPU wrote there first: not remembered */
	/* Beside one of those, for a packet with a stamp that does not count: */
	FOREIGN_STAMP = 19, /* of no backend of the pool that is up; 0 is none's, and asks */
	BAD_OPTIONS = 20, /* TCP options that contradict */
	/* Of index 0, for no VIP: */
	MALFORMED = 21, /* cut short, or lengths that contradict: passed */
	OUTCOMES = 22,
};

struct vip_counters {
	__u64 octets; /* of IP, of packets sent to backends */
	__u64 outcome[OUTCOMES];
};

struct backend_counters {
	__u64 packets;
	__u64 octets; /* of IP, without the tunnel's headers */
};

/* Read by each packet, written by the control plane; mapped into its memory. */
struct settings {
	__u32 any_port; /* VIPs of any port that there are */
	__u32 capture; /* index of the VIP whose packets are captured; 0 none, ~0 all */
	__u32 capture_every; /* one of so many */
	/* Of stamps. */
	__u8 tcp_kind; /* of the option that clients write; 0: none is read */
	__u8 tcp_little_endian; /* the order of its ID's octets */
	__u16 tcp_experiment; /* network order; not 0: of RFC 6994, with this number */
	__u64 notes; /* serial << 32 | octets of the ledger, in half `serial & 1` of `notes` */
	__u32 zero; /* stays 0 */
	__u32 reserved2[9];
};

/* How a QUIC connection ID carries a server ID. */
enum quic_shape {
	QUIC_NONE = 0, /* no such IDs */
	QUIC_CLEAR = 1, /* bits of the ID's first eight octets */
	QUIC_BLOCK = 2, /* encrypted, as one block */
	QUIC_ROUNDS = 3, /* encrypted, by a network of rounds */
	QUIC_SHAPES = 4,
};

/* IDs of one configuration; found by the first three bits of an ID. */
struct quic_ids {
	__u8 shape; /* enum quic_shape */
	__u8 least; /* octets of the shortest ID that has all of it */
	__u8 skip; /* bits before the server ID, in clear */
	__u8 drop; /* bits of eight octets behind it */
	/* Encrypted: */
	__u8 together; /* octets of server ID and nonce */
	__u8 right_at; /* where the right half begins, in octets */
	__u8 over_the_middle; /* 1: the server ID has octets of it */
	__u8 reserved;
	__u64 left[2]; /* masks of the halves: their first eight octets, two more at the top */
	__u64 right[2];
	__u32 key[AES_KEY_WORDS]; /* round keys; of decryption for QUIC_BLOCK */
};

/* What a captured packet looks like in the ring buffer `captured`. */
struct capture {
	__u64 time; /* ns, of CLOCK_MONOTONIC */
	__u32 vip; /* index */
	__u32 length; /* of the frame */
	__u32 kept; /* octets of it that follow */
	__u16 backend; /* number; 0: none */
	__u8 outcome; /* enum outcome */
	__u8 verdict; /* enum xdp_action */
	__u32 ifindex; /* that it came in by */
	__u32 reserved;
	__u8 frame[CAPTURE_OCTETS];
};

/* What `explain` learns of a packet; the one entry of the map `explanation`. */
struct explanation {
	__u64 hash;
	__u32 vip; /* index; 0: for no VIP */
	__u32 pool;
	__u32 slot;
	__u16 current, previous; /* backends of the slot */
	__u16 known; /* backend that the connection table has; 0: none */
	__u16 backend; /* chosen; 0: none */
	__u32 stamp; /* the server ID that the packet carries; 0: none */
	__u8 outcome;
	__u8 verdict;
	__u8 in_transition; /* the slot's previous backend counted */
	__u8 found; /* a VIP or its address was found */
};

/* Set before load, constant after. */
struct balancer_config {
	__u64 hash_key[HASH_KEYS]; /* see flow_hash(); the same on all balancers of a fleet */
	__u32 flow_mask; /* buckets of the connection table - 1 */
	__u32 flow_timeout; /* ticks until an idle TCP flow is free again */
	__u32 id_timeout; /* the same for UDP */
	__u32 vip_shift; /* 32 - log2(buckets of the VIP table) */
	__u32 memory; /* enum memory */
	__u32 id_shift; /* 32 - log2(buckets of the table of server IDs) */
	__u32 chain; /* 1: what is for no VIP goes to the program in `next` */
	__u32 abi; /* BALANCER_ABI */
	__u64 build; /* digest of the object that the programs came from */
};

struct balancer_manifest {
	enum balancer_limit balancer_limit;
	enum encapsulation encapsulation;
	enum memory memory;
	enum balancer_vip_flag balancer_vip_flag;
	enum ring_slot ring_slot;
	enum backend_flag backend_flag;
	enum outcome outcome;
	enum id_word id_word;
	struct id_bucket id_bucket;
	enum note_limit note_limit;
	enum flow_limit flow_limit;
	enum flow_seen flow_seen;
	struct vip_bucket vip_bucket;
	struct pool pool;
	struct backend backend;
	struct ring_line ring_line;
	struct limit limit;
	struct flow_bucket flow_bucket;
	struct vip_counters vip_counters;
	struct backend_counters backend_counters;
	struct note note;
	struct settings settings;
	enum quic_shape quic_shape;
	struct quic_ids quic_ids;
	struct capture capture;
	struct explanation explanation;
	struct balancer_config balancer_config;
};
