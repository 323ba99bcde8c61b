/* SPDX-License-Identifier: GPL-2.0-only */
/* A program that user space calls: it has a context, and no packet. */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

struct sum {
	__u64 number;
	__u64 more;
};

SEC("syscall")
int add(struct sum *sum)
{
	sum->more = sum->number + 1;
	return 7;
}
