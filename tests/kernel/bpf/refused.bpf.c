/* SPDX-License-Identifier: GPL-2.0-only */
/* A program that the verifier refuses: what it reads may not be there. */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} numbers SEC(".maps");

SEC("xdp")
int careless(struct xdp_md *ctx)
{
	__u32 key = 0;
	__u64 *number = bpf_map_lookup_elem(&numbers, &key);

	(void)ctx;
	return *number;
}

SEC("xdp")
int careful(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}
