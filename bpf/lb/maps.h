/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the load balancer keeps: its configuration and its maps, all but the session table (session.h). */
#pragma once

#include "clock.h"
#include "common.h"
#include "counters.h"
#include "ipsec.h"
#include "lb.h"
#include "rate.h"
#include "rewrite.h"
#include "session.h"

/*
 * Configuration. The defaults make a working balancer, so that a static check of the object walks
 * the paths that real ones walk.
 */
const volatile struct lb_config lb_config = {
	.ingress_count = 2,
	.vip_count = 1,
	.start_interval = 50000,
	.source_interval = 1000000,
};

/*
 * Types that no map names, here so that the generated skeleton has them. Aligned, so that the read-only data
 * ends where Rust's idea of it does.
 */
struct lb_types {
	enum lb_verdict verdict;
	enum lb_unplaced unplaced;
	enum lb_limits limits;
	enum lb_label_count label_count;
	enum message_port message_port;
} __attribute__((aligned(8)));

const volatile struct lb_types lb_types;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, struct lb_backend);
} backends SEC(".maps");

/* Which backend owns a MAC; the key holds its six bytes in wire order, then two zero bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * LB_BACKENDS_MAX);
	__type(key, __u64);
	__type(value, __u32);
} backend_macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_runtime);
} runtime SEC(".maps");

/* Backends in the order of their turns, each as often as its weight asks for. Two halves, see struct lb_schedule. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * LB_RING_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ring SEC(".maps");

/* Maglev's lookup table: the backend for each value of the consistent hash. Two halves, see struct lb_schedule. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * LB_HASH_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} hash_slots SEC(".maps");

/* For each SPI label the index of its backend plus 1; 0 is none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_LABELS);
	__type(key, __u32);
	__type(value, __u32);
} labels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_INTERFACES);
	__type(key, __u32);
	__type(value, struct lb_interface);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, LB_INGRESS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ingress_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} egress_ports SEC(".maps");

/* Where the first fragment of a packet went. Old ones make room by themselves. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LB_FRAGMENTS_MAX);
	__type(key, struct lb_fragment_key);
	__type(value, struct lb_fragment);
} fragments SEC(".maps");

/*
 * Token buckets of sources, by a hash of the source. Two sources may share one, which costs them nothing until
 * one of them floods; an attacker cannot know whom they share with.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_SOURCES);
	__type(key, __u32);
	__type(value, __u64);
} source_rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_VERDICTS);
	__type(key, __u32);
	__type(value, struct counter);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_UNPLACED);
	__type(key, __u32);
	__type(value, struct counter);
} unplaced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_LABEL_COUNTS);
	__type(key, __u32);
	__type(value, struct counter);
} label_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, struct counter);
} backend_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_explained);
} explained SEC(".maps");

static __always_inline struct lb_runtime *runtime_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&runtime, &zero);
}

/* The entry of the interface `ifindex`, or NULL. */
static __always_inline struct lb_interface *interface_find(__u32 ifindex)
{
	__u32 first = (ifindex * LB_INTERFACE_FACTOR) >> LB_INTERFACE_SHIFT;

	for (__u32 i = 0; i < LB_INTERFACE_PROBES; i++) {
		__u32 slot = (first + i) % LB_INTERFACES;
		struct lb_interface *interface = bpf_map_lookup_elem(&interfaces, &slot);

		if (!interface || !interface->ifindex)
			return NULL;
		if (interface->ifindex == ifindex)
			return interface;
	}
	return NULL;
}

/* interface_find() for where it is one step of many: the index of an interface, or 0. */
__noinline __u32 interface_index(__u32 ifindex)
{
	struct lb_interface *interface = interface_find(ifindex);

	return interface ? interface->index : 0;
}

/* The index of the client-side interface that a frame came in on. */
static __always_inline __u32 ingress_index(const struct xdp_md *ctx)
{
	return lb_config.ingress_count == 1 ? 0 : interface_index(ctx->ingress_ifindex);
}
