/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The benchmark's source of packets, run by BPF_PROG_TEST_RUN with live frames: it
 * writes the next of the prepared transport headers (and what payload follows)
 * over the frame and hands it to the stack, as if a network card had received it.
 * So neither a sender nor a system call stands between two packets.
 */
#include "kernel.h"

#include <linux/if_ether.h>
#include <linux/ip.h>

char LICENSE[] SEC("license") = "GPL";

enum flood {
	VARIANTS = 4096, /* different packets; a power of two */
	VARIANT_WORDS = 8, /* of 8 octets */
};

struct variant {
	__u64 word[VARIANT_WORDS];
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, VARIANTS);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct variant);
} variants SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} cursor SEC(".maps");

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct variant variant;
} __attribute__((packed));

SEC("xdp")
int flood(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	struct variant *variant;
	__u32 zero = 0, index;
	__u64 *next;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	next = bpf_map_lookup_elem(&cursor, &zero);
	if (!next)
		return XDP_DROP;
	index = (*next)++ & (VARIANTS - 1);
	variant = bpf_map_lookup_elem(&variants, &index);
	if (!variant)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < VARIANT_WORDS; i++)
		frame->variant.word[i] = variant->word[i];
	return XDP_PASS;
}
