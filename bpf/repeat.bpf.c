/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The balancer's benchmark: BPF_PROG_TEST_RUN repeats a program on the frame that the
 * last repetition left, so this one stands before the program that is measured. It takes
 * off what was put on, writes the packet anew, makes it one of another flow, and
 * tail-calls. An empty program is called by the same way, and what that costs is
 * what all of this costs.
 */
#include "kernel.h"

#include <linux/if_ether.h>

char LICENSE[] SEC("license") = "GPL";

enum repeat {
	FRAME_WORDS = 12, /* of 8 octets that are written anew: all headers */
	PROGRAMS = 2, /* 0 the empty one, 1 the one that is measured */
};

struct frame {
	__u64 word[FRAME_WORDS];
};

struct task {
	struct frame frame;
	__u32 length; /* of the frame */
	__u32 varied; /* where the 32 bits are that tell flows apart */
	__u32 flows; /* how many, less one; a power of two less one */
	__u32 program;
	__u32 count;
	__u32 reserved;
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct task);
} tasks SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PROG_ARRAY);
	MAP_UINT(max_entries, PROGRAMS);
	MAP_UINT(key_size, sizeof(__u32));
	MAP_UINT(value_size, sizeof(__u32));
} programs SEC(".maps");

SEC("xdp")
int repeat(struct xdp_md *ctx)
{
	__u32 zero = 0, flow, varied, *at;
	struct frame *frame;
	struct task *task;
	__s64 length;

	task = bpf_map_lookup_elem(&tasks, &zero);
	if (!task)
		return XDP_ABORTED;
	/* Called also where there is nothing to take off, so that it costs all alike. */
	length = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	/* Else the compiler subtracts 32 bits, which are no pointers. */
	asm volatile("" : "+r"(length));
	if (bpf_xdp_adjust_head(ctx, (int)length - (int)task->length))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		frame->word[i] = task->frame.word[i];
	/* Neighbours in time are no neighbours in memory. */
	flow = task->count++ * 0x9e3779b1u & task->flows;
	varied = task->varied;
	asm volatile("" : "+r"(varied));
	at = (void *)frame + (varied & 0x3f);
	if ((void *)(at + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*at ^= __builtin_bswap32(flow);
	bpf_tail_call(ctx, &programs, task->program);
	return XDP_ABORTED;
}

SEC("xdp")
int empty(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_TX;
}
