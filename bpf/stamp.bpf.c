/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stamps on TCP: a server tells its ID on the SYN-ACK, and the client puts it on every
 * packet from then on, so that a balancer needs to remember neither.
 *
 * One program on a cgroup serves both sides, for a proxy is both. A socket pays for
 * what it has to say: a server's is silent as soon as its ID has come back once, a
 * client's writes an option of six octets. Lost or stripped options are mended the same
 * way on both sides: a server tells on each packet until it is echoed, a client that was
 * told nothing asks with ID 0; both give up after some packets, for the peer does not
 * speak it then.
 */
#include "stamp.h"

char LICENSE[] SEC("license") = "GPL";

const struct stamp_manifest *const volatile manifest = NULL;
const volatile struct stamp_config config = {};
struct stamp_settings settings SEC(".data.settings") = {};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, STAMP_PORTS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, __u16); /* host order */
	MAP_TYPE(value, __u8); /* enum stamp_role */
} ports SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_UINT(max_entries, STAMP_PEERS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct stamp_peer);
	MAP_TYPE(value, __u8);
} peers SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct stamp_state);
} states SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct stamp_counters);
} counters SEC(".maps");

#define AF_INET6 10
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define CALLBACKS (BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG)

struct option {
	__u8 kind;
	__u8 length;
	__u8 octets[6]; /* a server ID, or an experiment's number and one */
};

static ALWAYS_INLINE void count(enum stamp_count what)
{
	__u32 zero = 0;
	struct stamp_counters *all = bpf_map_lookup_elem(&counters, &zero);

	if (all)
		all->count[what]++;
}

/* Which callbacks the kernel makes for this socket from now on. */
static ALWAYS_INLINE void ask_for(struct bpf_sock_ops *ops, __u32 wanted)
{
	bpf_sock_ops_cb_flags_set(ops, (ops->bpf_sock_ops_cb_flags & ~CALLBACKS) | wanted);
}

static ALWAYS_INLINE bool has_role(__u16 port, enum stamp_role role)
{
	const __u8 *roles = bpf_map_lookup_elem(&ports, &port);

	return roles && *roles & role;
}

/* Options must not leave for hosts that were not named. */
static ALWAYS_INLINE bool is_peer(struct bpf_sock_ops *ops)
{
	struct stamp_peer key = { .length = 128 };

	if (ops->family == AF_INET6) {
		key.address[0] = ops->remote_ip6[0];
		key.address[1] = ops->remote_ip6[1];
		key.address[2] = ops->remote_ip6[2];
		key.address[3] = ops->remote_ip6[3];
		/* Else the compiler reads both families at a computed offset. */
		asm volatile("" ::: "memory");
	} else {
		key.address[2] = swap32(0xffff);
		key.address[3] = ops->remote_ip4;
	}
	return bpf_map_lookup_elem(&peers, &key);
}

static ALWAYS_INLINE __u32 option_length(__u16 experiment)
{
	return experiment ? STAMP_SHARED_LENGTH : STAMP_LENGTH;
}

static ALWAYS_INLINE __u32 swapped(__u32 id)
{
	return config.little_endian ? id : swap32(id);
}

/* The ID in the option of this packet, 0 included; -1: it has none. */
static ALWAYS_INLINE __s64 read_option(struct bpf_sock_ops *ops, __u8 kind, __u16 experiment)
{
	struct option option = { .kind = kind };
	__u32 id;

	if (experiment) {
		option.length = 4; /* what is searched by: kind, length, number */
		__builtin_memcpy(option.octets, &experiment, 2);
		if (bpf_load_hdr_opt(ops, &option, sizeof(option), 0) != STAMP_SHARED_LENGTH)
			return -1;
		__builtin_memcpy(&id, option.octets + 2, 4);
	} else {
		if (bpf_load_hdr_opt(ops, &option, sizeof(option), 0) != STAMP_LENGTH)
			return -1;
		__builtin_memcpy(&id, option.octets, 4);
	}
	return swapped(id);
}

static ALWAYS_INLINE bool write_option(struct bpf_sock_ops *ops, __u8 kind, __u16 experiment,
				       __u32 id)
{
	struct option option = { .kind = kind };

	id = swapped(id);
	if (experiment) {
		option.length = STAMP_SHARED_LENGTH;
		__builtin_memcpy(option.octets, &experiment, 2);
		__builtin_memcpy(option.octets + 2, &id, 4);
		return !bpf_store_hdr_opt(ops, &option, STAMP_SHARED_LENGTH, 0);
	}
	option.length = STAMP_LENGTH;
	__builtin_memcpy(option.octets, &id, 4);
	return !bpf_store_hdr_opt(ops, &option, STAMP_LENGTH, 0);
}

static ALWAYS_INLINE struct stamp_state *state_of(struct bpf_sock_ops *ops, __u64 flags)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? bpf_sk_storage_get(&states, sk, NULL, flags) : NULL;
}

/* The side that this socket is on: a client's has a state that says so. */
static ALWAYS_INLINE bool is_server(struct bpf_sock_ops *ops)
{
	return settings.server_id && has_role(ops->local_port, STAMP_SERVER);
}

/* Servers */

static ALWAYS_INLINE void server_listens(struct bpf_sock_ops *ops)
{
	if (is_server(ops))
		ask_for(ops, CALLBACKS);
}

/* The client's packet, at the handshake's end or later: has the ID come back? */
static ALWAYS_INLINE void server_reads(struct bpf_sock_ops *ops)
{
	__s64 id = read_option(ops, config.client_kind, config.client_experiment);

	if (id == settings.server_id) {
		count(STAMP_ECHOED);
		ask_for(ops, 0);
	} else if (id > 0) {
		count(STAMP_OTHER_ID);
	}
}

static ALWAYS_INLINE void server_accepts(struct bpf_sock_ops *ops)
{
	if (!is_server(ops) || !is_peer(ops)) {
		ask_for(ops, 0);
		return;
	}
	ask_for(ops, CALLBACKS);
	state_of(ops, BPF_SK_STORAGE_GET_F_CREATE);
	server_reads(ops);
}

static ALWAYS_INLINE bool is_syn_ack(const struct bpf_sock_ops *ops)
{
	return (ops->skb_tcp_flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

static ALWAYS_INLINE void server_writes(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;

	if (!write_option(ops, config.server_kind, config.server_experiment, settings.server_id)) {
		count(STAMP_NO_ROOM);
		return;
	}
	if (is_syn_ack(ops)) {
		count(STAMP_TOLD);
		return;
	}
	count(STAMP_TOLD_AGAIN);
	state = state_of(ops, 0);
	if (state && ++state->sent >= STAMP_WRITES) {
		count(STAMP_SILENT);
		ask_for(ops, 0);
	}
}

/* Clients */

static ALWAYS_INLINE void client_connects(struct bpf_sock_ops *ops)
{
	if (has_role(swap32(ops->remote_port) & 0xffff, STAMP_CLIENT) && is_peer(ops) &&
	    state_of(ops, BPF_SK_STORAGE_GET_F_CREATE))
		ask_for(ops, CALLBACKS);
}

/* Whether the packet told an ID. */
static ALWAYS_INLINE bool client_reads(struct bpf_sock_ops *ops, struct stamp_state *state,
				       enum stamp_count how)
{
	__s64 id = read_option(ops, config.server_kind, config.server_experiment);

	if (id <= 0)
		return false;
	state->id = id;
	count(how);
	/* From now on it writes, and need not read. */
	ask_for(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	return true;
}

static ALWAYS_INLINE void client_writes(struct bpf_sock_ops *ops, struct stamp_state *state)
{
	if (!write_option(ops, config.client_kind, config.client_experiment, state->id)) {
		count(STAMP_NO_ROOM);
		return;
	}
	if (state->id) {
		count(STAMP_WROTE);
		return;
	}
	count(STAMP_ASKED);
	if (++state->sent >= STAMP_ASKS) {
		count(STAMP_SILENT);
		ask_for(ops, 0);
	}
}

/* Both: the kernel calls for every socket that asked. */

static ALWAYS_INLINE void reserve(struct bpf_sock_ops *ops)
{
	__u32 flags = ops->skb_tcp_flags;
	__u16 experiment;

	if (flags == TCP_SYN)
		return; /* a client has nothing to say yet */
	/* For a SYN-ACK the listener asked, for all who connect to it. */
	if (is_syn_ack(ops) && !is_peer(ops))
		return;
	experiment = is_server(ops) ? config.server_experiment : config.client_experiment;
	if (bpf_reserve_hdr_opt(ops, option_length(experiment), 0))
		count(STAMP_NO_ROOM);
}

static ALWAYS_INLINE void write(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;

	if (ops->skb_tcp_flags == TCP_SYN)
		return;
	if (is_server(ops)) {
		if (!is_syn_ack(ops) || is_peer(ops))
			server_writes(ops);
		return;
	}
	state = state_of(ops, 0);
	if (state)
		client_writes(ops, state);
}

static ALWAYS_INLINE void parse(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;

	if (is_server(ops)) {
		server_reads(ops);
		return;
	}
	state = state_of(ops, 0);
	if (state)
		client_reads(ops, state, STAMP_LEARNT_LATE);
}

SEC("sockops")
int stamp(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;

	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		server_listens(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		server_accepts(ops);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		client_connects(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		state = state_of(ops, 0);
		if (state)
			client_reads(ops, state, STAMP_LEARNT);
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		parse(ops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		reserve(ops);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		write(ops);
		break;
	}
	return 1;
}
