// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What no datapath can be faster than: the programs that benchmarks measure the others against.
 */
#include "common.h"
#include "counters.h"

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* What floor_count has counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} arrived SEC(".maps");

/* The floor of all programs. */
SEC("xdp")
int floor_empty(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/* The floor of all programs that send a frame to another interface. */
SEC("xdp")
int floor_redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, 0, XDP_DROP);
}

/* The floor of all programs that send a frame back out of the interface that it came in on. */
SEC("xdp")
int floor_tx(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* A receiver that takes a frame, counts it, and gives its memory back at once. */
SEC("xdp")
int floor_count(struct xdp_md *ctx)
{
	counter_add(&arrived, 0, (void *)(long)ctx->data_end - (void *)(long)ctx->data);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
