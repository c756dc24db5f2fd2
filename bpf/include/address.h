/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One type for addresses of both families, the hash that spreads them, and comparisons. */
#pragma once

#include "common.h"

/* An IPv6 address, or an IPv4 one in its IPv4-mapped form (RFC 4291, section 2.5.5.2); bytes in wire order. */
struct address {
	__u64 words[2];
};

static __always_inline struct address address_v4(__be32 ip)
{
	return (struct address){.words = {0, (__u64)ip << 32 | bpf_htonl(0x0000ffff)}};
}

static __always_inline struct address address_v6(const struct in6_addr *ip)
{
	const __be32 *w = ip->in6_u.u6_addr32;

	return (struct address){.words = {(__u64)w[1] << 32 | w[0], (__u64)w[3] << 32 | w[2]}};
}

static __always_inline bool address_is_v4(const struct address *address)
{
	return !address->words[0] && (__u32)address->words[1] == bpf_htonl(0x0000ffff);
}

static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	return a->words[0] == b->words[0] && a->words[1] == b->words[1];
}

/*
 * 64 well-mixed bits of an address. Balancers that must agree use the same `seed`; a table that a stranger must not be
 * able to fill on purpose uses a random one. The first half is mixed with the seed before the second one comes in, so that who
 * does not know the seed cannot choose two addresses whose differences cancel out. For IPv4 the first half is zero,
 * and its mixing waits for nothing. The constants are those of MurmurHash3's finalizer.
 */
static __always_inline __u64 address_hash(const struct address *address, __u64 seed)
{
	__u64 h = (address->words[0] ^ seed) * 0x9e3779b97f4a7c15ULL;

	h ^= h >> 32;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 32;
	h += address->words[1];
	h ^= h >> 32;
	h *= 0xc4ceb9fe1a85ec53ULL;
	h ^= h >> 32;
	return h;
}

/* Maps a hash evenly to 0 .. count - 1 with a multiplication, where a remainder would take a division. */
static __always_inline __u32 hash_to_range(__u64 hash, __u32 count)
{
	return ((hash >> 32) * count) >> 32;
}

static __always_inline bool mac_equal(const void *a, const void *b)
{
	return *(const __u32 *)a == *(const __u32 *)b && *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

/* Whether a MAC can be one host's: no group, and not zero (IEEE 802.3, section 3.2.3). */
static __always_inline bool mac_is_host(const void *mac)
{
	return !(*(const __u8 *)mac & 1) && (*(const __u32 *)mac | *(const __u16 *)(mac + 4));
}
