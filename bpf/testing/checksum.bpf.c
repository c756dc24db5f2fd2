// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Every function of checksum.h on numbers of a test: the packet is the question, and comes back with the answers.
 */
#include "checksum.h"

struct checksum_case {
	__u32 sum;
	__sum16 check;
	__be16 old;
	__be16 new;
	/* Answers. */
	__u16 folded;
	__sum16 finished;
	__sum16 replaced;
	__sum16 replaced_udp;
} __attribute__((packed));

SEC("xdp")
int checksum(struct xdp_md *ctx)
{
	struct checksum_case *given = (void *)(long)ctx->data;

	if ((void *)(given + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	given->folded = checksum_fold(given->sum);
	given->finished = checksum_finish(given->sum);
	given->replaced = checksum_replace(given->check, given->old, given->new);
	given->replaced_udp = checksum_replace_udp(given->check, given->old, given->new);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
