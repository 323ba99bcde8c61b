/* SPDX-License-Identifier: GPL-2.0-only */
/* The socket router's maps; sizes marked "at load" are set by the control plane. */
#pragma once

#include "router.h"

const volatile struct router_config config = {};

/* Read on every packet; in a mapping of its own, so that publishing is a store. */
struct service service SEC(".data.service") = {};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct vip_key);
	MAP_TYPE(value, struct vip);
} vips SEC(".maps");

struct socket_array {
	MAP_UINT(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	MAP_UINT(max_entries, 1); /* each has as many as its generation has workers */
	MAP_UINT(key_size, sizeof(__u32));
	MAP_UINT(value_size, sizeof(__u64));
};

/* At array_index(); an array and no hash, for its look-up is a load or two. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	MAP_UINT(max_entries, GENERATIONS); /* at load: (VIPs + 1) * GENERATIONS */
	MAP_TYPE(key, __u32);
	MAP_UINT(value_size, sizeof(__u32));
	MAP_ARRAY(values, struct socket_array);
} arrays SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, GENERATIONS);
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct weights);
} weights SEC(".maps");

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
	MAP_UINT(max_entries, GENERATIONS * WORKERS);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct worker_counters);
} worker_counters SEC(".maps");
