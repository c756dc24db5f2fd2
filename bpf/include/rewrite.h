/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What datapaths change in a frame. */
#pragma once

#include "common.h"

/* Sets the destination MAC of the Ethernet header at `eth` to the six bytes at `mac`. */
static __always_inline void set_destination_mac(struct ethhdr *eth, const __u8 *mac)
{
	__builtin_memcpy(eth->h_dest, mac, sizeof(eth->h_dest));
}

/* Sends a frame back to where it came from: its two MACs change places. */
static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[sizeof(eth->h_dest)];

	__builtin_memcpy(mac, eth->h_dest, sizeof(mac));
	__builtin_memcpy(eth->h_dest, eth->h_source, sizeof(mac));
	__builtin_memcpy(eth->h_source, mac, sizeof(mac));
}
