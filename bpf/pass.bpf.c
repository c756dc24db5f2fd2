// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The program that lets every frame pass to the stack, and counts it. It is for the far end of a veth: what a program
 * sends back by XDP_TX is lost there unless the far end has a program of its own (drivers/net/veth.c, veth_xdp_xmit).
 */
#include "common.h"
#include "counters.h"

/* Where a frame's way ended; the index of its counter in `verdicts`. */
enum pass_verdict {
	PASS_PASSED,
	PASS_VERDICTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PASS_VERDICTS);
	__type(key, __u32);
	__type(value, struct counter);
} verdicts SEC(".maps");

enum pass_limits {
	/* Raised with every change to a map that is pinned: an upgrade in place needs the same number. */
	PASS_LAYOUT = 1,
};

/* Types that no map names, here so that the generated skeleton has them. */
struct pass_types {
	enum pass_verdict verdict;
	enum pass_limits limits;
};

const volatile struct pass_types pass_types;

SEC("xdp.frags")
int lb_pass(struct xdp_md *ctx)
{
	counter_add(&verdicts, PASS_PASSED, bpf_xdp_get_buff_len(ctx));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
