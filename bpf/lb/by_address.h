/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Affinity `address`: a client is its IP address, and all its protocols go to one backend.
 *
 * A session at a backend that takes no starts, as it is drained or down, stays as it is. When its client begins a new
 * IKE SA, the SA has an entry of its own *beside* the session, at another backend: IKE packets with its SPI go there,
 * all others where the session says. Once the client proves that it hears the new backend, the session moves there.
 */
#pragma once

#include "decision.h"

enum beside {
	NOT_BESIDE,   /* the packet is the session's own, as a rekeyed one is, or of an SA from before */
	BESIDE,       /* it is decided */
	BESIDE_BEGIN, /* it begins an SA beside the session */
};

/* An IKE packet of a client whose session has other SPIs: whether it is of an SA beside the session, or about to be. */
__noinline enum beside decide_beside(struct scene *scene, __s64 place)
{
	struct session *session = session_at(place), *beside;
	const struct message *message;
	struct session_meta meta;
	__s64 beside_place;

	if (!scene || !session)
		return NOT_BESIDE;
	message = &scene->message;
	beside_place = look_for(scene, SESSION_SA);
	beside = session_at(beside_place);
	if (!beside) {
		/* The second condition: a start that is sent again, of a handshake that the session began with. */
		if (!message->starts_sa || session->initiator_spi == message->initiator_spi ||
		    backend_takes_called(session_read(session).backend, WANTED_FOR_STARTS, scene->now))
			return NOT_BESIDE;
		return BESIDE_BEGIN;
	}
	meta = session_read(beside);
	if (backend_is_left(meta.backend, scene->now))
		return NOT_BESIDE;
	decide_by_session(scene, beside_place, beside, meta, LB_BECAUSE_SA);
	if (proves_return_path(beside, message)) {
		session->initiator_spi = beside->initiator_spi;
		session->responder_spi = beside->responder_spi;
		if (session_change(session, SESSION_ESTABLISHED, meta.backend)) {
			session_refresh(session, session_read(session), scene->now);
			scene->decision.place = place;
			session_free(beside);
		}
	}
	return BESIDE;
}

/* A start beside a session. False where it may have no entry: then it goes where the session does. */
static __always_inline bool decide_begin_beside(struct scene *scene)
{
	if (start_refused(&scene->message.client, scene->bytes, scene->now))
		return false;
	return decide_new(scene, SESSION_SA, pick_for_start(&scene->message.client, scene->now), LB_BECAUSE_POLICY);
}

/* decide_by_address() for what takes more than a look at the session: starts, and IKE that may change something. */
__noinline int decide_by_address_more(struct scene *scene)
{
	const struct message *message;
	struct session_meta meta;
	struct session *session;
	__s64 place;
	__u32 labelled;

	if (!scene)
		return 0;
	message = &scene->message;
	place = look_for(scene, SESSION_ADDRESS);
	session = session_at(place);
	if (message->kind == KIND_IKE && !(session && session_has_spis(session, message))) {
		labelled = backend_of_ike_label(scene);
		if (labelled < LB_BACKENDS_MAX && !(session && session_read(session).backend == labelled)) {
			decide_stateless(labelled, LB_BECAUSE_LABEL, &scene->decision);
			return 0;
		}
	}
	if (!session) {
		if (message_starts(message))
			decide_start(scene, SESSION_ADDRESS);
		else
			decide_by_hash_called(scene, LB_BECAUSE_HASH);
		return 0;
	}
	meta = session_read(session);
	/* Also where something else decides: the backend's answer will go where the client is now. */
	session_use(session, meta, message->kind, scene->ingress, scene->now);
	if (message->kind == KIND_IKE && !session_has_spis(session, message)) {
		enum beside beside = decide_beside(scene, place);

		if (beside == BESIDE || (beside == BESIDE_BEGIN && decide_begin_beside(scene)))
			return 0;
	}
	if (backend_is_left(meta.backend, scene->now)) {
		decide_by_hash_called(scene, LB_BECAUSE_DOWN);
		return 0;
	}
	decide_by_session(scene, place, session, meta, LB_BECAUSE_ADDRESS);
	if (session_state(meta) == SESSION_EMBRYONIC) {
		if (message->starts_sa && session->initiator_spi != message->initiator_spi) {
			session->responder_spi = 0;
			session->initiator_spi = message->initiator_spi;
		}
		if (proves_return_path(session, message))
			session_change(session, SESSION_ESTABLISHED, meta.backend);
	}
	return 0;
}

/*
 * A packet from the client side that is for a backend. False where decide_by_address_more() has to decide. *session is
 * the entry that it counts for.
 */
static __always_inline bool decide_by_address(struct xdp_md *ctx, const struct packet *packet,
					      const struct message *message, __u32 now, struct decision *decision,
					      struct session **session)
{
	struct session_key key = session_key_of_address(&message->client);
	struct session_meta meta = {};
	struct session *found;
	__u32 backend;

	if (decide_by_esp_label(message, packet->bytes, now, decision))
		return true;
	found = session_find(&key, now, &meta);
	/* The first fragment went elsewhere than the session where it came before that, or quotes another client. */
	if (message->kind == KIND_LATER_FRAGMENT && fragment_recall(packet, now, &backend) &&
	    (!found || meta.backend != backend)) {
		decide_stateless(backend, LB_BECAUSE_FRAGMENT, decision);
		return true;
	}
	if (message->kind == KIND_IKE) {
		if (!found || !session_is_established(meta) || !session_has_spis(found, message))
			return false;
	}
	if (found) {
		decision->verdict = LB_SESSION;
		decision->reason = LB_BECAUSE_ADDRESS;
		decision->backend = meta.backend;
		session_use(found, meta, message->kind, ingress_index(ctx), now);
		*session = found;
		return true;
	}
	if (message->kind == KIND_ECHO_REQUEST)
		return false;
	if (message->kind == KIND_KEEPALIVE)
		decision->verdict = LB_KEEPALIVE_DROPPED;
	else
		decide_by_hash_slot(&message->client, decision);
	return true;
}

/*
 * What an answer of a backend tells of the session of its client, or of an SA beside that. The SPIs count where the entry's
 * own backend shows them. Another one may still have an SA from before the session, and what the client says to that
 * proves nothing of the new backend.
 */
__noinline int hear_by_address_more(struct scene *scene)
{
	const struct message *message;
	struct session *session;

	if (!scene)
		return 0;
	message = &scene->message;
	session = session_at(look_for(scene, SESSION_ADDRESS));
	if (!session) {
		if (message->kind == KIND_ESP)
			learn_client(scene, SESSION_ADDRESS, SESSION_ESTABLISHED);
		else if (message->starts_sa)
			learn_client(scene, SESSION_ADDRESS, SESSION_EMBRYONIC);
		return 0;
	}
	/* Of several clients behind the address the session has the newest start's SPIs, which may prove none of them. */
	if (message->kind == KIND_ESP) {
		struct session_meta meta = session_read(session);

		if (!session_is_established(meta) && meta.backend == scene->sender)
			session_change(session, SESSION_ESTABLISHED, meta.backend);
		return 0;
	}
	if (!message->responder_spi || message->notifies)
		return 0;
	if (!may_be_from(scene->source_mac, session_read(session).backend)) {
		session = session_at(look_for(scene, SESSION_SA));
		if (!session || session_read(session).backend != scene->sender)
			return 0;
	}
	if (!session_is_established(session_read(session))) {
		session->initiator_spi = message->initiator_spi;
		session->responder_spi = message->responder_spi;
	}
	return 0;
}

/* A packet from a backend: where its client was last seen, LB_INGRESS_UNKNOWN where nobody knows. */
static __always_inline __u32 hear_by_address(const struct message *message, __u32 now, bool *more)
{
	struct session_key key = session_key_of_address(&message->client);
	struct session_meta meta;
	struct session *session = session_find(&key, now, &meta);

	if (!session) {
		*more = message->kind == KIND_ESP || message->starts_sa;
		return LB_INGRESS_UNKNOWN;
	}
	session_refresh(session, meta, now);
	if (message->kind == KIND_ESP)
		*more = !session_is_established(meta);
	else
		*more = message->kind == KIND_IKE && message->responder_spi &&
			!(session_is_established(meta) && session->initiator_spi == message->initiator_spi);
	return meta.ingress;
}
