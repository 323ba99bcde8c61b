/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stamps on TCP: a server tells its ID on the SYN-ACK, and the client puts it on every
 * packet from then on, so that a balancer needs to remember neither.
 *
 * One program on a cgroup serves both sides, for a proxy is both; which one a socket is on
 * is in its state, and a socket without a state of this program's is none of its business. A
 * socket pays for what it has to say: a server's is silent, and its state gone, as soon as its
 * ID has come back once, a client's writes an option of six octets. Lost or stripped options are
 * mended the same way on both sides: a server tells on each packet until it is echoed, a client
 * that was told nothing asks with ID 0; both stop after some packets, for the peer does not speak
 * it then.
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
#define EEXIST 17
#define TCP_SYN 0x02
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

/*
 * Which callbacks the kernel makes for this socket from now on. These belong to the socket
 * and not to a program: others on the same cgroup, and on those around it, have the same
 * ones. So this program asks for less only where a socket is its own.
 */
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

/* Whether it is on the packet now; another program on the same connection may have put it there. */
static ALWAYS_INLINE bool write_option(struct bpf_sock_ops *ops, __u8 kind, __u16 experiment,
				       __u32 id)
{
	struct option option = { .kind = kind };
	long error;

	id = swapped(id);
	if (experiment) {
		option.length = STAMP_SHARED_LENGTH;
		__builtin_memcpy(option.octets, &experiment, 2);
		__builtin_memcpy(option.octets + 2, &id, 4);
		error = bpf_store_hdr_opt(ops, &option, STAMP_SHARED_LENGTH, 0);
	} else {
		option.length = STAMP_LENGTH;
		__builtin_memcpy(option.octets, &id, 4);
		error = bpf_store_hdr_opt(ops, &option, STAMP_LENGTH, 0);
	}
	return !error || error == -EEXIST;
}

/* By its port; of a socket that has no state yet. */
static ALWAYS_INLINE bool is_server(struct bpf_sock_ops *ops)
{
	return settings.server_id && has_role(ops->local_port, STAMP_SERVER);
}

static ALWAYS_INLINE bool is_client(struct bpf_sock_ops *ops)
{
	return has_role(swap32(ops->remote_port) & 0xffff, STAMP_CLIENT);
}

static ALWAYS_INLINE struct stamp_state *state_of(struct bpf_sock_ops *ops, __u64 flags)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? bpf_sk_storage_get(&states, sk, NULL, flags) : NULL;
}

static ALWAYS_INLINE struct stamp_state *new_state(struct bpf_sock_ops *ops, enum stamp_role side)
{
	struct stamp_state *state = state_of(ops, BPF_SK_STORAGE_GET_F_CREATE);

	if (state)
		*state = (struct stamp_state){ .epoch = config.epoch, .side = side };
	return state;
}

static ALWAYS_INLINE void delete_state(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	if (sk)
		bpf_sk_storage_delete(&states, sk);
}

/* All is said on this socket. */
static ALWAYS_INLINE void end(struct bpf_sock_ops *ops)
{
	delete_state(ops);
	ask_for(ops, 0);
}

/*
 * The state of a socket that this program stamps; NULL: it has nothing to do with this
 * one. Peers and ports may be others since it was made, and options must not leave for hosts
 * that are not named any more.
 */
static ALWAYS_INLINE struct stamp_state *own_state(struct bpf_sock_ops *ops)
{
	struct stamp_state *state = state_of(ops, 0);

	if (!state || likely(state->epoch == config.epoch))
		return state;
	if ((state->side == STAMP_SERVER ? is_server(ops) : is_client(ops)) && is_peer(ops)) {
		state->epoch = config.epoch;
		return state;
	}
	end(ops);
	return NULL;
}

/* Servers */

static ALWAYS_INLINE void server_listens(struct bpf_sock_ops *ops)
{
	delete_state(ops); /* it may have been a client's */
	if (is_server(ops))
		ask_for(ops, CALLBACKS);
}

/* The client's packet, at the handshake's end or later: has the ID come back? */
static ALWAYS_INLINE bool is_echoed(struct bpf_sock_ops *ops)
{
	__s64 id = read_option(ops, config.client_kind, config.client_experiment);

	if (id == settings.server_id) {
		count(STAMP_ECHOED);
		return true;
	}
	if (id > 0)
		count(STAMP_OTHER_ID);
	return false;
}

static ALWAYS_INLINE void server_accepts(struct bpf_sock_ops *ops)
{
	if (!is_server(ops))
		return;
	/* It has its listener's callbacks. Nearly all are echoed already, and need no state. */
	if (!is_peer(ops) || is_echoed(ops) || !new_state(ops, STAMP_SERVER))
		ask_for(ops, 0);
	else
		ask_for(ops, CALLBACKS);
}

static ALWAYS_INLINE bool server_writes(struct bpf_sock_ops *ops)
{
	if (write_option(ops, config.server_kind, config.server_experiment, settings.server_id))
		return true;
	count(STAMP_NO_ROOM);
	return false;
}

static ALWAYS_INLINE void server_writes_again(struct bpf_sock_ops *ops, struct stamp_state *state)
{
	if (!server_writes(ops))
		return;
	count(STAMP_TOLD_AGAIN);
	if (++state->sent >= STAMP_WRITES) {
		count(STAMP_SILENT);
		end(ops);
	}
}

/*
 * The kernel asks for a SYN-ACK before there is a connection, so what it is asked by is the
 * listener's. Its address and port say whether it is one of this program's, each time: if another
 * program reserved room, the kernel comes here as well.
 */
static ALWAYS_INLINE bool is_own_request(struct bpf_sock_ops *ops)
{
	return is_server(ops) && is_peer(ops);
}

/* Clients */

static ALWAYS_INLINE void client_connects(struct bpf_sock_ops *ops)
{
	if (is_client(ops) && is_peer(ops) && new_state(ops, STAMP_CLIENT)) {
		ask_for(ops, CALLBACKS);
		return;
	}
	/* A socket that was connected to someone else has a state of then. It may be called
	 * for in vain from then on: another program may have asked a moment ago. */
	delete_state(ops);
}

static ALWAYS_INLINE void client_reads(struct bpf_sock_ops *ops, struct stamp_state *state,
				       enum stamp_count how)
{
	__s64 id = read_option(ops, config.server_kind, config.server_experiment);

	if (id <= 0)
		return;
	state->id = id;
	state->silent = false;
	count(how);
	/* From now on it writes, and need not read. */
	ask_for(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
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
		/* All may have left at once, before an answer could come. To wait for it costs
		 * nothing: the kernel calls for options that it does not know. */
		state->silent = true;
		ask_for(ops, BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
	}
}

/* Both: the kernel calls for every socket that asked, whichever program asked for it. */

static ALWAYS_INLINE void established(struct bpf_sock_ops *ops)
{
	struct stamp_state *state = own_state(ops);

	if (state)
		client_reads(ops, state, STAMP_LEARNT);
	else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		server_accepts(ops);
}

/* What has nothing to say on this packet; else `state` is its socket's, NULL for a request. */
static ALWAYS_INLINE bool is_mute(struct bpf_sock_ops *ops, struct stamp_state **state)
{
	*state = NULL;
	if (!ops->sk)
		return !is_own_request(ops);
	*state = own_state(ops);
	if (!*state)
		return true;
	if (likely((*state)->id))
		return false;
	/* Whoever opens knows nothing yet, also if both do at once and this is a SYN-ACK. */
	return (*state)->silent || ops->skb_tcp_flags & TCP_SYN;
}

static ALWAYS_INLINE void reserve(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;
	__u16 experiment = config.server_experiment;

	if (is_mute(ops, &state))
		return;
	if (state && state->side == STAMP_CLIENT)
		experiment = config.client_experiment;
	if (bpf_reserve_hdr_opt(ops, option_length(experiment), 0))
		count(STAMP_NO_ROOM);
}

static ALWAYS_INLINE void write(struct bpf_sock_ops *ops)
{
	struct stamp_state *state;

	if (is_mute(ops, &state))
		return;
	if (!state) {
		if (server_writes(ops))
			count(STAMP_TOLD);
	} else if (state->side == STAMP_CLIENT) {
		client_writes(ops, state);
	} else {
		server_writes_again(ops, state);
	}
}

static ALWAYS_INLINE void parse(struct bpf_sock_ops *ops)
{
	struct stamp_state *state = own_state(ops);

	if (!state)
		return;
	if (state->side == STAMP_CLIENT)
		client_reads(ops, state, STAMP_LEARNT_LATE);
	else if (is_echoed(ops))
		end(ops);
}

SEC("sockops")
int stamp(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		server_listens(ops);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		client_connects(ops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(ops);
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
