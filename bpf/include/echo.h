/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the echo responder's two sides, echo.bpf.c and user space, say to each other: the values of its maps, its
 * configuration, and the list of verdicts. User space has these types from the generated skeleton.
 */
#pragma once

#include "address.h"
#include "common.h"

/* Sizes that both sides go by. An enum, as user space cannot see macros. */
enum echo_limits {
	/* Raised with every change to a struct or map that is pinned: an upgrade in place needs the same number. */
	ECHO_LAYOUT = 1,
	/* Addresses of an interface, broadcast addresses among them. User space finds a factor by which they all have a place. */
	ECHO_ADDRESSES_MAX = 256,
	ECHO_BUCKETS = 256,
	ECHO_BUCKET_SHIFT = 56, /* leaves 8 bits of 64, as many as ECHO_BUCKETS asks for */
	ECHO_WAYS = 4,
	/* The longest ICMP message, in bytes from its type on, whose checksum is checked: more than an MTU of 1500 holds. */
	ECHO_CHECKED_MAX = 1500,
	/* Sources whose rate is known at a time. */
	ECHO_SOURCES = 65536,
};

/* Where a frame's way through the responder ended; the index of its counter in `verdicts`. */
enum echo_verdict {
	ECHO_REPLY,         /* answered: sent back as a reply */
	ECHO_RATE_LIMITED,  /* dropped: its source asks more often than --rate */
	ECHO_NOT_ECHO,      /* to the stack: no echo request */
	ECHO_OTHER_MAC,     /* to the stack: a request for another MAC */
	ECHO_OTHER_ADDRESS, /* to the stack: a request for an address that is not ours, or is no host's */
	ECHO_BAD_SOURCE,    /* to the stack: a request from what is no other host's address */
	ECHO_FRAGMENT,      /* to the stack: a fragment of ICMP */
	ECHO_OPTIONS, /* to the stack: a request with IPv4 options, or with IPv6 extension headers that say something */
	ECHO_BAD_CHECKSUM, /* to the stack: a request with a wrong checksum */
	ECHO_MALFORMED,    /* to the stack: a header does not fit or contradicts itself */
	ECHO_VERDICTS,
};

/* What an address of the view is. */
enum echo_address_kind {
	ECHO_NO_ADDRESS,
	ECHO_OURS,
	ECHO_BROADCAST, /* of one of the interface's networks */
};

struct echo_slot {
	struct address address;
	__u32 kind; /* enum echo_address_kind; the first ECHO_NO_ADDRESS of a bucket ends it */
	__u32 padding;
};

struct echo_bucket {
	struct echo_slot slots[ECHO_WAYS];
};

/* What the responder knows of its interface. */
struct echo_view {
	__u8 mac[6];
	__u8 ttl;       /* of IPv4 replies */
	__u8 hop_limit; /* of IPv6 replies */
	__u64 factor;   /* an address's bucket is the upper bits of its product with this */
	struct echo_bucket buckets[ECHO_BUCKETS];
};

/* Two views, of which `current` names the one that counts: user space writes the other one, and then changes that word. */
struct echo_views {
	struct echo_view views[2];
	__u32 current;
	__u32 padding;
};

struct echo_config {
	__u32 any; /* not 0: answer for every host's address */
	__u32 padding;
	__u64 source_interval; /* ns from one request of a source to its next; 0: no limit */
};
