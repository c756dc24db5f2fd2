/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A clock of whole seconds for idle times, at the price of a load for most packets.
 *
 * Asking the kernel for the time is a call that the JIT does not inline, bpf_jiffies64() is an
 * instruction that it does. So the time is asked for once a tick, by whichever CPU sees the tick
 * first, and kept for the others.
 */
#pragma once

#include "common.h"

struct clock {
	__u64 jiffies; /* when `seconds` was read */
	__u32 seconds; /* CLOCK_MONOTONIC */
};

struct clock clock;

/*
 * Seconds of CLOCK_MONOTONIC, at most one tick old. CPUs may disagree by a second for a moment, so
 * differences of two readings are to be taken as signed.
 */
static __always_inline __u32 clock_seconds(void)
{
	__u64 jiffies = bpf_jiffies64();

	if (READ_ONCE(clock.jiffies) != jiffies) {
		WRITE_ONCE(clock.seconds, bpf_ktime_get_coarse_ns() / 1000000000);
		WRITE_ONCE(clock.jiffies, jiffies);
	}
	return READ_ONCE(clock.seconds);
}
