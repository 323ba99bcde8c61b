/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The least that a router can be, to hold the real one against: what the kernel
 * takes for any sk_reuseport program, for any choice of a socket by one, and for
 * each of the two ways to find the array with the sockets.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

enum floors {
	FLOOR_WORKERS = 4,
	FLOOR_ENTRIES = 8192, /* groups times generations */
};

struct floor_key {
	__u32 group;
	__u32 generation;
};

struct socket_array {
	MAP_UINT(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	MAP_UINT(max_entries, FLOOR_WORKERS);
	MAP_UINT(key_size, sizeof(__u32));
	MAP_UINT(value_size, sizeof(__u64));
} sockets SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	MAP_UINT(max_entries, FLOOR_ENTRIES);
	MAP_TYPE(key, __u32);
	MAP_UINT(value_size, sizeof(__u32));
	MAP_ARRAY(values, struct socket_array);
} by_index SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	MAP_UINT(max_entries, FLOOR_ENTRIES);
	MAP_TYPE(key, struct floor_key);
	MAP_UINT(value_size, sizeof(__u32));
	MAP_ARRAY(values, struct socket_array);
} by_key SEC(".maps");

static ALWAYS_INLINE int choose(struct sk_reuseport_md *ctx, void *array)
{
	__u32 worker = (__u64)ctx->hash * FLOOR_WORKERS >> 32;

	if (array)
		bpf_sk_select_reuseport(ctx, array, &worker, 0);
	return SK_PASS;
}

/* Any program at all; the choice is left to the kernel. */
SEC("sk_reuseport")
int empty(struct sk_reuseport_md *ctx)
{
	(void)ctx;
	return SK_PASS;
}

/* A choice from the one array that there is. */
SEC("sk_reuseport")
int one_array(struct sk_reuseport_md *ctx)
{
	return choose(ctx, &sockets);
}

SEC("sk_reuseport")
int array_of_maps(struct sk_reuseport_md *ctx)
{
	__u32 index = 33;

	return choose(ctx, bpf_map_lookup_elem(&by_index, &index));
}

SEC("sk_reuseport")
int hash_of_maps(struct sk_reuseport_md *ctx)
{
	struct floor_key key = { .group = 1, .generation = 1 };

	return choose(ctx, bpf_map_lookup_elem(&by_key, &key));
}
