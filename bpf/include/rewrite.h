/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What datapaths change in a frame. */
#pragma once

#include "common.h"

/* Sets the destination MAC of the Ethernet header at `eth` to the six bytes at `mac`. */
static __always_inline void set_destination_mac(struct ethhdr *eth, const __u8 *mac)
{
	__builtin_memcpy(eth->h_dest, mac, sizeof(eth->h_dest));
}

/* Sends a frame, which begins at `eth`, back to where it came from: its two MACs change places. */
static __always_inline void swap_macs(void *eth)
{
	__u32 *to = eth, *from = eth + 6, first = *to;
	__u16 *to_end = eth + 4, *from_end = eth + 10, second = *to_end;

	*to = *from;
	*to_end = *from_end;
	*from = first;
	*from_end = second;
}
