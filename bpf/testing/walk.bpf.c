// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Gives a benchmark many clients: writes another address into the packet at each run, and another SPI where asked to, then
 * goes on to the program under test. BPF_PROG_TEST_RUN can so repeat without leaving the kernel, and no run finds the caches
 * warmed by the one before. What this program itself costs is measured with an empty one behind it.
 */
#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

/* Set by user space between runs. */
__u32 walk_offset;  /* where in the frame the four bytes of the address are */
__u32 walk_also;    /* where else the same four bytes go, as into an SPI; 0: nowhere */
__u32 walk_base;    /* the first client's four bytes, host order */
__u32 walk_clients; /* how many clients there are */
__u32 walk_random;  /* 0: one after the other; 1: in random order */
__u64 walk_steps;   /* counts the runs */

SEC("xdp")
int walk(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 step = walk_steps++;
	__u32 at = walk_offset & 0xff, also = walk_also & 0xff;
	__be32 *address = data + at, *second = data + also;

	if (walk_random) {
		step = (step + 1) * 0x9e3779b97f4a7c15ULL;
		step ^= step >> 29;
		step = ((step & 0xffffffff) * walk_clients) >> 32;
	} else if (walk_clients) {
		step %= walk_clients;
	}
	if ((void *)(address + 1) > end)
		return XDP_ABORTED;
	*address = bpf_htonl(walk_base + (__u32)step);
	if (also) {
		if ((void *)(second + 1) > end)
			return XDP_ABORTED;
		*second = *address;
	}
	bpf_tail_call(ctx, &next, 0);
	return XDP_ABORTED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
