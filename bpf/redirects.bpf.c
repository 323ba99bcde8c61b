/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts frames that the kernel lost after the balancer's program sent them.
 *
 * XDP_REDIRECT and XDP_TX are wishes. Whether the other device took the frame is known
 * after the program has returned, and the kernel tells it to tracepoints alone:
 *
 *   xdp_redirect_err   the device does not take frames, is down, or has a smaller MTU
 *   xdp_exception      the driver did not send back what was to be sent back
 *   xdp_devmap_xmit    the device took a batch, and dropped some of it
 *   xdp_bulk_tx        the same for a batch that is sent back (veth)
 *
 * The first two run on failures only and name the program. The others run once for each
 * batch and name the device, so they ask for drops before all else. All of these are
 * the host's: what belongs to other programs and devices is passed over.
 *
 * Arguments are read by their position, which Linux 6.1 and later agree on; fields of
 * kernel structures are found by the kernel's BTF.
 */
#include "kernel.h"
#include "redirects.h"

char LICENSE[] SEC("license") = "GPL";

const struct redirect_manifest *const volatile manifest = NULL;

#define OF_KERNEL __attribute__((preserve_access_index))

struct net {
	__u64 net_cookie;
} OF_KERNEL;

typedef struct {
	struct net *net;
} OF_KERNEL possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} OF_KERNEL;

struct bpf_prog_aux {
	__u32 id;
} OF_KERNEL;

struct bpf_prog {
	struct bpf_prog_aux *aux;
} OF_KERNEL;

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, REDIRECT_PROGRAMS);
	MAP_TYPE(key, __u32); /* the program's id */
	MAP_TYPE(value, __u32);
} programs SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, REDIRECT_DEVICES);
	MAP_TYPE(key, struct redirect_device);
	MAP_TYPE(value, __u32);
} devices SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_HASH);
	MAP_UINT(max_entries, REDIRECT_KINDS);
	MAP_TYPE(key, struct redirect_failure);
	MAP_TYPE(value, __u64);
} failures SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} sum SEC(".maps");

/* A field of a kernel structure; 0 if it can't be read. */
#define READ(type, from, field)                                                         \
	({                                                                              \
		type read_value = 0;                                                    \
		bpf_probe_read_kernel(&read_value, sizeof(read_value), &(from)->field); \
		read_value;                                                             \
	})

static NO_INLINE int count(__u32 from, __u32 to, __u32 error, __u32 frames)
{
	struct redirect_failure key = { .way_in = from, .way_out = to, .error = error };
	__u64 *known, first = frames;
	__u32 zero = 0;

	known = bpf_map_lookup_elem(&sum, &zero);
	if (known)
		*known += frames;
	known = bpf_map_lookup_elem(&failures, &key);
	if (known)
		*known += frames;
	else
		bpf_map_update_elem(&failures, &key, &first, BPF_NOEXIST);
	return 0;
}

static ALWAYS_INLINE bool is_ours(const struct bpf_prog *program)
{
	const struct bpf_prog_aux *aux = READ(const struct bpf_prog_aux *, program, aux);
	__u32 id = READ(__u32, aux, id);

	return bpf_map_lookup_elem(&programs, &id);
}

static ALWAYS_INLINE bool is_watched(const struct net_device *device)
{
	const struct net *net = READ(const struct net *, device, nd_net.net);
	struct redirect_device key = { .namespace = READ(__u64, net, net_cookie),
				       .ifindex = READ(__u32, device, ifindex) };

	return bpf_map_lookup_elem(&devices, &key);
}

/* (from, program, target, error, type of map, map, index) */
SEC("raw_tp/xdp_redirect_err")
int on_redirect_err(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *from = (void *)ctx->args[0];
	bool by_index = (__u32)ctx->args[4] == BPF_MAP_TYPE_UNSPEC;

	if (is_ours((void *)ctx->args[1]))
		count(READ(__u32, from, ifindex), by_index ? ctx->args[6] : 0, -(__s32)ctx->args[3],
		      1);
	return 0;
}

/* (device, program, action); redirects that failed were told already. */
SEC("raw_tp/xdp_exception")
int on_exception(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *device = (void *)ctx->args[0];

	if ((__u32)ctx->args[2] == XDP_TX && is_ours((void *)ctx->args[1]))
		count(READ(__u32, device, ifindex), READ(__u32, device, ifindex), 0, 1);
	return 0;
}

/* (from, to, sent, drops, error) */
SEC("raw_tp/xdp_devmap_xmit")
int on_devmap_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *from = (void *)ctx->args[0], *to = (void *)ctx->args[1];
	__s32 drops = ctx->args[3], error = ctx->args[4];

	if (unlikely(drops > 0) && is_watched(from))
		count(READ(__u32, from, ifindex), READ(__u32, to, ifindex), error < 0 ? -error : 0,
		      drops);
	return 0;
}

/* (device, sent, drops, error) */
SEC("raw_tp/xdp_bulk_tx")
int on_bulk_tx(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *device = (void *)ctx->args[0];
	__s32 drops = ctx->args[2], error = ctx->args[3];

	if (unlikely(drops > 0) && is_watched(device))
		count(READ(__u32, device, ifindex), READ(__u32, device, ifindex),
		      error < 0 ? -error : 0, drops);
	return 0;
}
