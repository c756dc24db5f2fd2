/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packet and byte counters that no two CPUs share, so counting needs no atomic
 * and the sum over the CPUs is exact.
 */
#pragma once

#include "common.h"

struct counter {
	__u64 packets;
	__u64 bytes; /* of whole frames, from the Ethernet header on, without FCS */
};

/*
 * Adds one packet of `bytes` to entry `index` of `map`, a BPF_MAP_TYPE_PERCPU_ARRAY of struct counter.
 * An index beyond the map counts nothing: counting never decides about a packet.
 */
static __always_inline void counter_add(void *map, __u32 index, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(map, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}
