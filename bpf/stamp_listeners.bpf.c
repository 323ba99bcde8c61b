/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Servers that listened before their port was stamped. The kernel calls for a SYN-ACK if the
 * listener asked for it, and the stamp program (stamp.bpf.c) asks when a socket begins to
 * listen. An iterator over the sockets of a network namespace asks for those that did before.
 *
 * An object of its own, for the kernel lets iterators ask since 6.12. On older ones
 * such servers tell their ID when a client asks for it.
 */
#include "stamp.h"

#include <linux/in.h>

char LICENSE[] SEC("license") = "GPL";

#define STATE_LISTEN 10 /* TCP_LISTEN of <net/tcp_states.h> */
#define CB_FLAGS 1008 /* TCP_BPF_SOCK_OPS_CB_FLAGS of <linux/bpf.h>, from 6.12 on */

/* What is used of the kernel's own; it knows where its fields are. */
struct sock_common {
	__u16 skc_num;
	volatile __u8 skc_state;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	void *meta;
	struct sock_common *sk_common;
};

static long (*const bpf_getsockopt)(void *sk, int level, int name, void *value,
				    int size) = AS_HELPER(BPF_FUNC_getsockopt);
static long (*const bpf_setsockopt)(void *sk, int level, int name, void *value,
				    int size) = AS_HELPER(BPF_FUNC_setsockopt);

/* The stamp program's. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, STAMP_PORTS);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, __u16);
	MAP_TYPE(value, __u8);
} ports SEC(".maps");

/* How many listeners were asked to tell: from outside nothing shows it. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u32);
} woken SEC(".maps");

SEC("iter/tcp")
int listeners(struct bpf_iter__tcp *each)
{
	struct sock_common *sk = each->sk_common;
	__u32 zero = 0, *count;
	const __u8 *roles;
	int flags = 0;
	__u16 port;

	if (!sk || sk->skc_state != STATE_LISTEN)
		return 0;
	port = sk->skc_num;
	roles = bpf_map_lookup_elem(&ports, &port);
	if (!roles || !(*roles & STAMP_SERVER) ||
	    bpf_getsockopt(sk, IPPROTO_TCP, CB_FLAGS, &flags, sizeof(flags)))
		return 0;
	/* Of a cgroup that is not stamped the kernel calls nobody. */
	flags |= BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG;
	if (bpf_setsockopt(sk, IPPROTO_TCP, CB_FLAGS, &flags, sizeof(flags)))
		return 0;
	count = bpf_map_lookup_elem(&woken, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}
