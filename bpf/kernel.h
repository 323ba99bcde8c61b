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

#define AS_HELPER(number) (void *)(unsigned long)(number)

static void *(*const bpf_map_lookup_elem)(void *map,
					  const void *key) = AS_HELPER(BPF_FUNC_map_lookup_elem);
static long (*const bpf_sk_select_reuseport)(struct sk_reuseport_md *ctx, void *map, void *key,
					     __u64 flags) = AS_HELPER(BPF_FUNC_sk_select_reuseport);
static long (*const bpf_skb_load_bytes)(const void *ctx, __u32 offset, void *to,
					__u32 len) = AS_HELPER(BPF_FUNC_skb_load_bytes);
static long (*const bpf_skb_load_bytes_relative)(const void *ctx, __u32 offset, void *to, __u32 len,
						 __u32 start) =
	AS_HELPER(BPF_FUNC_skb_load_bytes_relative);
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = AS_HELPER(BPF_FUNC_ktime_get_coarse_ns);
static __u32 (*const bpf_get_smp_processor_id)(void) = AS_HELPER(BPF_FUNC_get_smp_processor_id);
static long (*const bpf_loop)(__u32 iterations, void *callback, void *ctx,
			      __u64 flags) = AS_HELPER(BPF_FUNC_loop);

static ALWAYS_INLINE __u16 swap16(__u16 value)
{
	return __builtin_bswap16(value);
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
