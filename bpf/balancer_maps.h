/* SPDX-License-Identifier: GPL-2.0-only */
/* The balancer's maps; sizes marked "at load" are set by the control plane. */
#pragma once

#include "balancer.h"

const volatile struct balancer_config config = {};

struct settings settings SEC(".data.settings") = {};
struct quic_ids quic_ids[8] SEC(".data.quic_ids") = {};

/* A table of our own and no hash map: a look-up is a multiplication and a cache line,
 * also for what is not there, which is most of what a host receives. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct vip_bucket);
} vips SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 16); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct pool);
} pools SEC(".maps");

/* All rings, one behind the other: see struct pool and enum ring_slot. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, RING_SIZE / RING_LINE + 1); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct ring_line);
} rings SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct backend);
} backends SEC(".maps");

/* By the VIP's index. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct limit);
} limits SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct id_bucket);
} ids SEC(".maps");

/* The connection table; see flow_table.h. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1); /* at load: config.flow_mask + 1 */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct flow_bucket);
} flows SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 64); /* at load: VIPs + 1; 0 counts what is for none */
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct vip_counters);
} vip_counters SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct backend_counters);
} backend_counters SEC(".maps");

/* Two halves: the one that counts, and the one that the next change is written to. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 2); /* at load */
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct note);
} notes SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_RINGBUF);
	MAP_UINT(max_entries, 1 << 20);
} captured SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct explanation);
} explanation SEC(".maps");

/* 0: the program that gets what is for no VIP. One for each kind of program, for an
 * array takes programs of one kind only. */
struct chain {
	MAP_UINT(type, BPF_MAP_TYPE_PROG_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_UINT(key_size, sizeof(__u32));
	MAP_UINT(value_size, sizeof(__u32));
};

struct chain next SEC(".maps");
struct chain next_frags SEC(".maps");
