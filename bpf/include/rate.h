/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Token buckets in one word each, by the generic cell rate algorithm: the word is the time at
 * which the bucket will be full again, and taking a token moves it on by the time that one
 * token takes to come back. A bucket holds one second's worth of tokens.
 */
#pragma once

#include "common.h"

#define RATE_BURST_NS 1000000000ULL

/*
 * Takes a token from `bucket`, whose tokens come back every `interval` ns; `now` is in ns. False
 * where the bucket is empty. Under contention the token is given after a few tries, as a rate that is
 * exceeded by a handful harms less than a lawful start that is refused.
 */
static __always_inline bool rate_take(__u64 *bucket, __u64 interval, __u64 now)
{
	for (int i = 0; i < 4; i++) {
		__u64 full = READ_ONCE(*bucket);
		__u64 from = full > now ? full : now;

		if (from + interval > now + RATE_BURST_NS && from != now)
			return false;
		if (__sync_val_compare_and_swap(bucket, full, from + interval) == full)
			return true;
	}
	return true;
}
