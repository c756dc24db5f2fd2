/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What every datapath includes first: kernel types, libbpf's helpers, and the
 * few constants that vmlinux.h cannot carry because the kernel has them as macros.
 */
#pragma once

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* include/uapi/linux/if_ether.h; host order. */
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021AD 0x88a8

/* include/uapi/linux/in6.h. */
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_ICMPV6 58
#define IPPROTO_DSTOPTS 60

/* Optimising away a re-read of memory that another CPU writes would undo the protocol it belongs to. */
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))

/*
 * A zero whose value the verifier does not know.
 *
 * The verifier walks what follows a branch once for every distinct set of values that it knows there. Where a
 * parser has told a dozen kinds of packet apart, and a lookup with a loop follows, that is a
 * dozen lookups to verify, and minutes to load. `x + unknown_zero()` is x for the processor, and just
 * some number for the verifier, so all the kinds walk on as one.
 */
static volatile __u64 unknown_zero_storage;

static __always_inline __u64 unknown_zero(void)
{
	return unknown_zero_storage;
}
