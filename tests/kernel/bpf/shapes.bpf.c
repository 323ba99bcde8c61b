/* SPDX-License-Identifier: GPL-2.0-only */
/* Types, maps and programs of every shape that the kernel layer deals with. */
#include "kernel.h"

char LICENSE[] SEC("license") = "GPL";

static long (*const bpf_ringbuf_output)(void *ring, void *data, __u64 size,
					__u64 flags) = AS_HELPER(BPF_FUNC_ringbuf_output);

enum color {
	RED = 1,
	GREEN = 5,
	BLUE = -3
};
enum wide {
	NARROW = 1,
	WIDE = 1ULL << 40
};
enum deep {
	DEEP = -(1LL << 40)
};

struct point {
	__s16 x;
	__u32 y;
};

union either {
	__u64 number;
	__u8 bytes[8];
};

typedef struct point point_t;

struct shapes {
	__u8 first;
	point_t at; /* after padding */
	const volatile point_t grid[2][3];
	union either either;
	struct {
		__u16 inside;
		union {
			__u32 this;
			__s32 that;
		};
	};
	enum color color;
	__u32 low : 3;
	__u32 middle : 13;
	__u32 high : 16;
	bool flag;
	void *pointer;
	char name[16];
};

struct settings {
	__u32 verdict;
	point_t origin;
};

const volatile struct settings settings = { .verdict = XDP_PASS };
const volatile __u32 scalar = 7;
enum wide wide;
enum deep deep;

/* The second of its section: not at its beginning. */
__u64 before SEC(".data.shapes") = 1;
struct shapes shapes SEC(".data.shapes") = { .first = 42, .middle = 5 };

struct cell {
	__u64 packets;
	__u64 add;
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 4);
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct cell);
} cells SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 8);
	MAP_TYPE(key, struct point);
	MAP_TYPE(value, union either);
} points SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_UINT(max_entries, 4096);
} events SEC(".maps");

struct inner {
	MAP_UINT(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	MAP_UINT(max_entries, 1);
	MAP_UINT(key_size, sizeof(__u32));
	MAP_UINT(value_size, sizeof(__u64));
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	MAP_UINT(max_entries, 128);
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, __u32);
	MAP_UINT(value_size, sizeof(__u32));
	MAP_ARRAY(values, struct inner);
} arrays SEC(".maps");

/* Adds what user space has put into cell 1 to cell 0; the verdict is a constant. */
SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 zero = 0, one = 1;
	struct cell *to = bpf_map_lookup_elem(&cells, &zero);
	struct cell *from = bpf_map_lookup_elem(&cells, &one);

	(void)ctx;
	if (to && from)
		to->packets += from->add;
	return settings.verdict;
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

/* Its own place in the packet is what it tells; and it marks the packet. */
SEC("xdp")
int tell(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	__u64 record = scalar;

	if (data + 14 <= (__u8 *)(long)ctx->data_end) {
		record = data[13];
		data[0] = 0xff;
	}
	bpf_ringbuf_output(&events, &record, sizeof(record), 0);
	return XDP_TX;
}

SEC("sockops")
int on_connect(struct bpf_sock_ops *ctx)
{
	__u32 key = 2;
	struct cell *cell = bpf_map_lookup_elem(&cells, &key);

	if (cell && ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		__sync_fetch_and_add(&cell->packets, 1);
	return 1;
}

SEC("sk_reuseport")
int refuse(struct sk_reuseport_md *ctx)
{
	(void)ctx;
	return SK_DROP;
}

/* Has all types in the object's BTF: a type that nothing uses is left out. */
SEC("xdp")
int manifest(struct xdp_md *ctx)
{
	(void)ctx;
	return shapes.first + before + wide + deep;
}
