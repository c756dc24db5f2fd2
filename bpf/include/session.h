/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which backend a packet belongs to: the session table.
 *
 * An entry says for one key where its packets go. There are four kinds of keys:
 *
 *   SESSION_ADDRESS   a client's address
 *   SESSION_SA        the initiator SPI of an IKE SA, whatever address it comes from
 *   SESSION_ENDPOINT  an address and a UDP port
 *   SESSION_ESP       an address and the SPI of ESP or AH
 *
 * A *session* is an entry of the kind that stands for a client: the address, or the IKE SA where many clients
 * are behind one address (session_config.primary). The others say where more of its packets go.
 *
 * An entry is *embryonic* from a first packet that anyone may have sent, and *established* once the client has proved
 * that it hears its backend. In between there are *learned* ones: what an unproven packet says about
 * something established. Room is made of embryonic entries, least recently seen first, then of learned ones; an embryonic
 * entry takes the place of a learned one only if that has been idle for the time-out of embryonic ones. Established ones
 * end by idle time-out or by hand. So a flood of spoofed starts can cost other unproven starts their entry, and nobody
 * a tunnel.
 *
 * The table is an array of buckets of SESSION_WAYS slots of one cache line each, where the kernel's hash
 * maps would cost a function call and two dependent cache misses more per packet. A key's hash
 * names its bucket and the slot where the search begins. With four slots to an entry that may be
 * established, a bucket that overflows is a matter of one in millions, and a hit takes 1.2 probes.
 *
 * Slots change by these rules, so that readers need no lock:
 *
 *   - `meta` is read and replaced as one word. It says what the slot is and where its packets go.
 *   - A slot gets a new key in the order: meta = BUSY, key, meta = EMBRYONIC or another. A reader
 *     takes meta, compares the key, and takes meta once more: equal words mean that no change came between.
 *   - Of an entry in use, anyone may store the time and the ingress by themselves. Such a store may come late, and hit
 *     the slot's next entry, whose time it then is too, and whose ingress its next packet mends.
 *   - Only the holder of the bucket's lock makes a slot BUSY, and ends that, whatever meta has become. Two CPUs with a
 *     client's first packets agree that way: the second one finds what the first one has put there.
 *   - Anyone may change the state and the backend of an entry in use, or make it FREE, by compare-and-swap on meta;
 *     user space does the latter, and so needs no lock that would stay locked when it is killed.
 *   - A slot that has been in use never becomes EMPTY again, so a search may end at an EMPTY one.
 *
 * On a machine that reorders loads, aarch64, a packet that meets a slot in the very moment in which it
 * changes hands may go where the former key's did. It is one packet of an unproven client.
 */
#pragma once

#include "address.h"
#include "common.h"

#define SESSION_WAYS 16
#define SESSION_LOCKS 1024
#define SESSION_CLAIM_TRIES 4
/* How many buckets are looked through for expired entries with each start where somebody counts sessions. */
#define SESSION_SWEEP_BUCKETS 8

enum session_state {
	SESSION_EMPTY, /* never used */
	SESSION_FREE,
	SESSION_BUSY,
	SESSION_EMBRYONIC,
	SESSION_LEARNED,
	SESSION_ESTABLISHED,
};

enum session_kind {
	SESSION_ADDRESS,
	SESSION_SA,
	SESSION_ENDPOINT,
	SESSION_ESP,
};

/* `tag` holds an enum session_state in its low four bits and an enum session_kind above. */
#define SESSION_TAG(state, kind) ((state) | (kind) << SESSION_KIND_SHIFT)
#define SESSION_KIND_SHIFT 4
#define SESSION_STATE_MASK 0xf

struct session_meta {
	__u32 last_seen; /* seconds of CLOCK_MONOTONIC, written at most once a second */
	__u16 backend;   /* index of the backend that its packets go to */
	__u8 ingress;    /* index of the interface that the client was last seen on */
	__u8 tag;
} __attribute__((aligned(8)));

struct session {
	struct address client; /* the key, but for SESSION_SA: there, where the SA's client was last seen */
	struct session_meta meta;
	__u64 packets;        /* from client to backend */
	__u64 bytes;          /* of those packets' whole frames */
	__be64 initiator_spi; /* of the newest IKE SA that this entry belongs to, or 0; SESSION_SA: the key */
	__be64 responder_spi; /* what the backend answered to that SPI, or 0 */
	__u32 created;        /* seconds of CLOCK_MONOTONIC */
	/*
	 * Of the key, in host order: SESSION_ENDPOINT has a port, SESSION_ESP an SPI. SESSION_SA has the client's port in
	 * the low 16 bits, and flags of whoever uses the table above.
	 */
	__u32 detail;
};

struct session_bucket {
	struct session slots[SESSION_WAYS];
};

/* One entry, shared by all CPUs: written when sessions come and go, never for the packets between. */
struct session_totals {
	__u64 established;
	__u64 sweep; /* where the next look for expired entries goes */
};

struct session_config {
	__u64 seed;                /* of the hash that spreads keys over the buckets */
	__u32 buckets;             /* entries of the map `sessions` */
	__u32 established_max;     /* beyond this no start gets a session */
	__u32 embryonic_timeout;   /* idle seconds */
	__u32 established_timeout; /* idle seconds, of learned entries too */
	enum session_kind primary; /* the kind that is a client's session */
	__u32 sweeps;              /* whether each start looks for expired entries, so that backend_sessions is true */
};

const volatile struct session_config session_config = {
	.buckets = 1,
	.established_max = 1,
	.embryonic_timeout = 30,
	.established_timeout = 86400,
};

/* Types that no map names, here so that the generated skeleton has them. */
struct session_types {
	enum session_state state;
	enum session_kind kind;
};

const volatile struct session_types session_types;

/* User space maps these three to list and remove sessions; it sets the size of `sessions`. */
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

/* How many sessions, embryonic ones too, each backend has; those that have expired unnoticed count until they are found. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 512);
	__type(key, __u32);
	__type(value, __u64);
} backend_sessions SEC(".maps");

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

static __always_inline enum session_state session_state(struct session_meta meta)
{
	return meta.tag & SESSION_STATE_MASK;
}

static __always_inline enum session_kind session_kind(struct session_meta meta)
{
	return meta.tag >> SESSION_KIND_SHIFT;
}

static __always_inline struct session_meta session_with_state(struct session_meta meta, enum session_state state)
{
	meta.tag = SESSION_TAG(state, session_kind(meta));
	return meta;
}

static __always_inline struct session_meta session_read(struct session *session)
{
	return (union session_word){.word = READ_ONCE(*(__u64 *)&session->meta)}.meta;
}

static __always_inline bool session_in_use(struct session_meta meta)
{
	return session_state(meta) >= SESSION_EMBRYONIC;
}

static __always_inline bool session_is_established(struct session_meta meta)
{
	return session_state(meta) == SESSION_ESTABLISHED;
}

static __always_inline struct session_totals *session_totals_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&session_totals, &zero);
}

static __always_inline void session_tally_backend(__u32 backend, __s64 difference)
{
	__u64 *count = bpf_map_lookup_elem(&backend_sessions, &backend);

	if (count)
		__sync_fetch_and_add(count, difference);
}

/* Whether an entry counts as a backend's session. A learned one is another way to a session that counts already. */
static __always_inline bool session_is_counted(struct session_meta meta)
{
	return session_kind(meta) == session_config.primary &&
	       (session_state(meta) == SESSION_EMBRYONIC || session_state(meta) == SESSION_ESTABLISHED);
}

/* Keeps the counts true after a slot went from `old` to `new`. */
static __always_inline void session_tally(struct session_totals *totals, struct session_meta old,
					  struct session_meta new)
{
	bool counted = session_is_counted(old), counts = session_is_counted(new);
	__s64 established = (counts && session_is_established(new)) - (counted && session_is_established(old));

	if (established && totals)
		__sync_fetch_and_add(&totals->established, established);
	if (counted && counts && old.backend == new.backend)
		return;
	if (counted)
		session_tally_backend(old.backend, -1);
	if (counts)
		session_tally_backend(new.backend, 1);
}

/* Replaces meta by compare-and-swap. False where it was no longer `old`. */
static __always_inline bool session_swap(struct session *session, struct session_meta old, struct session_meta new)
{
	__u64 expected = (union session_word){.meta = old}.word;
	__u64 wanted = (union session_word){.meta = new}.word;

	return __sync_val_compare_and_swap((__u64 *)&session->meta, expected, wanted) == expected;
}

/*
 * Ends a slot's time as BUSY. Whatever meta has become meanwhile is overwritten: a reader of the slot's former entry may
 * have stored a time or an interface after that had gone.
 */
static __always_inline void session_publish(struct session *session, struct session_meta meta)
{
	__sync_lock_test_and_set((__u64 *)&session->meta, (union session_word){.meta = meta}.word);
}

/* Signed: another CPU's clock may have shown the next second already. */
static __always_inline bool session_expired(struct session_meta meta, __u32 now)
{
	__u32 timeout = session_state(meta) == SESSION_EMBRYONIC ? session_config.embryonic_timeout
								 : session_config.established_timeout;

	return (__s32)(now - meta.last_seen) > (__s32)timeout;
}

/* Whether two readings of one slot say the same but for the time. */
static __always_inline bool session_same(struct session_meta a, struct session_meta b)
{
	return a.backend == b.backend && a.tag == b.tag;
}

/* What an entry is looked up by. */
struct session_key {
	struct address address; /* SESSION_SA: the SPI, and zero */
	__u32 detail;
	enum session_kind kind;
};

static __always_inline struct session_key session_key_of_address(const struct address *address)
{
	return (struct session_key){.address = *address, .kind = SESSION_ADDRESS};
}

static __always_inline struct session_key session_key_of_sa(__be64 initiator_spi)
{
	return (struct session_key){.address.words = {initiator_spi}, .kind = SESSION_SA};
}

static __always_inline struct session_key session_key_of_endpoint(const struct address *address, __u32 port)
{
	return (struct session_key){.address = *address, .detail = port, .kind = SESSION_ENDPOINT};
}

static __always_inline struct session_key session_key_of_esp(const struct address *address, __u32 spi)
{
	return (struct session_key){.address = *address, .detail = spi, .kind = SESSION_ESP};
}

/* The seed is secret, so what a stranger chooses for the detail shifts the hash by what he does not know. */
static __always_inline __u64 session_hash(const struct session_key *key)
{
	return address_hash(&key->address, session_config.seed ^ ((__u64)key->detail << 8 | key->kind));
}

/* Whether a slot in use has a key. */
static __always_inline bool session_has_key(const struct session *session, struct session_meta meta,
					    const struct session_key *key)
{
	if (session_kind(meta) != key->kind)
		return false;
	if (key->kind == SESSION_SA)
		return session->initiator_spi == key->address.words[0];
	if (key->kind == SESSION_ADDRESS)
		return address_equal(&session->client, &key->address);
	return address_equal(&session->client, &key->address) && session->detail == key->detail;
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

/* The same meta, of which the verifier knows nothing more: what follows is walked once, and not once for each way of finding it. */
static __always_inline struct session_meta session_forget(struct session_meta meta)
{
	union session_word word = {.meta = meta};

	word.word += unknown_zero();
	return word.meta;
}

/* The entry of `key` and its meta, or NULL where there is none that has not expired. */
static __always_inline struct session *session_find(const struct session_key *key, __u32 now, struct session_meta *meta)
{
	__u64 hash = session_hash(key);
	struct session_bucket *bucket;
	__u32 index;

	bucket = session_bucket(hash, &index);
	if (!bucket)
		return NULL;
	for (__u32 i = 0; i < SESSION_WAYS; i++) {
		struct session *session = session_slot(bucket, hash, i);

		*meta = session_read(session);
		if (session_has_key(session, *meta, key)) {
			if (session_in_use(*meta) && !session_expired(*meta, now) &&
			    session_same(*meta, session_read(session))) {
				*meta = session_forget(*meta);
				return session;
			}
		}
		if (session_state(*meta) == SESSION_EMPTY)
			break;
	}
	return NULL;
}

/* Where an entry is in the table, for functions that cannot return a pointer into it. */
#define SESSION_NOWHERE (-1LL)

static __always_inline struct session *session_at(__s64 place)
{
	__u32 index = (__u64)place / SESSION_WAYS;
	struct session_bucket *bucket;

	if (place == SESSION_NOWHERE)
		return NULL;
	bucket = bpf_map_lookup_elem(&sessions, &index);
	return bucket ? &bucket->slots[place & (SESSION_WAYS - 1)] : NULL;
}

/* The place of the entry of `key`, or SESSION_NOWHERE. Not inlined, for the verifier's sake, as session_put(). */
__noinline __s64 session_look(const struct session_key *key, __u32 now)
{
	__u64 hash;
	struct session_bucket *bucket;
	__u32 index;

	if (!key)
		return SESSION_NOWHERE;
	hash = session_hash(key);
	bucket = session_bucket(hash, &index);
	if (!bucket)
		return SESSION_NOWHERE;
	for (__u32 i = 0; i < SESSION_WAYS; i++) {
		struct session *session = session_slot(bucket, hash, i);
		struct session_meta meta = session_read(session);

		if (session_in_use(meta) && session_has_key(session, meta, key) && !session_expired(meta, now))
			return (__s64)index * SESSION_WAYS + ((hash + i) & (SESSION_WAYS - 1));
		if (session_state(meta) == SESSION_EMPTY)
			break;
	}
	return SESSION_NOWHERE;
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

/*
 * Gives an entry in use another state and backend. The compare-and-swap counts it once, whoever else tries; false
 * where the entry is no longer in use.
 */
static __always_inline bool session_change(struct session *session, enum session_state state, __u32 backend)
{
	for (int i = 0; i < SESSION_CLAIM_TRIES; i++) {
		struct session_meta old = session_read(session), new = session_with_state(old, state);

		if (!session_in_use(old))
			return false;
		new.backend = backend;
		if (session_same(old, new))
			return true;
		if (session_swap(session, old, new)) {
			session_tally(session_totals_get(), old, new);
			return true;
		}
	}
	return false;
}

static __always_inline void session_free(struct session *session)
{
	for (int i = 0; i < SESSION_CLAIM_TRIES; i++) {
		struct session_meta old = session_read(session), new = session_with_state(old, SESSION_FREE);

		if (!session_in_use(old))
			return;
		if (session_swap(session, old, new)) {
			session_tally(session_totals_get(), old, new);
			return;
		}
	}
}

/*
 * Frees what has expired in the next bucket in turn. Established sessions that have expired still count until they
 * are found, so a table that seems full is looked through bit by bit, with each start that it would refuse. Not inlined,
 * for the verifier's sake, as session_put().
 */
__noinline int session_sweep(__u32 now)
{
	struct session_totals *totals = session_totals_get();
	struct session_bucket *bucket;
	__u32 index;

	if (!totals)
		return 0;
	index = __sync_fetch_and_add(&totals->sweep, 1) % session_config.buckets;
	bucket = bpf_map_lookup_elem(&sessions, &index);
	if (!bucket)
		return 0;
	for (int i = 0; i < SESSION_WAYS; i++) {
		struct session *session = &bucket->slots[i];
		struct session_meta old = session_read(session), freed = session_with_state(old, SESSION_FREE);

		if (session_in_use(old) && session_expired(old, now) && session_swap(session, old, freed))
			session_tally(totals, old, freed);
	}
	return 0;
}

/* Signed: a session may be ended by hand between its change of state and its being counted. */
static __always_inline __s64 session_established(const struct session_totals *totals)
{
	return READ_ONCE(totals->established);
}

/* Whether no further start is to get a session. Not inlined for the verifier's sake, as session_put(). */
__noinline bool session_table_full(__u32 now)
{
	struct session_totals *totals = session_totals_get();

	if (!totals)
		return false;
	if (session_config.sweeps) {
		for (int i = 0; i < SESSION_SWEEP_BUCKETS; i++)
			session_sweep(now);
	}
	if (session_established(totals) < session_config.established_max)
		return false;
	session_sweep(now);
	return session_established(totals) >= session_config.established_max;
}

/*
 * How willingly a slot is given to a new entry of state `state`: 0 not at all, more is better. Unused and expired
 * ones come first, in the order of the search, then embryonic and learned ones by the time that nobody has used them.
 */
static __always_inline __u64 session_worth(struct session_meta meta, enum session_state state, __u32 now)
{
	__s32 idle;

	meta = session_forget(meta);
	idle = now - meta.last_seen;
	if (session_state(meta) == SESSION_BUSY)
		return 0;
	if (!session_in_use(meta) || session_expired(meta, now))
		return 1ULL << 34;
	/* What is learned and has been idle for long goes for a start too, or such entries could keep all starts out. */
	if (session_state(meta) == SESSION_EMBRYONIC ||
	    (session_state(meta) == SESSION_LEARNED && idle > (__s32)session_config.embryonic_timeout))
		return (1ULL << 33) + idle;
	if (session_state(meta) == SESSION_LEARNED && state != SESSION_EMBRYONIC)
		return (1ULL << 32) + idle;
	return 0;
}

#define SESSION_NO_SLOT SESSION_WAYS

/* What session_put() puts: all that a slot holds but the counts. */
struct session_entry {
	struct session_key key;
	struct session_meta meta; /* with the time, the state and the kind */
	struct address client;    /* SESSION_SA: where its client is; else the same as in the key */
	__be64 initiator_spi;
	__u32 port;    /* SESSION_SA: where its client is */
	__u32 replace; /* whether an entry that is there gets the backend, state and SPI of this one */
};

/* Looks for a key in a locked bucket: its slot, or else in *victim the one to take for it. SESSION_NO_SLOT is none. */
static __always_inline __u32 session_choose(struct session_bucket *bucket, __u64 hash,
					    const struct session_entry *entry, __u32 *victim)
{
	__u32 now = entry->meta.last_seen;
	__u64 best = 0;

	*victim = SESSION_NO_SLOT;
	for (__u32 i = 0; i < SESSION_WAYS; i++) {
		__u32 slot = (hash + i) & (SESSION_WAYS - 1);
		struct session *session = &bucket->slots[slot];
		struct session_meta meta = session_read(session);
		__u64 worth = session_worth(meta, session_state(entry->meta), now);

		if (session_in_use(meta) && !session_expired(meta, now) && session_has_key(session, meta, &entry->key))
			return slot;
		*victim = (worth > best ? slot : *victim) + unknown_zero();
		best = (worth > best ? worth : best) + unknown_zero();
		if (session_state(meta) == SESSION_EMPTY)
			break;
	}
	return SESSION_NO_SLOT;
}

/* What a slot was and is, for the counts, which are kept when the lock is gone. */
struct session_change {
	struct session_meta old;
	struct session_meta new;
};

/*
 * session_put() with the bucket's lock held, under which nothing may be called; returns the slot in the bucket,
 * or SESSION_NO_SLOT.
 */
static __always_inline __u32 session_put_locked(struct session_bucket *bucket, __u64 hash,
						const struct session_entry *entry, struct session_change *change)
{
	for (int i = 0; i < SESSION_CLAIM_TRIES; i++) {
		struct session_meta old, busy = {.tag = SESSION_BUSY};
		struct session *session;
		__u32 slot, victim;

		slot = session_choose(bucket, hash, entry, &victim);
		if (slot < SESSION_WAYS) {
			if (!entry->replace)
				return slot;
			session = &bucket->slots[slot];
			old = session_read(session);
			if (!session_in_use(old) || !session_swap(session, old, entry->meta))
				continue;
			session->initiator_spi = entry->initiator_spi;
			change->old = old;
			change->new = entry->meta;
			return slot;
		}
		if (victim >= SESSION_WAYS)
			return SESSION_NO_SLOT;
		session = &bucket->slots[victim];
		old = session_read(session);
		if (!session_worth(old, session_state(entry->meta), entry->meta.last_seen) ||
		    !session_swap(session, old, busy))
			continue;

		session->client = entry->client;
		session->packets = 0;
		session->bytes = 0;
		session->initiator_spi = entry->initiator_spi;
		session->responder_spi = 0;
		session->created = entry->meta.last_seen;
		session->detail = session_kind(entry->meta) == SESSION_SA ? entry->port : entry->key.detail;
		session_publish(session, entry->meta);
		change->old = old;
		change->new = entry->meta;
		return victim;
	}
	return SESSION_NO_SLOT;
}

/*
 * Puts an entry into the table. Returns its place, or SESSION_NOWHERE where all slots that its key may have are others' that
 * have to stay. Where the key has an entry, another CPU's perhaps, that one stays and its place is returned, unless
 * `replace` is set.
 *
 * Not inlined, and with external linkage, so that the verifier walks it once.
 */
__noinline __s64 session_put(const struct session_entry *entry)
{
	struct session_change change = {};
	struct session_bucket *bucket;
	struct session_lock *lock;
	__u32 index, lock_index, slot;
	__u64 hash;

	if (!entry)
		return SESSION_NOWHERE;
	hash = session_hash(&entry->key);
	bucket = session_bucket(hash, &index);
	lock_index = index % SESSION_LOCKS;
	lock = bpf_map_lookup_elem(&session_locks, &lock_index);
	if (!bucket || !lock)
		return SESSION_NOWHERE;
	/*
	 * The kernel's lock, and not a word of our own: whoever holds it is not interrupted. To give up waiting would be
	 * to send the client elsewhere than the CPU does that was first.
	 */
	bpf_spin_lock(&lock->lock);
	slot = session_put_locked(bucket, hash, entry, &change);
	bpf_spin_unlock(&lock->lock);
	session_tally(session_totals_get(), change.old, change.new);
	return slot < SESSION_WAYS ? (__s64)index * SESSION_WAYS + slot : SESSION_NOWHERE;
}
