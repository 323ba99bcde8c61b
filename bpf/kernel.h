/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a BPF program needs of its kernel: section names, the map definition
 * macros that libbpf reads from BTF, and the helpers that Sockway calls.
 *
 * Only UAPI headers are used, so the objects build without a vmlinux.h and
 * without libbpf's development files. Helper prototypes are given here for the
 * helpers in use, no others; their numbers come from <linux/bpf.h>.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#define SEC(name) __attribute__((section(name), used))
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NO_INLINE __attribute__((noinline))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* libbpf reads a map's attributes from the types of these members. */
#define MAP_UINT(name, value) int (*name)[value]
#define MAP_TYPE(name, type) typeof(type) *name
#define MAP_ARRAY(name, type) typeof(type) *name[]

/*
 * Describe a struct that would only be declared in BTF. clang writes such declarations in the
 * order of their addresses in its own memory: two of them, and the same source gives different
 * objects. Programs with a `struct __sk_buff` have two: bpf_sock, and bpf_flow_keys.
 */
#define DESCRIBE_TYPE(type) const struct type *const volatile described_##type = NULL

#define AS_HELPER(number) (void *)(unsigned long)(number)

static void *(*const bpf_map_lookup_elem)(void *map,
					  const void *key) = AS_HELPER(BPF_FUNC_map_lookup_elem);
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
					 __u64 flags) = AS_HELPER(BPF_FUNC_map_update_elem);
static long (*const bpf_probe_read_kernel)(void *to, __u32 size, const void *from) =
	AS_HELPER(BPF_FUNC_probe_read_kernel);
static long (*const bpf_sk_select_reuseport)(struct sk_reuseport_md *ctx, void *map, void *key,
					     __u64 flags) = AS_HELPER(BPF_FUNC_sk_select_reuseport);
static long (*const bpf_skb_load_bytes)(const void *ctx, __u32 offset, void *to,
					__u32 len) = AS_HELPER(BPF_FUNC_skb_load_bytes);
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
					 __u32 len,
					 __u64 flags) = AS_HELPER(BPF_FUNC_skb_store_bytes);
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb,
				       __u32 len) = AS_HELPER(BPF_FUNC_skb_pull_data);
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 delta, __u32 mode,
					 __u64 flags) = AS_HELPER(BPF_FUNC_skb_adjust_room);
static long (*const bpf_skb_load_bytes_relative)(const void *ctx, __u32 offset, void *to, __u32 len,
						 __u32 start) =
	AS_HELPER(BPF_FUNC_skb_load_bytes_relative);
static long (*const bpf_xdp_adjust_head)(struct xdp_md *ctx,
					 int delta) = AS_HELPER(BPF_FUNC_xdp_adjust_head);
static long (*const bpf_xdp_adjust_tail)(struct xdp_md *ctx,
					 int delta) = AS_HELPER(BPF_FUNC_xdp_adjust_tail);
static __u64 (*const bpf_xdp_get_buff_len)(struct xdp_md *ctx) =
	AS_HELPER(BPF_FUNC_xdp_get_buff_len);
static long (*const bpf_xdp_load_bytes)(struct xdp_md *ctx, __u32 offset, void *to,
					__u32 len) = AS_HELPER(BPF_FUNC_xdp_load_bytes);
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = AS_HELPER(BPF_FUNC_redirect);
static long (*const bpf_tail_call)(void *ctx, void *programs,
				   __u32 index) = AS_HELPER(BPF_FUNC_tail_call);
static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int size,
				    __u32 flags) = AS_HELPER(BPF_FUNC_fib_lookup);
static __s64 (*const bpf_csum_diff)(const void *from, __u32 from_size, const void *to,
				    __u32 to_size, __u32 seed) = AS_HELPER(BPF_FUNC_csum_diff);
static void *(*const bpf_ringbuf_reserve)(void *map, __u64 size,
					  __u64 flags) = AS_HELPER(BPF_FUNC_ringbuf_reserve);
static void (*const bpf_ringbuf_submit)(void *data,
					__u64 flags) = AS_HELPER(BPF_FUNC_ringbuf_submit);
static __u64 (*const bpf_ktime_get_ns)(void) = AS_HELPER(BPF_FUNC_ktime_get_ns);
static __u32 (*const bpf_get_prandom_u32)(void) = AS_HELPER(BPF_FUNC_get_prandom_u32);
static long (*const bpf_sock_ops_cb_flags_set)(struct bpf_sock_ops *ops, int flags) =
	AS_HELPER(BPF_FUNC_sock_ops_cb_flags_set);
static long (*const bpf_load_hdr_opt)(struct bpf_sock_ops *ops, void *option, __u32 length,
				      __u64 flags) = AS_HELPER(BPF_FUNC_load_hdr_opt);
static long (*const bpf_store_hdr_opt)(struct bpf_sock_ops *ops, const void *option, __u32 length,
				       __u64 flags) = AS_HELPER(BPF_FUNC_store_hdr_opt);
static long (*const bpf_reserve_hdr_opt)(struct bpf_sock_ops *ops, __u32 length,
					 __u64 flags) = AS_HELPER(BPF_FUNC_reserve_hdr_opt);
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value,
					 __u64 flags) = AS_HELPER(BPF_FUNC_sk_storage_get);
static long (*const bpf_sk_storage_delete)(void *map,
					   void *sk) = AS_HELPER(BPF_FUNC_sk_storage_delete);
static long (*const bpf_sk_assign)(void *ctx, void *sk,
				   __u64 flags) = AS_HELPER(BPF_FUNC_sk_assign);
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = AS_HELPER(BPF_FUNC_ktime_get_coarse_ns);
static __u32 (*const bpf_get_smp_processor_id)(void) = AS_HELPER(BPF_FUNC_get_smp_processor_id);
static struct bpf_sock *(*const bpf_skc_lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple,
						    __u32 size, __u64 netns, __u64 flags) =
	AS_HELPER(BPF_FUNC_skc_lookup_tcp);
static long (*const bpf_sk_release)(void *sock) = AS_HELPER(BPF_FUNC_sk_release);
static long (*const bpf_loop)(__u32 iterations, void *callback, void *ctx,
			      __u64 flags) = AS_HELPER(BPF_FUNC_loop);

/*
 * Whether `length` is from 1 to `most`, said so that every verifier learns both bounds.
 * Written plainly, compilers make one comparison of `length - 1`, from which Linux 6.1
 * learns no lower bound for `length` ("invalid zero-sized read"). So the comparison is of
 * one less, in a register that the compiler can't see through, and one is added behind it.
 */
#define WITHIN(length, most)                            \
	({                                              \
		__u32 less_ = (length) - 1;             \
		bool within_;                           \
		asm volatile("" : "+r"(less_));         \
		within_ = less_ < (most);               \
		if (within_) {                          \
			asm volatile("" : "+r"(less_)); \
			(length) = less_ + 1;           \
		}                                       \
		within_;                                \
	})

static ALWAYS_INLINE __u16 swap16(__u16 value)
{
	return __builtin_bswap16(value);
}

static ALWAYS_INLINE __u64 swap64(__u64 value)
{
	return __builtin_bswap64(value);
}

static ALWAYS_INLINE __u32 swap32(__u32 value)
{
	return __builtin_bswap32(value);
}

/* A number below `range`, evenly spread: the high word of a product, no division. */
static ALWAYS_INLINE __u32 scale(__u32 hash, __u32 range)
{
	return ((__u64)hash * range) >> 32;
}
