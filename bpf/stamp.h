/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the stamp program and the control plane share: the one source of every
 * layout and number of theirs, read by Python from the object's BTF.
 */
#pragma once

#include "kernel.h"

enum stamp_limit {
	STAMP_ABI = 2,
	STAMP_PORTS = 1024,
	STAMP_PEERS = 4096, /* prefixes */
	STAMP_LENGTH = 6, /* octets of the option: kind, length, server ID */
	STAMP_SHARED_LENGTH = 8, /* with an experiment's number (RFC 6994) between them */
	STAMP_ASKS = 16, /* packets of a client that ask; then the peer does not speak it */
	STAMP_WRITES = 64, /* packets of a server that tell; the same */
};

enum stamp_role {
	STAMP_SERVER = 1, /* of connections to these ports of this host */
	STAMP_CLIENT = 2, /* of connections of this host to these ports */
};

/* Constant after load. */
struct stamp_config {
	__u8 server_kind; /* of the option that servers write, */
	__u8 client_kind; /* and that clients write */
	__u8 little_endian; /* the order of a server ID's octets; 0: network order */
	__u8 reserved;
	__u16 server_experiment; /* network order; 0: a kind of its own, else RFC 6994 */
	__u16 client_experiment;
	__u32 abi; /* STAMP_ABI */
	__u32 epoch; /* another one after each change: what a connection is checked by again */
};

/* Written by the control plane at any time. */
struct stamp_settings {
	__u32 server_id; /* of this host; 0: it has none, and stamps nothing as a server */
	__u32 reserved[15];
};

struct stamp_peer {
	__u32 length; /* of the prefix, in bits, of 128: IPv4 is mapped */
	__u32 address[4];
};

/* What a socket knows; in its storage. Servers' have one until they are echoed. */
struct stamp_state {
	__u32 id; /* a client's: its server's; 0: not told yet */
	__u32 sent; /* packets that asked or told in vain */
	__u32 epoch; /* of the configuration that peer and port were checked by */
	__u8 side; /* enum stamp_role */
	__u8 silent; /* a client that asked in vain, and may still be told */
	__u16 reserved;
};

enum stamp_count {
	STAMP_TOLD = 0, /* a server wrote its ID on a SYN-ACK, */
	STAMP_TOLD_AGAIN = 1, /* or on a later packet, for it was not echoed yet */
	STAMP_LEARNT = 2, /* a client took an ID from a SYN-ACK, */
	STAMP_LEARNT_LATE = 3, /* or from a later packet */
	STAMP_ECHOED = 4, /* a server saw its ID come back, and is silent from then on */
	STAMP_ASKED = 5, /* a client wrote ID 0, for it knows none */
	STAMP_WROTE = 6, /* a client's packets with an ID */
	STAMP_NO_ROOM = 7, /* the header was full of other options */
	STAMP_SILENT = 8, /* connections given up: the peer does not speak it */
	STAMP_OTHER_ID = 9, /* an echo of another server's ID */
	STAMP_COUNTS = 10,
};

struct stamp_counters {
	__u64 count[STAMP_COUNTS];
};

struct stamp_manifest {
	enum stamp_limit stamp_limit;
	enum stamp_role stamp_role;
	enum stamp_count stamp_count;
	struct stamp_config stamp_config;
	struct stamp_settings stamp_settings;
	struct stamp_peer stamp_peer;
	struct stamp_state stamp_state;
	struct stamp_counters stamp_counters;
};
