/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the load balancer's two sides, lb.bpf.c and user space, say to each other: the keys and
 * values of its maps, its configuration, and the list of verdicts. User space has these
 * types from the generated skeleton.
 */
#pragma once

#include "address.h"
#include "common.h"

/* Sizes that both sides go by. An enum, as user space cannot see macros. */
enum lb_limits {
	/* Raised with every change to a struct or map that is pinned: an upgrade in place needs the same number. */
	LB_LAYOUT = 2,
	LB_BACKENDS_MAX = 512,
	LB_INGRESS_MAX = 64,
	/* Over twice the interfaces there can be, so that a search is short. */
	LB_INTERFACES = 2048,
	LB_INTERFACE_PROBES = 16,
	/* The search for an ifindex begins at the upper bits of its product with this (Knuth's multiplicative hash). */
	LB_INTERFACE_FACTOR = 0x9e3779b1,
	LB_INTERFACE_SHIFT = 21, /* leaves 11 bits of 32, as many as LB_INTERFACES asks for */
	LB_VIPS_MAX = 16,
	/* A prime, as Maglev wants it, more than a hundred times the backends (Eisenbud et al., NSDI 2016, section 3.4). */
	LB_HASH_SLOTS = 65537,
	/* LB_BACKENDS_MAX backends of the greatest weight, LB_WEIGHT_MAX. */
	LB_RING_MAX = 131072,
	LB_WEIGHT_MAX = 256,
	/* As many bits of an SPI as may name a backend, and the labels that they make. */
	LB_LABEL_BITS_MAX = 12,
	LB_LABELS = 4096,
	LB_NO_LABEL = 0xffffffff,
	/* What a session has for its interface that was begun by a backend: the client was not seen on any yet. */
	LB_INGRESS_UNKNOWN = 255,
	LB_FRAGMENTS_MAX = 16384,
	LB_SOURCES = 65536,
	LB_NAME_BYTES = 32,
	LB_PATH_BYTES = 128,
};

/* Where a packet's way through the balancer ended; the index of its counter in `verdicts`. */
enum lb_verdict {
	LB_SESSION,           /* forwarded to the backend of the client's session */
	LB_NEW,               /* forwarded, and the client has a session from now on */
	LB_STATELESS,         /* forwarded to the backend that the client's address hashes to */
	LB_NEIGHBOUR,         /* ARP, ND or MLD, forwarded */
	LB_RETURNED,          /* from a backend, forwarded to the client side */
	LB_MALFORMED,         /* dropped: a header does not fit or contradicts itself */
	LB_KEEPALIVE_DROPPED, /* dropped: a NAT keepalive of no session */
	LB_OTHER_DROPPED,     /* dropped: nothing that a balancer for IPsec carries */
	LB_OTHER_PASSED,      /* the same, given to this machine's network stack */
	LB_NO_BACKEND,        /* dropped: nowhere to go */
	LB_VERDICTS,
};

/* Why a start was placed by hash, the index of its counter in `unplaced`. */
enum lb_unplaced {
	LB_UNPLACED_SOURCE_RATE, /* too many new sessions a second from one source */
	LB_UNPLACED_TOTAL_RATE,  /* too many new sessions a second from all */
	LB_UNPLACED_TABLE_FULL,
	LB_UNPLACED,
};

/* What became visible of SPI labels, the index of its counter in `label_counters`. */
enum lb_label_count {
	LB_LABEL_DISAGREES, /* a backend chose an SPI whose label is not its own */
	LB_LABEL_UNKNOWN,   /* a client's packet whose label is no backend's */
	LB_LABEL_COUNTS,
};

/* Which rule decided where a packet goes, for `lb explain`. */
enum lb_reason {
	LB_BECAUSE_VERDICT,  /* its verdict says it all: malformed, neighbour, other */
	LB_BECAUSE_ADDRESS,  /* the session of the client's address */
	LB_BECAUSE_SA,       /* the IKE SA of its initiator SPI */
	LB_BECAUSE_ENDPOINT, /* the endpoint (address and UDP port) that it is from */
	LB_BECAUSE_ESP,      /* the address and SPI of its ESP or AH header */
	LB_BECAUSE_LABEL,    /* the label in the SPI that its backend chose */
	LB_BECAUSE_FRAGMENT, /* the first fragment of the same packet */
	LB_BECAUSE_POLICY,   /* a start: the policy chose a backend */
	LB_BECAUSE_HASH,     /* no session: the hash of the client's address */
	LB_BECAUSE_RATE,     /* a start over the rate: the hash */
	LB_BECAUSE_FULL,     /* a start, and the session table is full: the hash */
	LB_BECAUSE_DOWN,     /* the backend of its session is down: the hash */
	LB_REASONS,
};

enum lb_policy {
	LB_ROUND_ROBIN,
	LB_MAGLEV,
	LB_LEAST_SESSIONS,
};

/* What one client is. */
enum lb_affinity {
	LB_BY_ADDRESS, /* an IP address */
	LB_BY_TUNNEL,  /* an IKE SA; many may be behind one address */
};

/* What becomes of the packets of sessions at a backend that is down. */
enum lb_on_down {
	LB_REHASH, /* they go to another, and so does the client's next start */
	LB_HOLD,   /* they are dropped until it is back */
};

enum lb_other {
	LB_OTHER_DROP,
	LB_OTHER_PASS,
};

enum lb_return_path {
	LB_RETURN_HERE,   /* what backends answer passes here: it shows which SPIs they chose */
	LB_RETURN_DIRECT, /* it does not */
};

/* What is wanted of a backend. One whose MAC is not known gets nothing in any state. */
enum lb_backend_state {
	LB_ABSENT,   /* no such backend */
	LB_ACTIVE,   /* it takes everything */
	LB_DRAINING, /* it keeps what it has, and what has no session may be its own; no starts */
	LB_DOWN,     /* it takes nothing */
} __attribute__((packed));

enum lb_role {
	LB_INGRESS,
	LB_EGRESS,
} __attribute__((packed));

/* Written and read as one word, so that nobody sees half a MAC or a state without its MAC. */
struct lb_station {
	__u8 mac[6]; /* zero: not known yet */
	enum lb_backend_state state;
	__u8 learned; /* whether the MAC is from the backend's own frames */
} __attribute__((aligned(8)));

struct lb_backend {
	struct lb_station station;
	__u32 port;      /* key in egress_ports */
	__u32 weight;    /* 0 to 256 */
	__u32 last_seen; /* when it last sent anything, seconds of CLOCK_MONOTONIC; 0: never */
	__u32 asked;     /* when it was first sent something to answer since then; 0: nothing */
	__u32 label;     /* what its SPIs begin with; LB_NO_LABEL: nothing in particular */
	__u8 name[LB_NAME_BYTES];
};

/*
 * An interface that a program is attached to. The map is a hash table with open addressing by
 * ifindex; ifindex 0 marks a free entry.
 */
struct lb_interface {
	__u32 ifindex;
	__u16 index;   /* key in ingress_ports or egress_ports, by role */
	__u16 backend; /* the only backend behind it; LB_BACKENDS_MAX: there are several, told apart by MAC, or none */
	enum lb_role role;
	__u8 mode; /* XDP_ATTACHED_DRV or XDP_ATTACHED_SKB, include/uapi/linux/if_link.h */
	__u8 name[16];
};

struct lb_fragment_key {
	struct address source;
	struct address destination;
	__be32 id;
	__u32 protocol;
};

struct lb_fragment {
	__u32 backend;
	__u32 seen; /* seconds of CLOCK_MONOTONIC */
};

/*
 * Which half of `ring` and of `hash_slots` counts: user space writes the other half, and changes this word then. Written and
 * read as one.
 */
struct lb_schedule {
	__u32 half;       /* 0 or 1 */
	__u32 ring_slots; /* slots of the ring's half in use */
} __attribute__((aligned(8)));

/* What user space sets, and all CPUs share. */
struct lb_runtime {
	struct lb_schedule schedule;
	__u32 backends; /* entries of `backends` up to the last that is in use */
	__u64 ring_next __attribute__((aligned(64)));
	__u64 starts __attribute__((aligned(64))); /* token bucket of all starts */
};

struct lb_config {
	enum lb_policy policy;
	enum lb_affinity affinity;
	enum lb_on_down on_down;
	enum lb_other other;
	enum lb_return_path return_path;
	__u32 label_bits; /* 0: SPIs have no labels */
	__u32 down_after; /* seconds without an answer after which a backend counts as down; 0: never */
	__u32 explain;    /* whether each packet's reason is written to `explained` */
	__u32 ingress_count;
	__u32 start_rate;      /* new sessions a second, which the intervals below were made from */
	__u32 vip_count;       /* 0: every destination is a VIP */
	__u64 start_interval;  /* ns between two new sessions, over all sources */
	__u64 source_interval; /* ns between two new sessions of one source */
	struct address vips[LB_VIPS_MAX];
	__u8 netns[LB_PATH_BYTES]; /* the network namespace of the interfaces as it was given, or empty */
};

/* What the last packet met, written where lb_config.explain is set. */
struct lb_explained {
	enum lb_reason reason;
	enum lb_verdict verdict;
	__u32 backend; /* index; LB_BACKENDS_MAX: none */
	__u32 port;    /* of the other side, as in enum lb_verdict's LB_NEIGHBOUR and LB_RETURNED */
	__u32 to_all;  /* whether it goes to all interfaces of the other side */
};
