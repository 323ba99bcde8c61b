/* SPDX-License-Identifier: GPL-2.0-only */
/* The maps of a backend's programs; sizes marked "at load" are set by the control plane. */
#pragma once

#include "backend.h"

const volatile struct decap_config config = {};

/* Addresses of this host, by enum address_role. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_HASH);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, __u32);
} addresses SEC(".maps");

/* Where balancers send from. */
struct {
	MAP_UINT(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_UINT(max_entries, 64); /* at load */
	MAP_UINT(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, __u32);
} balancers SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct decap_counters);
} decap_counters SEC(".maps");

static ALWAYS_INLINE struct decap_counters *counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&decap_counters, &zero);
}
