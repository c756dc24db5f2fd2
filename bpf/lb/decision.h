/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is decided about a packet of a tunnel, and the ways to decide it that do not depend on what counts as one
 * client: by the hash of an address, by the label in an SPI, by the first fragment, and whether a start may have a session.
 */
#pragma once

#include "backends.h"

/* RFC 8200, section 4.5: a packet whose fragments have not come together after 60 seconds is given up. */
#define FRAGMENT_SECONDS 60

/* What is decided about a frame. */
struct decision {
	enum lb_verdict verdict;
	enum lb_reason reason;
	__u32 backend; /* LB_SESSION, LB_NEW, LB_STATELESS: index of the backend it goes to */
	__u32 port;    /* LB_NEIGHBOUR, LB_RETURNED: key of the interface in the map of the other side, */
	__u32 to_all;  /* or all of them */
	__u32 missed;  /* whether the packet's own entry has been looked for, and is not there */
	__u32 proves;  /* whether the packet proves an SA, or confirms it: prove_sa() and confirm_sa() follow */
	__s64 place;   /* LB_SESSION, LB_NEW: of the entry that it counts for */
};

/*
 * What a packet is decided by, and what is decided. It holds no pointers, so that functions which are not inlined take it: the
 * verifier walks those once, and not once for each path that leads to them.
 */
struct scene {
	struct message message;
	struct decision decision;
	__u64 source_mac; /* as mac_key() has it */
	__u32 now;        /* seconds of CLOCK_MONOTONIC */
	__u32 bytes;      /* of the frame */
	__u32 sender;     /* from the backend side: index of the backend; LB_BACKENDS_MAX: unknown */
	__u32 ingress;    /* index of the client's interface: the packet's own, or where an answer is to go */
	/* What is put into and looked up in tables, here for want of room on the stack. */
	struct session_entry entry;
	struct session_key key;
	struct lb_fragment_key fragment;
};

/* One for each CPU; a program is not interrupted by another packet's. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scene);
} scenes SEC(".maps");

/* NULL does not happen. */
static __always_inline struct scene *scene_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scenes, &zero);
}

static __always_inline bool goes_to_one_backend(enum lb_verdict verdict)
{
	return verdict == LB_SESSION || verdict == LB_NEW || verdict == LB_STATELESS;
}

static __always_inline bool is_forwarded(enum lb_verdict verdict)
{
	return goes_to_one_backend(verdict) || verdict == LB_NEIGHBOUR || verdict == LB_RETURNED;
}

static __always_inline bool message_starts(const struct message *message)
{
	return message->starts_sa || message->kind == KIND_ECHO_REQUEST;
}

static __always_inline void decide_stateless(__u32 backend, enum lb_reason reason, struct decision *decision)
{
	decision->backend = backend;
	decision->place = SESSION_NOWHERE;
	decision->reason = reason;
	decision->verdict = backend < LB_BACKENDS_MAX ? LB_STATELESS : LB_NO_BACKEND;
}

static __always_inline void decide_by_hash(const struct message *message, __u32 now, enum lb_reason reason,
					   struct decision *decision)
{
	decide_stateless(pick_by_hash(&message->client, WANTED_FOR_PACKETS, now), reason, decision);
}

/* decide_by_hash() before anyone has asked whether the backend takes packets: address_to_backend() does that anyway. */
static __always_inline void decide_by_hash_slot(const struct address *client, struct decision *decision)
{
	decide_stateless(hash_slot_of(client), LB_BECAUSE_HASH, decision);
	decision->verdict = LB_STATELESS;
}

/* Notes that an entry was used by a packet from the client side. */
static __always_inline void session_use(struct session *session, struct session_meta meta, enum kind kind,
					__u32 ingress, __u32 now)
{
	session_refresh(session, meta, now);
	/* An ICMP error comes from some router, whose way here is no news about the client's. */
	if (kind != KIND_ICMP_ERROR && meta.ingress != ingress)
		WRITE_ONCE(session->meta.ingress, ingress);
}

/* Goes where the entry at `place` says, and counts for that. */
static __always_inline void decide_by_session(struct scene *scene, __s64 place, struct session *session,
					      struct session_meta meta, enum lb_reason reason)
{
	scene->decision.verdict = LB_SESSION;
	scene->decision.reason = reason;
	scene->decision.backend = meta.backend;
	scene->decision.place = place;
	session_use(session, meta, scene->message.kind, scene->ingress, scene->now);
}

/* Whether the rate of one source allows one more entry. IPv6 hosts are given whole /64s, so one such is a source. */
static __always_inline bool source_rate_allows(struct address source)
{
	__u64 *bucket;
	__u32 slot;

	if (!address_is_v4(&source))
		source.words[1] = 0;
	slot = hash_to_range(address_hash(&source, session_config.seed), LB_SOURCES);
	bucket = bpf_map_lookup_elem(&source_rates, &slot);
	return !bucket || rate_take(bucket, lb_config.source_interval, bpf_ktime_get_ns());
}

/*
 * Whether a start may have a session; if not, why, as an enum lb_reason. The source is asked first: its flood is not to
 * use up what all share.
 */
__noinline int start_refused(const struct address *client, __u32 bytes, __u32 now)
{
	struct lb_runtime *rt = runtime_get();

	if (!client)
		return LB_BECAUSE_RATE;
	if (!source_rate_allows(*client)) {
		counter_add(&unplaced, LB_UNPLACED_SOURCE_RATE, bytes);
		return LB_BECAUSE_RATE;
	}
	if (rt && !rate_take(&rt->starts, lb_config.start_interval, bpf_ktime_get_ns())) {
		counter_add(&unplaced, LB_UNPLACED_TOTAL_RATE, bytes);
		return LB_BECAUSE_RATE;
	}
	if (session_table_full(now)) {
		counter_add(&unplaced, LB_UNPLACED_TABLE_FULL, bytes);
		return LB_BECAUSE_FULL;
	}
	return 0;
}

/* The key of the packet's own SA, endpoint, SPI or address. */
static __always_inline struct session_key key_for(const struct message *message, enum session_kind kind)
{
	switch (kind) {
	case SESSION_SA:
		return session_key_of_sa(message->initiator_spi);
	case SESSION_ENDPOINT:
		return session_key_of_endpoint(&message->client, message->port);
	case SESSION_ESP:
		return session_key_of_esp(&message->client, message->spi);
	default:
		return session_key_of_address(&message->client);
	}
}

/* Sets the scene's entry for its packet. */
static __always_inline void entry_for(struct scene *scene, enum session_kind kind, enum session_state state,
				      __u32 backend)
{
	struct session_entry *entry = &scene->entry;

	entry->key = key_for(&scene->message, kind);
	entry->meta.last_seen = scene->now;
	entry->meta.backend = backend;
	entry->meta.ingress = scene->ingress;
	entry->meta.tag = SESSION_TAG(state, kind);
	entry->client = scene->message.client;
	entry->initiator_spi = scene->message.initiator_spi;
	entry->port = scene->message.port;
	entry->replace = false;
}

/*
 * A start that may have a session, of kind `kind`, at `backend`. Where another CPU was first, its choice counts. False
 * where there is no room: then the packet goes by hash, and so will all that follow it.
 */
__noinline bool decide_new(struct scene *scene, enum session_kind kind, __u32 backend, enum lb_reason reason)
{
	struct session *session;
	__s64 place;

	if (!scene)
		return false;
	scene->decision.reason = reason;
	if (backend >= LB_BACKENDS_MAX) {
		scene->decision.verdict = LB_NO_BACKEND;
		return true;
	}
	entry_for(scene, kind, SESSION_EMBRYONIC, backend);
	place = session_put(&scene->entry);
	session = session_at(place);
	if (!session) {
		counter_add(&unplaced, LB_UNPLACED_TABLE_FULL, scene->bytes);
		return false;
	}
	scene->decision.verdict = LB_NEW;
	scene->decision.backend = session_read(session).backend;
	scene->decision.place = place;
	return true;
}

static __always_inline __s64 look_for_sa(struct scene *scene, __be64 initiator_spi)
{
	scene->key = session_key_of_sa(initiator_spi);
	return session_look(&scene->key, scene->now);
}

/* The entry of the packet's own SA, endpoint, SPI or address; its place, or SESSION_NOWHERE. */
static __always_inline __s64 look_for(struct scene *scene, enum session_kind kind)
{
	scene->key = key_for(&scene->message, kind);
	return session_look(&scene->key, scene->now);
}

/* decide_by_hash() by a function that is not inlined. */
__noinline int decide_by_hash_called(struct scene *scene, enum lb_reason reason)
{
	if (scene)
		decide_by_hash(&scene->message, scene->now, reason, &scene->decision);
	return 0;
}

/* A start of a client that has no session: as the policy says, or by hash. */
static __always_inline void decide_start(struct scene *scene, enum session_kind kind)
{
	int refused = start_refused(&scene->message.client, scene->bytes, scene->now);

	if (!refused) {
		__u32 backend = pick_for_start(&scene->message.client, scene->now);

		if (decide_new(scene, kind, backend, LB_BECAUSE_POLICY))
			return;
		refused = LB_BECAUSE_FULL;
	}
	decide_by_hash_called(scene, refused);
}

static __always_inline void fragment_key(const struct packet *packet, struct lb_fragment_key *key)
{
	key->source = packet->source;
	key->destination = packet->destination;
	key->id = packet->fragment_id;
	key->protocol = packet->fragment_protocol;
}

static __always_inline void fragment_remember(const struct packet *packet, __u32 backend, __u32 now)
{
	struct lb_fragment fragment = {.backend = backend, .seen = now};
	struct scene *scene = scene_get();

	if (!scene)
		return;
	fragment_key(packet, &scene->fragment);
	bpf_map_update_elem(&fragments, &scene->fragment, &fragment, BPF_ANY);
}

/* Whether the first fragment of this packet was seen, and went to a backend that still counts: *backend. */
static __always_inline bool fragment_recall(const struct packet *packet, __u32 now, __u32 *backend)
{
	struct scene *scene = scene_get();
	struct lb_fragment *fragment;

	if (!scene)
		return false;
	fragment_key(packet, &scene->fragment);
	fragment = bpf_map_lookup_elem(&fragments, &scene->fragment);
	if (!fragment || (__s32)(now - fragment->seen) > FRAGMENT_SECONDS || backend_is_left(fragment->backend, now))
		return false;
	*backend = fragment->backend;
	return true;
}

/* The SPI of an IKE message that the backend chose, or 0 where it has not chosen one yet. */
static __always_inline __be64 backend_ike_spi(const struct message *message, enum side sender)
{
	bool backend_began = message->of_initiator == (sender == SIDE_BACKEND);

	return backend_began ? message->initiator_spi : message->responder_spi;
}

/* The label is the first bits on the wire of an SPI, of IKE's 64 bits and of ESP's 32. */
static __always_inline __u32 ike_label(__be64 spi)
{
	return bpf_be64_to_cpu(spi) >> (64 - lb_config.label_bits);
}

static __always_inline __u32 esp_label(__u32 spi)
{
	return spi >> (32 - lb_config.label_bits);
}

/* The backend that a label names, LB_BACKENDS_MAX where there is none, or none that still counts. */
static __always_inline __u32 backend_of_label(__u32 label, __u32 bytes, __u32 now)
{
	__u32 *entry = bpf_map_lookup_elem(&labels, &label);

	if (!entry || !*entry) {
		counter_add(&label_counters, LB_LABEL_UNKNOWN, bytes);
		return LB_BACKENDS_MAX;
	}
	return backend_is_left(*entry - 1, now) ? LB_BACKENDS_MAX : *entry - 1;
}

/* Goes where the label in the SPI of ESP or AH says, with no look at any table of clients. False where it says nothing. */
static __always_inline bool decide_by_esp_label(const struct message *message, __u32 bytes, __u32 now,
						struct decision *decision)
{
	__u32 backend;

	if (!lb_config.label_bits || message->kind != KIND_ESP || message->spi < SPI_FIRST)
		return false;
	backend = backend_of_label(esp_label(message->spi), bytes, now);
	if (backend >= LB_BACKENDS_MAX)
		return false;
	decide_stateless(backend, LB_BECAUSE_LABEL, decision);
	return true;
}

/* The backend that the label in an IKE message's SPI names, LB_BACKENDS_MAX where it names none. */
static __always_inline __u32 backend_of_ike_label(const struct scene *scene)
{
	__be64 spi = backend_ike_spi(&scene->message, SIDE_CLIENT);

	if (!lb_config.label_bits || scene->message.starts_sa || !spi)
		return LB_BACKENDS_MAX;
	return backend_of_label(ike_label(spi), scene->bytes, scene->now);
}

/* Whether an entry has the SPIs of a message, both chosen, as its backend showed them. */
static __always_inline bool session_has_spis(const struct session *session, const struct message *message)
{
	return message->responder_spi && session->initiator_spi == message->initiator_spi &&
	       session->responder_spi == message->responder_spi;
}

/* Whether an IKE packet of a client shows that the client has its backend's answer. */
static __always_inline bool proves_return_path(const struct session *session, const struct message *message)
{
	if (message->kind != KIND_IKE || !message->responder_spi)
		return false;
	return lb_config.return_path == LB_RETURN_DIRECT || session_has_spis(session, message);
}

/* Counts an SPI that a backend chose without its label: then its strongswan.conf is not the one that lb prints. */
static __always_inline void check_label(const struct message *message, __u32 sender, __u32 bytes)
{
	struct lb_backend *backend;
	__be64 spi;

	/* A complaint in clear repeats the SPIs of what it complains of. */
	if (!lb_config.label_bits || message->kind != KIND_IKE || message->notifies)
		return;
	backend = backend_get(sender);
	spi = backend_ike_spi(message, SIDE_BACKEND);
	if (backend && spi && backend->label != LB_NO_LABEL && backend->label != ike_label(spi))
		counter_add(&label_counters, LB_LABEL_DISAGREES, bytes);
}

/*
 * What a backend's packet to a client without a session tells: ESP is sent to none but an authenticated client, and an
 * IKE SA that the backend begins will be answered. So the client's packets are for this backend.
 */
__noinline int learn_client(struct scene *scene, enum session_kind kind, enum session_state state)
{
	struct session_totals *totals = session_totals_get();
	struct lb_backend *backend;
	struct lb_station station;

	if (!scene || !totals || kind > SESSION_ESP || state > SESSION_ESTABLISHED)
		return 0;
	backend = backend_get(scene->sender);
	if (!backend || session_established(totals) >= session_config.established_max)
		return 0;
	station = station_read(backend);
	if (station.state != LB_ACTIVE && station.state != LB_DRAINING)
		return 0;
	entry_for(scene, kind, state, scene->sender);
	session_put(&scene->entry);
	return 0;
}
