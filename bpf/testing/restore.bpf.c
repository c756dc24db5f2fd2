// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Gives a benchmark the same frame at each run, though the program under test changes it: writes the frame's first bytes, then
 * goes on to that program, or sends the frame. BPF_PROG_TEST_RUN resets nothing when it repeats, and live frames come back as
 * they were left; and a reply is no request. What this program itself costs is measured with an empty one behind it.
 */
#include "common.h"

/* As many bytes as a reply may change: the headers of Ethernet, IPv6 and ICMPv6 have 62. */
#define RESTORE_WORDS 8

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* Set by user space between runs. */
__u64 restore_words[RESTORE_WORDS];

static __always_inline bool write_words(struct xdp_md *ctx)
{
	__u64 *words = (void *)(long)ctx->data;

	if ((void *)(words + RESTORE_WORDS) > (void *)(long)ctx->data_end)
		return false;
#pragma unroll
	for (int i = 0; i < RESTORE_WORDS; i++)
		words[i] = restore_words[i];
	return true;
}

/* Of one kind with the responder: a PROG_ARRAY takes programs that all know of frames in several buffers, or none. */
SEC("xdp.frags")
int restore(struct xdp_md *ctx)
{
	if (!write_words(ctx))
		return XDP_ABORTED;
	bpf_tail_call(ctx, &next, 0);
	return XDP_ABORTED;
}

SEC("xdp.frags")
int restore_and_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

SEC("xdp.frags")
int restore_and_send(struct xdp_md *ctx)
{
	return write_words(ctx) ? bpf_redirect_map(&ports, 0, XDP_DROP) : XDP_ABORTED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
