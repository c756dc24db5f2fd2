/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The Internet checksum (RFC 1071) and its update in place (RFC 1624, equation 3).
 *
 * Sums are of 16-bit words as they lie in the packet, so no function here swaps bytes: the
 * checksum of network-order words is the checksum in network order (RFC 1071, section 2 (B)).
 */
#pragma once

#include "common.h"

/* Folds a sum of 16-bit words to 16 bits. Two rounds carry everything that 32 bits can hold. */
static __always_inline __u16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The checksum field that belongs to a header whose other words sum up to `sum`. */
static __always_inline __sum16 checksum_finish(__u32 sum)
{
	return (__u16)~checksum_fold(sum);
}

/* `check` after one 16-bit word that it covers changed from `old` to `new`, both as in the packet. */
static __always_inline __sum16 checksum_replace(__sum16 check, __be16 old, __be16 new)
{
	return checksum_finish((__u16)~check + (__u16)~old + (__u32) new);
}

/*
 * The same for the checksum of UDP. 0 says on IPv4 that the sender computed none, and stays; a
 * computed 0 is sent as 0xffff (RFC 768).
 */
static __always_inline __sum16 checksum_replace_udp(__sum16 check, __be16 old, __be16 new)
{
	__sum16 updated;

	if (!check)
		return 0;
	updated = checksum_replace(check, old, new);
	return updated ? updated : 0xffff;
}
