/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Passes everything. A veth device takes frames that its peer sends by XDP only if it has
 * a program itself; in the lab this is the one of a router's end.
 */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}
