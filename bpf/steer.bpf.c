/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Steers addresses to sockets that are bound elsewhere (sk_lookup), for a network
 * namespace that it is attached to. The lab holds it against one bind for each VIP:
 * a prefix here takes one entry, whatever the number of its addresses.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

#define AF_INET 2 /* <linux/socket.h> has it for the kernel alone */

enum steer_limit {
	STEER_PREFIXES = 32768,
	STEER_SOCKETS = 64,
	STEER_FIXED_BITS = 32, /* of a key, before the address: port and protocol */
};

/* A key of a longest-prefix match. IPv4 is mapped (::ffff:a.b.c.d). */
struct steer_key {
	__u32 bits;
	__u16 port; /* host order */
	__u8 protocol;
	__u8 reserved;
	__u32 address[4]; /* network order */
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_UINT(max_entries, STEER_PREFIXES);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct steer_key);
	MAP_TYPE(value, __u32);
} prefixes SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_SOCKMAP);
	MAP_UINT(max_entries, STEER_SOCKETS);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} sockets SEC(".maps");

struct steer_manifest {
	enum steer_limit limit;
	struct steer_key key;
};

/* Never read: it brings the types into the object's BTF. */
const struct steer_manifest *const volatile manifest = NULL;

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct steer_key key = { .bits = 8 * (sizeof(key) - sizeof(key.bits)) };
	void *socket;
	__u32 *index;

	key.port = ctx->local_port;
	key.protocol = ctx->protocol;
	if (ctx->family == AF_INET) {
		__u32 address = ctx->local_ip4;

		/* Else the compiler adds to ctx and loads for both branches at once, which
		 * the verifier does not let pass. */
		asm volatile("" : "+r"(address));
		key.address[2] = swap32(0xffff);
		key.address[3] = address;
	} else {
		key.address[0] = ctx->local_ip6[0];
		key.address[1] = ctx->local_ip6[1];
		key.address[2] = ctx->local_ip6[2];
		key.address[3] = ctx->local_ip6[3];
	}
	index = bpf_map_lookup_elem(&prefixes, &key);
	if (!index)
		return SK_PASS;
	socket = bpf_map_lookup_elem(&sockets, index);
	if (!socket)
		return SK_PASS;
	/* A socket of a reuseport group stands for all of it. */
	bpf_sk_assign(ctx, socket, 0);
	bpf_sk_release(socket);
	return SK_PASS;
}
