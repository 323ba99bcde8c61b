/* SPDX-License-Identifier: GPL-2.0-only */
/* Loses the last packet of a handshake, and all that follows it: what goes to port
 * 5000 and is no SYN. */
#include "kernel.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

char LICENSE[] SEC("license") = "GPL";

SEC("xdp")
int drop_ack(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct ethhdr *eth = data;
	const struct tcphdr *tcp;

	if ((const void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == swap16(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP)
			return XDP_PASS;
		tcp = (const void *)(ip + 1);
	} else {
		const struct ipv6hdr *ip = (const void *)(eth + 1);

		if ((const void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return XDP_PASS;
		tcp = (const void *)(ip + 1);
	}
	if ((const void *)(tcp + 1) > end || tcp->dest != swap16(5000) || tcp->syn)
		return XDP_PASS;
	return XDP_DROP;
}
