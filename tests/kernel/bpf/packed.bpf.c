/* SPDX-License-Identifier: GPL-2.0-only */
/* A structure that ctypes would lay out otherwise. */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

struct packed {
	__u8 first;
	__u32 second;
} __attribute__((packed));

struct moved {
	__u8 first;
	__u32 : 8; /* without a name, so BTF does not tell of it */
	__u32 second : 4;
};

struct packed packed;
struct moved moved;

SEC("xdp")
int plain(struct xdp_md *ctx)
{
	(void)ctx;
	return packed.second + moved.second;
}
