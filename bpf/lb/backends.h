/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Backends: what state each is in, which one gets a new client, and what their own frames tell of them.
 *
 * Some functions are not inlined, and have external linkage, so that the verifier walks each once.
 */
#pragma once

#include "maps.h"

/* How often the schedule or the hash is asked again when it names a backend that takes nothing. */
#define PICK_TRIES 16
/* Balancers side by side must hash alike, so this seed is no secret. */
#define PUBLIC_SEED 0x6c62ULL

static __always_inline struct lb_backend *backend_get(__u32 index)
{
	return bpf_map_lookup_elem(&backends, &index);
}

union station_word {
	__u64 word;
	struct lb_station station;
};

static __always_inline struct lb_station station_read(struct lb_backend *backend)
{
	return (union station_word){.word = READ_ONCE(*(__u64 *)&backend->station)}.station;
}

static __always_inline __u64 mac_key(const __u8 *mac)
{
	union station_word key = {};

	__builtin_memcpy(key.station.mac, mac, sizeof(key.station.mac));
	return key.word;
}

/* Whether a backend has left what it was asked unanswered for too long. Any frame from it ends that. */
static __always_inline bool backend_is_mute(const struct lb_backend *backend, __u32 now)
{
	__u32 asked;

	if (!lb_config.down_after)
		return false;
	asked = READ_ONCE(backend->asked);
	return asked && (__s32)(now - asked) > (__s32)lb_config.down_after;
}

static __always_inline bool backend_is_down(const struct lb_backend *backend, struct lb_station station, __u32 now)
{
	return station.state == LB_DOWN || backend_is_mute(backend, now);
}

/* Whether a backend takes packets: those of all the sessions that it has, and those that have none. */
static __always_inline bool station_takes_packets(const struct lb_backend *backend, struct lb_station station,
						  __u32 now)
{
	return (station.state == LB_ACTIVE || station.state == LB_DRAINING) && mac_key(station.mac) &&
	       !backend_is_mute(backend, now);
}

/* What a backend is to take: everything, or no starts. */
enum wanted {
	WANTED_FOR_PACKETS,
	WANTED_FOR_STARTS,
};

static __always_inline bool backend_takes(__u32 index, enum wanted wanted, __u32 now)
{
	struct lb_backend *backend = backend_get(index);
	struct lb_station station;

	if (!backend)
		return false;
	station = station_read(backend);
	if (wanted == WANTED_FOR_STARTS && station.state != LB_ACTIVE)
		return false;
	return station_takes_packets(backend, station, now);
}

/* backend_takes() for loops: the verifier walks it once, and not once for each backend there may be. */
__noinline bool backend_takes_called(__u32 index, enum wanted wanted, __u32 now)
{
	return backend_takes(index, wanted, now);
}

/* Whether a backend takes what is wanted, and is to get starts at all. In one function, to be one step of a loop. */
__noinline bool backend_is_choice(__u32 index, enum wanted wanted, __u32 now)
{
	struct lb_backend *backend = backend_get(index);

	return backend && (wanted == WANTED_FOR_PACKETS || backend->weight) && backend_takes(index, wanted, now);
}

/* The first backend that takes what is wanted, for when the orderly ways of choosing one have not found any. */
__noinline __u32 pick_first(enum wanted wanted, __u32 now)
{
	struct lb_runtime *rt = runtime_get();

	if (!rt)
		return LB_BACKENDS_MAX;
	for (__u32 i = 0; i < LB_BACKENDS_MAX && i < rt->backends; i++) {
		if (backend_is_choice(i, wanted, now))
			return i;
	}
	return LB_BACKENDS_MAX;
}

static __always_inline struct lb_schedule schedule_read(struct lb_runtime *rt)
{
	union {
		__u64 word;
		struct lb_schedule schedule;
	} schedule = {.word = READ_ONCE(*(__u64 *)&rt->schedule)};

	return schedule.schedule;
}

static __always_inline __u32 hash_slot_get(struct lb_runtime *rt, __u64 hash)
{
	__u32 slot = schedule_read(rt).half * LB_HASH_SLOTS + hash_to_range(hash, LB_HASH_SLOTS);
	__u32 *index = bpf_map_lookup_elem(&hash_slots, &slot);

	return index ? *index : LB_BACKENDS_MAX;
}

/* A backend that takes what is wanted, from the slots that follow on `hash` in an order that all balancers have. */
__noinline __u32 pick_by_next_slots(__u64 hash, enum wanted wanted, __u32 now)
{
	struct lb_runtime *rt = runtime_get();

	if (!rt)
		return LB_BACKENDS_MAX;
	for (int i = 0; i < PICK_TRIES; i++) {
		__u32 index = hash_slot_get(rt, hash);

		if (backend_takes_called(index, wanted, now))
			return index;
		/* The linear congruence of Knuth's MMIX. */
		hash = hash * 6364136223846793005ULL + 1442695040888963407ULL;
	}
	return LB_BACKENDS_MAX;
}

/* pick_by_hash() where the hash's own backend takes nothing. Where none takes starts, draining ones do. */
__noinline __u32 pick_by_next_hash(__u64 hash, enum wanted wanted, __u32 now)
{
	__u32 index = pick_by_next_slots(hash, wanted, now);

	if (index >= LB_BACKENDS_MAX)
		index = pick_first(wanted, now);
	if (index >= LB_BACKENDS_MAX && wanted == WANTED_FOR_STARTS)
		index = pick_by_next_slots(hash, WANTED_FOR_PACKETS, now);
	return index < LB_BACKENDS_MAX ? index : pick_first(WANTED_FOR_PACKETS, now);
}

/* The backend that `client` hashes to among those that take what is wanted; LB_BACKENDS_MAX where none does. */
static __always_inline __u32 pick_by_hash(const struct address *client, enum wanted wanted, __u32 now)
{
	__u64 hash = address_hash(client, PUBLIC_SEED);
	struct lb_runtime *rt = runtime_get();
	__u32 index;

	if (!rt)
		return LB_BACKENDS_MAX;
	index = hash_slot_get(rt, hash);
	return backend_takes(index, wanted, now) ? index : pick_by_next_hash(hash, wanted, now);
}

/* The first backend that pick_by_hash() asks; LB_BACKENDS_MAX where none has a weight. */
static __always_inline __u32 hash_slot_of(const struct address *client)
{
	struct lb_runtime *rt = runtime_get();

	return rt ? hash_slot_get(rt, address_hash(client, PUBLIC_SEED)) : LB_BACKENDS_MAX;
}

/* The next backend of the ring that takes what is wanted. */
__noinline __u32 pick_from_ring(enum wanted wanted, __u32 now)
{
	struct lb_runtime *rt = runtime_get();
	struct lb_schedule schedule;

	if (!rt)
		return LB_BACKENDS_MAX;
	schedule = schedule_read(rt);
	for (int i = 0; i < PICK_TRIES && schedule.ring_slots; i++) {
		__u32 turn = __sync_fetch_and_add(&rt->ring_next, 1) % schedule.ring_slots;
		__u32 slot = schedule.half * LB_RING_MAX + turn;
		__u32 *index = bpf_map_lookup_elem(&ring, &slot);

		if (index && backend_takes_called(*index, wanted, now))
			return *index;
	}
	return LB_BACKENDS_MAX;
}

/* The backend whose turn it is to get a start. Where none takes starts, draining ones do, and make up the ring. */
static __always_inline __u32 pick_by_turn(__u32 now)
{
	__u32 index = pick_from_ring(WANTED_FOR_STARTS, now);

	if (index >= LB_BACKENDS_MAX)
		index = pick_first(WANTED_FOR_STARTS, now);
	if (index >= LB_BACKENDS_MAX)
		index = pick_from_ring(WANTED_FOR_PACKETS, now);
	return index < LB_BACKENDS_MAX ? index : pick_first(WANTED_FOR_PACKETS, now);
}

/* Sessions of a backend in proportion to its weight, which is not 0. */
static __always_inline __u64 backend_load(const struct lb_backend *backend, __u32 index)
{
	__u64 *sessions = bpf_map_lookup_elem(&backend_sessions, &index);

	return sessions ? *sessions * LB_WEIGHT_MAX / backend->weight : 0;
}

/*
 * The load of a backend as the upper bits, its number as the lower ones: the least of these words is the backend to
 * choose. All bits set where it does not take what is wanted.
 */
__noinline __u64 backend_offer(__u32 index, enum wanted wanted, __u32 now)
{
	struct lb_backend *backend = backend_get(index);

	if (!backend || !backend->weight || !backend_takes(index, wanted, now))
		return ~0ULL;
	return backend_load(backend, index) << 32 | index;
}

/*
 * The backend with the fewest sessions for its weight. Looks at all, as two chosen at random would do for a web server
 * and not for four concentrators. Starts in turn at another one, so that equals share what comes before their counts differ.
 */
__noinline __u32 pick_least(enum wanted wanted, __u32 now)
{
	struct lb_runtime *rt = runtime_get();
	__u32 backends, first;
	__u64 best = ~0ULL;

	if (!rt || !rt->backends)
		return LB_BACKENDS_MAX;
	backends = rt->backends;
	first = __sync_fetch_and_add(&rt->ring_next, 1) % backends;
	for (__u32 i = 0; i < LB_BACKENDS_MAX && i < backends; i++) {
		__u64 offer = backend_offer((first + i) % backends, wanted, now);

		best = (offer >> 32 < best >> 32 ? offer : best) + unknown_zero();
	}
	return best != ~0ULL ? (__u32)best : LB_BACKENDS_MAX;
}

/* Where none takes starts, draining ones do. */
static __always_inline __u32 pick_by_load(__u32 now)
{
	__u32 index = pick_least(WANTED_FOR_STARTS, now);

	if (index >= LB_BACKENDS_MAX)
		index = pick_least(WANTED_FOR_PACKETS, now);
	return index < LB_BACKENDS_MAX ? index : pick_first(WANTED_FOR_PACKETS, now);
}

/* The backend for a start of `client`; LB_BACKENDS_MAX where none takes packets. */
__noinline __u32 pick_for_start(const struct address *client, __u32 now)
{
	if (!client)
		return LB_BACKENDS_MAX;
	switch (lb_config.policy) {
	case LB_MAGLEV:
		return pick_by_hash(client, WANTED_FOR_STARTS, now);
	case LB_LEAST_SESSIONS:
		return pick_by_load(now);
	default:
		return pick_by_turn(now);
	}
}

/*
 * Whether the packets of a session at this backend go by hash, as long as it is down. An unresolved one is waited for, as a
 * down one is where --on-down says so. One that was removed has no sessions any more, but for a packet under way.
 */
static __always_inline bool backend_is_left(__u32 index, __u32 now)
{
	struct lb_backend *backend = backend_get(index);
	struct lb_station station;

	if (!backend)
		return true;
	station = station_read(backend);
	if (station.state == LB_ABSENT)
		return true;
	return lb_config.on_down == LB_REHASH && backend_is_down(backend, station, now);
}

/* Notes that a backend has been sent what it has to answer. */
static __always_inline void backend_ask(struct lb_backend *backend, __u32 now)
{
	if (!READ_ONCE(backend->asked))
		WRITE_ONCE(backend->asked, now ?: 1);
}

/* Takes the source MAC of a frame as its backend's, if no MAC of that was known. */
static __always_inline void learn_mac(struct lb_backend *backend, __u32 index, const struct ethhdr *eth)
{
	union station_word old = {.station = station_read(backend)}, new = {};
	__u64 key = mac_key(eth->h_source);

	if (mac_key(old.station.mac) || old.station.state == LB_ABSENT || eth->h_source[0] & 1 || !key)
		return;
	new.word = key;
	new.station.state = old.station.state;
	new.station.learned = true;
	if (__sync_val_compare_and_swap((__u64 *)&backend->station, old.word, new.word) == old.word)
		bpf_map_update_elem(&backend_macs, &key, &index, BPF_ANY);
}

/*
 * The backend that sent a frame, LB_BACKENDS_MAX where nobody knows: the only one behind the interface, or else the one
 * that has the frame's MAC.
 */
static __always_inline __u32 backend_of_frame(const struct xdp_md *ctx, const struct ethhdr *eth)
{
	struct lb_interface *interface = interface_find(ctx->ingress_ifindex);
	__u64 key = mac_key(eth->h_source);
	__u32 *index;

	if (!interface)
		return LB_BACKENDS_MAX;
	if (interface->backend < LB_BACKENDS_MAX)
		return interface->backend;
	index = bpf_map_lookup_elem(&backend_macs, &key);
	return index ? *index : LB_BACKENDS_MAX;
}

/* Notes what any frame says of the backend that sent it, and returns which one that is: it lives, and has this MAC. */
static __always_inline __u32 hear_backend(const struct xdp_md *ctx, const struct ethhdr *eth, __u32 now)
{
	__u32 index = backend_of_frame(ctx, eth);
	struct lb_backend *backend = backend_get(index);

	if (!backend)
		return LB_BACKENDS_MAX;
	if (backend->last_seen != now)
		WRITE_ONCE(backend->last_seen, now);
	if (lb_config.down_after && backend->asked)
		WRITE_ONCE(backend->asked, 0);
	learn_mac(backend, index, eth);
	return index;
}

/*
 * Whether a frame with this source MAC is from `index`, as far as MACs tell: from the one that it has, or from one that
 * is no other backend's. The interface says less, as backends may be behind one switch.
 */
static __always_inline bool may_be_from(__u64 source_mac, __u32 index)
{
	struct lb_backend *backend = backend_get(index);

	if (backend && mac_key(station_read(backend).mac) == source_mac)
		return true;
	return !bpf_map_lookup_elem(&backend_macs, &source_mac);
}
