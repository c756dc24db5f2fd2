/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend a client belongs to: the session table.
 *
 * A session is *embryonic* from a client's first packet, and *established* once the client has proved that it
 * hears its backend. Embryonic sessions are recycled, least recently seen first, when room is short;
 * established ones never are, they end by idle time-out or by hand. So a flood of spoofed starts
 * can cost other unproven starts their entry and nothing else.
 *
 * The table is an array of buckets of SESSION_WAYS slots of one cache line each, where the kernel's hash
 * maps would cost a function call and two dependent cache misses more per packet. A client's hash
 * names its bucket and the slot where the search begins. With four slots to a session that may be
 * established, a bucket that overflows is a matter of one session in millions, and a hit takes 1.2 probes.
 *
 * Slots change by these rules, so that readers need no lock:
 *
 *   - `meta` is read and replaced as one word. It says what the slot is and where its client goes.
 *   - A slot gets a new client in the order: meta = BUSY, client, meta = EMBRYONIC. A reader
 *     takes meta, compares the client, and takes meta once more: equal words mean that no change came between.
 *   - Of a session in use, anyone may store the time and the ingress by themselves. Such a store may come late, and hit
 *     the next client's session, whose time it then is too, and whose ingress its next packet mends.
 *   - Only the holder of the bucket's lock makes a slot BUSY, and ends that, whatever meta has become. Two CPUs with a client's first packets
 *     agree that way: the second one finds what the first one has put there.
 *   - Anyone may move a slot from EMBRYONIC to ESTABLISHED, or from either to FREE, by compare-and-swap on meta;
 *     user space does the latter, and so needs no lock that would stay locked when it is killed.
 *   - A slot that has been in use never becomes EMPTY again, so a search may end at an EMPTY one.
 *
 * On a machine that reorders loads, aarch64, a packet that meets a slot in the very moment in which it
 * changes hands may go where the former client's did. It is one packet of an unproven client.
 */
#pragma once

#include "address.h"
#include "common.h"

#define SESSION_WAYS 16
#define SESSION_LOCKS 1024
#define SESSION_CLAIM_TRIES 4

/* Packed, as it is one byte of struct session_meta. */
enum session_state {
	SESSION_EMPTY, /* never used */
	SESSION_FREE,
	SESSION_BUSY,
	SESSION_EMBRYONIC,
	SESSION_ESTABLISHED,
} __attribute__((packed));

struct session_meta {
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC, written at most once a second */
	__u16 backend;   /* index of the client's backend */
	__u8 ingress;    /* index of the interface that the client was last seen on */
	enum session_state state;
} __attribute__((aligned(8)));

struct session {
	struct address client;
	struct session_meta meta;
	__u64 packets;        /* from client to backend */
	__u64 bytes;          /* of those packets' whole frames */
	__be64 initiator_spi; /* of the newest IKE SA that the client or its backend has begun */
	__be64 responder_spi; /* what the backend answered to that SPI, or 0 */
	__u32 created;        /* seconds of CLOCK_MONOTONIC */
};

struct session_bucket {
	struct session slots[SESSION_WAYS];
};

/* One entry, shared by all CPUs: written when sessions come and go, never for the packets between. */
struct session_totals {
	__u64 established;
	__u64 sweep; /* where the next look for expired sessions goes */
};

struct session_config {
	__u64 seed;                /* of the hash that spreads clients over the buckets */
	__u32 buckets;             /* entries of the map `sessions` */
	__u32 established_max;     /* beyond this no start gets a session */
	__u32 embryonic_timeout;   /* idle seconds */
	__u32 established_timeout; /* idle seconds */
};

const volatile struct session_config session_config = {
	.buckets = 1,
	.established_max = 1,
	.embryonic_timeout = 30,
	.established_timeout = 86400,
};

/* User space maps `sessions` and `session_totals` to list and remove sessions; it sets the size of `sessions`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct session_bucket);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct session_totals);
} session_totals SEC(".maps");

/* What the kernel needs to find the lock in a map's value. */
struct session_lock {
	struct bpf_spin_lock lock;
};

/* One lock for the buckets of equal index modulo SESSION_LOCKS; a map, as both programs of an upgrade need the same. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SESSION_LOCKS);
	__type(key, __u32);
	__type(value, struct session_lock);
} session_locks SEC(".maps");

union session_word {
	__u64 word;
	struct session_meta meta;
};

static __always_inline struct session_meta session_read(struct session *session)
{
	return (union session_word){.word = READ_ONCE(*(__u64 *)&session->meta)}.meta;
}

/* Replaces meta by compare-and-swap. False where it was no longer `old`. */
static __always_inline bool session_swap(struct session *session, struct session_meta old, struct session_meta new)
{
	__u64 expected = (union session_word){.meta = old}.word;
	__u64 wanted = (union session_word){.meta = new}.word;

	return __sync_val_compare_and_swap((__u64 *)&session->meta, expected, wanted) == expected;
}

/*
 * Ends a slot's time as BUSY. Whatever meta has become meanwhile is overwritten: a reader of the slot's former client may
 * have stored a time or an interface after its session had gone.
 */
static __always_inline void session_publish(struct session *session, struct session_meta meta)
{
	__sync_lock_test_and_set((__u64 *)&session->meta, (union session_word){.meta = meta}.word);
}

static __always_inline bool session_in_use(struct session_meta meta)
{
	return meta.state == SESSION_EMBRYONIC || meta.state == SESSION_ESTABLISHED;
}

/* Signed: another CPU's clock may have shown the next second already. */
static __always_inline bool session_expired(struct session_meta meta, __u32 now)
{
	__u32 timeout = meta.state == SESSION_ESTABLISHED ? session_config.established_timeout
							  : session_config.embryonic_timeout;

	return (__s32)(now - meta.last_seen) > (__s32)timeout;
}

/* Whether two readings of one slot say the same but for the time. */
static __always_inline bool session_same(struct session_meta a, struct session_meta b)
{
	return a.backend == b.backend && a.state == b.state;
}

static __always_inline struct session_bucket *session_bucket(__u64 hash, __u32 *index)
{
	*index = hash_to_range(hash, session_config.buckets);
	return bpf_map_lookup_elem(&sessions, index);
}

/* The `probe`-th slot of the search for a hash. Its low bits choose the first one, its high bits chose the bucket. */
static __always_inline struct session *session_slot(struct session_bucket *bucket, __u64 hash, __u32 probe)
{
	return &bucket->slots[(hash + probe) & (SESSION_WAYS - 1)];
}

/* The session of `client` and its meta, or NULL where there is none that has not expired. */
static __always_inline struct session *session_find(const struct address *client, __u32 now, struct session_meta *meta)
{
	__u64 hash = address_hash(client, session_config.seed);
	struct session_bucket *bucket;
	__u32 index;

	bucket = session_bucket(hash, &index);
	if (!bucket)
		return NULL;
	for (__u32 i = 0; i < SESSION_WAYS; i++) {
		struct session *session = session_slot(bucket, hash, i);

		*meta = session_read(session);
		if (address_equal(&session->client, client)) {
			if (session_in_use(*meta) && !session_expired(*meta, now) &&
			    session_same(*meta, session_read(session)))
				return session;
		}
		if (meta->state == SESSION_EMPTY)
			break;
	}
	return NULL;
}

/* Notes that either direction was used. */
static __always_inline void session_refresh(struct session *session, struct session_meta meta, __u32 now)
{
	if (meta.last_seen != now)
		WRITE_ONCE(session->meta.last_seen, now);
}

static __always_inline void session_count(struct session *session, __u64 bytes)
{
	__sync_fetch_and_add(&session->packets, 1);
	__sync_fetch_and_add(&session->bytes, bytes);
}

static __always_inline struct session_totals *session_totals_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&session_totals, &zero);
}

/* Makes an embryonic session established. The compare-and-swap counts it once, whoever else tries. */
static __always_inline void session_establish(struct session *session)
{
	struct session_totals *totals = session_totals_get();

	for (int i = 0; i < SESSION_CLAIM_TRIES; i++) {
		struct session_meta old = session_read(session), new = old;

		if (old.state != SESSION_EMBRYONIC)
			return;
		new.state = SESSION_ESTABLISHED;
		if (session_swap(session, old, new)) {
			if (totals)
				__sync_fetch_and_add(&totals->established, 1);
			return;
		}
	}
}

/*
 * Frees the expired sessions of the next bucket in turn. Called when the table counts as full, so
 * that sessions which nobody asks for any more cannot keep it so.
 */
static __always_inline void session_sweep(struct session_totals *totals, __u32 now)
{
	__u32 index = __sync_fetch_and_add(&totals->sweep, 1) % session_config.buckets;
	struct session_bucket *bucket = bpf_map_lookup_elem(&sessions, &index);

	if (!bucket)
		return;
	for (int i = 0; i < SESSION_WAYS; i++) {
		struct session *session = &bucket->slots[i];
		struct session_meta old = session_read(session), freed = old;

		freed.state = SESSION_FREE;
		if (session_in_use(old) && session_expired(old, now) && session_swap(session, old, freed) &&
		    old.state == SESSION_ESTABLISHED)
			__sync_fetch_and_add(&totals->established, -1);
	}
}

/* Signed: a session may be ended by hand between its change of state and its being counted. */
static __always_inline __s64 session_established(const struct session_totals *totals)
{
	return READ_ONCE(totals->established);
}

/* Whether no further start is to get a session. Not inlined for the verifier's sake, as session_insert(). */
__noinline bool session_table_full(__u32 now)
{
	struct session_totals *totals = session_totals_get();

	if (!totals || session_established(totals) < session_config.established_max)
		return false;
	session_sweep(totals, now);
	return session_established(totals) >= session_config.established_max;
}

/*
 * How willingly a slot is given to a new client: 0 not at all, more is better. Unused and expired
 * ones come first, in the order of the search, then embryonic ones by the time that nobody has used them.
 */
static __always_inline __u64 session_worth(struct session_meta meta, __u32 now)
{
	if (meta.state == SESSION_BUSY)
		return 0;
	if (!session_in_use(meta) || session_expired(meta, now))
		return 1ULL << 33;
	if (meta.state == SESSION_EMBRYONIC)
		return (1ULL << 31) + (__s32)(now - meta.last_seen);
	return 0;
}

#define SESSION_NO_SLOT SESSION_WAYS

/* Looks for `client` in a locked bucket: its slot, or else in *victim the one to take for it. SESSION_NO_SLOT is none. */
static __always_inline __u32 session_choose(struct session_bucket *bucket, __u64 hash, const struct address *client,
					    __u32 now, __u32 *victim)
{
	__u64 best = 0;

	*victim = SESSION_NO_SLOT;
	for (__u32 i = 0; i < SESSION_WAYS; i++) {
		__u32 slot = (hash + i) & (SESSION_WAYS - 1);
		struct session *session = &bucket->slots[slot];
		struct session_meta meta = session_read(session);
		__u64 worth = session_worth(meta, now);

		if (session_in_use(meta) && !session_expired(meta, now) && address_equal(&session->client, client))
			return slot;
		if (worth > best) {
			best = worth;
			*victim = slot;
		}
		if (meta.state == SESSION_EMPTY)
			break;
	}
	return SESSION_NO_SLOT;
}

/*
 * session_insert() with the bucket's lock held, under which nothing may be called; returns the slot in the bucket,
 * or SESSION_NO_SLOT.
 */
static __always_inline __u32 session_insert_locked(struct session_bucket *bucket, struct session_totals *totals,
						   __u64 hash, const struct address *client, struct session_meta fresh,
						   __be64 initiator_spi)
{
	__u32 now = fresh.last_seen;

	for (int i = 0; i < SESSION_CLAIM_TRIES; i++) {
		struct session_meta old, busy = {.state = SESSION_BUSY};
		struct session *session;
		__u32 slot, victim;

		slot = session_choose(bucket, hash, client, now, &victim);
		if (slot < SESSION_WAYS)
			return slot;
		if (victim >= SESSION_WAYS)
			return SESSION_NO_SLOT;
		session = &bucket->slots[victim];
		old = session_read(session);
		if (!session_worth(old, now) || !session_swap(session, old, busy))
			continue;

		if (old.state == SESSION_ESTABLISHED)
			__sync_fetch_and_add(&totals->established, -1);
		session->client = *client;
		session->packets = 0;
		session->bytes = 0;
		session->initiator_spi = initiator_spi;
		session->responder_spi = 0;
		session->created = now;
		session_publish(session, fresh);
		return victim;
	}
	return SESSION_NO_SLOT;
}

/* Where a session is in the table, for functions that cannot return a pointer into it. */
#define SESSION_NOWHERE (-1LL)

static __always_inline struct session *session_at(__s64 place)
{
	__u32 index = (__u64)place / SESSION_WAYS;
	struct session_bucket *bucket = bpf_map_lookup_elem(&sessions, &index);

	return bucket ? &bucket->slots[place & (SESSION_WAYS - 1)] : NULL;
}

/*
 * Gives `client` an embryonic session at `backend`, last seen on `ingress` in the second `now`. Returns the
 * place of the client's session, which is another CPU's where that one was first, or SESSION_NOWHERE
 * where all slots that the client may have belong to established sessions.
 *
 * Not inlined, and with external linkage, so that the verifier walks it once.
 */
__noinline __s64 session_insert(const struct address *client, __u32 backend, __u32 ingress, __u32 now,
				__be64 initiator_spi)
{
	struct session_meta fresh = {
		.last_seen = now,
		.backend = backend,
		.ingress = ingress,
		.state = SESSION_EMBRYONIC,
	};
	struct session_totals *totals = session_totals_get();
	struct session_bucket *bucket;
	struct session_lock *lock;
	__u32 index, lock_index, slot;
	__u64 hash;

	if (!client)
		return SESSION_NOWHERE;
	hash = address_hash(client, session_config.seed);
	bucket = session_bucket(hash, &index);
	lock_index = index % SESSION_LOCKS;
	lock = bpf_map_lookup_elem(&session_locks, &lock_index);
	if (!bucket || !totals || !lock)
		return SESSION_NOWHERE;
	/*
	 * The kernel's lock, and not a word of our own: whoever holds it is not interrupted. To give up waiting would be
	 * to send the client elsewhere than the CPU does that was first.
	 */
	bpf_spin_lock(&lock->lock);
	slot = session_insert_locked(bucket, totals, hash, client, fresh, initiator_spi);
	bpf_spin_unlock(&lock->lock);
	return slot < SESSION_WAYS ? (__s64)index * SESSION_WAYS + slot : SESSION_NOWHERE;
}
