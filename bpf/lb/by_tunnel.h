/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Affinity `tunnel`: a client is an IKE SA, and many of them may be behind one address.
 *
 * IKE is known by its initiator SPI, wherever it comes from. ESP in UDP is known by its endpoint, address and port,
 * which is bound to an SA when IKE has spoken from there; plain ESP and AH by source and SPI. Only IKE moves a binding, as
 * its SPIs are a secret between the two ends and whoever is between them; ESP, which is not authenticated here, may
 * add one. The address has an entry too: the newest proven SA from there, or whoever pinged first. It is for what
 * names no tunnel: pings, fragments that overtake their first one, ESP with an SPI that nobody has seen.
 */
#pragma once

#include "decision.h"

/* Binds the packet's endpoint, SPI or address to a backend, and to the SA `initiator_spi`. */
static __always_inline void bind(struct scene *scene, enum session_kind kind, enum session_state state, __u32 backend,
				 __be64 initiator_spi, bool replace)
{
	entry_for(scene, kind, state, backend);
	scene->entry.initiator_spi = initiator_spi;
	scene->entry.replace = replace;
	session_put(&scene->entry);
}

/*
 * The entry of the packet's endpoint. Where nothing has been bound for what it sends to port 4500, what it sends to port 500
 * says who it is: few NATs give the two to two clients.
 */
static __always_inline __s64 look_for_endpoint(struct scene *scene)
{
	__s64 place = look_for(scene, SESSION_ENDPOINT);

	if (place != SESSION_NOWHERE || scene->message.port & PORT_TO_IKE)
		return place;
	scene->key.detail |= PORT_TO_IKE;
	return session_look(&scene->key, scene->now);
}

/* Notes where a client is seen now in the entries of its SA, its endpoint and its address: any of them may lead an answer. */
__noinline int note_ingress(struct scene *scene, __be64 initiator_spi)
{
	struct session *session;

	if (!scene)
		return 0;
	if (initiator_spi) {
		session = session_at(look_for_sa(scene, initiator_spi));
		if (session)
			WRITE_ONCE(session->meta.ingress, scene->ingress);
	}
	if (scene->message.port) {
		session = session_at(look_for(scene, SESSION_ENDPOINT));
		if (session)
			WRITE_ONCE(session->meta.ingress, scene->ingress);
	}
	session = session_at(look_for(scene, SESSION_ADDRESS));
	if (session)
		WRITE_ONCE(session->meta.ingress, scene->ingress);
	return 0;
}

/* decide_by_session(), for one of several entries of a client. */
static __always_inline void decide_by_entry(struct scene *scene, __s64 place, struct session *session,
					    struct session_meta meta, enum lb_reason reason)
{
	if (meta.ingress != scene->ingress && scene->message.kind != KIND_ICMP_ERROR)
		note_ingress(scene, session->initiator_spi);
	decide_by_session(scene, place, session, meta, reason);
}

/* In the detail of an SA's entry, above its client's port. */
#define SA_PORT 0x1ffff
#define SA_REPLACED (1U << 31)   /* a newer SA of the same client has its endpoint: it binds but what nobody has */
#define SA_AT_HOME (1U << 30)    /* the client has not moved since it proved the SA, at the address where it began it */
#define SA_OF_BACKEND (1U << 29) /* the backend has begun it */

/*
 * Whether the entry of an endpoint or address is another SA's, which a packet that anyone may have sent does not take.
 * Where answers do not pass here there is nothing better to go by than that packet.
 */
static __always_inline bool is_taken(const struct scene *scene, struct session *session)
{
	return lb_config.return_path == LB_RETURN_HERE && session && session_is_established(session_read(session)) &&
	       session->initiator_spi && session->initiator_spi != scene->message.initiator_spi;
}

/* Makes what the packet's SA leaves when its client moves a learned entry, which makes room when room is short. */
static __always_inline void let_go(struct scene *scene, enum session_kind kind)
{
	struct session *session = session_at(look_for(scene, kind));

	if (session && session->initiator_spi == scene->message.initiator_spi)
		session_change(session, SESSION_LEARNED, session_read(session).backend);
}

/* What the packet's SA, which is proven and not replaced, leaves where it was last seen. */
__noinline int leave_behind(struct scene *scene)
{
	struct address client;
	struct session *session;
	bool travelled;
	__u32 port;

	if (!scene)
		return 0;
	session = session_at(look_for(scene, SESSION_SA));
	if (!session)
		return 0;
	client = scene->message.client;
	port = scene->message.port;
	travelled = !address_equal(&session->client, &client);
	scene->message.client = session->client;
	scene->message.port = session->detail & SA_PORT;
	let_go(scene, SESSION_ENDPOINT);
	if (travelled)
		let_go(scene, SESSION_ADDRESS);
	scene->message.client = client;
	scene->message.port = port;
	return 0;
}

/*
 * Binds the endpoint that an SA began at too: what the same client begins there later goes to the same backend, and not
 * to another one's that its ESP could not be told apart from.
 */
__noinline int bind_start(struct scene *scene, __u32 port, __u32 backend)
{
	struct session *session;
	__u32 now_port;

	if (!scene)
		return 0;
	now_port = scene->message.port;
	scene->message.port = port;
	session = session_at(look_for(scene, SESSION_ENDPOINT));
	if (!is_taken(scene, session) ||
	    !backend_takes_called(session_read(session).backend, WANTED_FOR_STARTS, scene->now))
		bind(scene, SESSION_ENDPOINT, SESSION_ESTABLISHED, backend, scene->message.initiator_spi, true);
	scene->message.port = now_port;
	return 0;
}

/*
 * Binds the packet's endpoint to its SA, whoever had it. `replaces` says that another SA's client is this one's, so that
 * SA is not to take the endpoint back: it has been rekeyed or replaced, or it is another connection, which goes to the
 * same backend anyway.
 */
__noinline int take_endpoint(struct scene *scene, __u32 backend, bool replaces)
{
	struct session *other;
	struct session_meta meta;

	if (!scene)
		return 0;
	other = session_at(look_for(scene, SESSION_ENDPOINT));
	if (replaces && other && other->initiator_spi && other->initiator_spi != scene->message.initiator_spi) {
		other = session_at(look_for_sa(scene, other->initiator_spi));
		/* Elsewhere it is another client's, which has had this address before. */
		if (other && address_equal(&other->client, &scene->message.client)) {
			meta = session_read(other);
			other->detail |= SA_REPLACED;
			if (session_is_established(meta))
				session_change(other, SESSION_LEARNED, meta.backend);
		}
	}
	bind(scene, SESSION_ENDPOINT, SESSION_ESTABLISHED, backend, scene->message.initiator_spi, true);
	return 0;
}

/*
 * What the proof of an SA brings: it is established, and the endpoint and the address that it comes from now are bound to
 * it. Those of another SA are not, as who knows one pair of SPIs may put any source address before it; they are
 * when the backend answers there, in confirm_sa().
 */
__noinline int prove_sa(struct scene *scene)
{
	struct session *session;
	struct session_meta meta;
	bool first, moved, travelled;

	if (!scene)
		return 0;
	session = session_at(look_for(scene, SESSION_SA));
	if (!session)
		return 0;
	meta = session_read(session);
	if (session->detail & SA_REPLACED || !proves_return_path(session, &scene->message)) {
		if (!source_rate_allows(scene->message.client))
			return 0;
		bind(scene, SESSION_ENDPOINT, SESSION_LEARNED, meta.backend, scene->message.initiator_spi, false);
		bind(scene, SESSION_ADDRESS, SESSION_LEARNED, meta.backend, scene->message.initiator_spi, false);
		return 0;
	}
	first = !session_is_established(meta);
	travelled = !address_equal(&session->client, &scene->message.client);
	moved = travelled || (session->detail & SA_PORT) != scene->message.port;
	if (moved && !first && !source_rate_allows(scene->message.client))
		return 0;

	if (!is_taken(scene, session_at(look_for(scene, SESSION_ENDPOINT))))
		take_endpoint(scene, meta.backend, first && !travelled);
	bind(scene, SESSION_ADDRESS, SESSION_ESTABLISHED, meta.backend, scene->message.initiator_spi,
	     (first && !travelled) || !is_taken(scene, session_at(look_for(scene, SESSION_ADDRESS))));
	if (first && moved && !travelled)
		bind_start(scene, session->detail & SA_PORT, meta.backend);
	if (moved && !first)
		leave_behind(scene);
	if (moved || first) {
		session->client = scene->message.client;
		session->detail = scene->message.port | (first && !travelled ? SA_AT_HOME : 0);
	}
	if (first)
		session_change(session, SESSION_ESTABLISHED, meta.backend);
	return 0;
}

/*
 * The backend of a proven SA answers where its client was last seen, with a message that is encrypted. What another SA has
 * there becomes this one's.
 */
__noinline int confirm_sa(struct scene *scene)
{
	struct session *session, *other;
	struct session_meta meta;

	if (!scene)
		return 0;
	session = session_at(look_for(scene, SESSION_SA));
	if (!session || session->detail & SA_REPLACED || (session->detail & SA_PORT) != scene->message.port ||
	    !address_equal(&session->client, &scene->message.client))
		return 0;
	meta = session_read(session);
	if (!session_is_established(meta) || !may_be_from(scene->source_mac, meta.backend) ||
	    !is_taken(scene, session_at(look_for(scene, SESSION_ENDPOINT))))
		return 0;
	take_endpoint(scene, meta.backend, session->detail & SA_AT_HOME);
	other = session_at(look_for(scene, SESSION_ADDRESS));
	if (!other || session_read(other).backend != meta.backend)
		bind(scene, SESSION_ADDRESS, SESSION_ESTABLISHED, meta.backend, scene->message.initiator_spi, true);
	return 0;
}

/* An IKE packet of an SA that is known. False where its backend has gone, or where it is not that SA's packet. */
static __always_inline bool decide_sa(struct scene *scene, __s64 place, struct session *session)
{
	const struct message *message = &scene->message;
	struct session_meta meta = session_read(session);

	if (backend_is_left(meta.backend, scene->now))
		return false;
	/*
	 * The client speaks to a responder that is not this SA's, before that one has won: its start went by hash before
	 * it was repeated, and was answered there.
	 */
	if (lb_config.return_path == LB_RETURN_HERE && session_state(meta) == SESSION_EMBRYONIC &&
	    !(session->detail & SA_OF_BACKEND) && message->responder_spi &&
	    session->responder_spi != message->responder_spi)
		return false;
	decide_by_entry(scene, place, session, meta, LB_BECAUSE_SA);
	/* A learned SA, which is nobody's proof, may still say where nobody else is. */
	scene->decision.proves =
		session_state(meta) == SESSION_LEARNED ||
		(proves_return_path(session, message) &&
		 (!session_is_established(meta) || meta.last_seen != scene->now ||
		  (session->detail & SA_PORT) != message->port || !address_equal(&session->client, &message->client)));
	return true;
}

/* The first packet of an SA, at `bound` if its endpoint is bound to that. False, with the reason, where it has no entry. */
static __always_inline bool decide_new_sa(struct scene *scene, __u32 bound)
{
	const struct message *message = &scene->message;
	int refused = start_refused(&message->client, scene->bytes, scene->now);
	enum lb_reason reason = LB_BECAUSE_ENDPOINT;
	__u32 backend = bound;
	struct session *address;

	if (refused) {
		scene->decision.reason = refused;
		return false;
	}
	if (backend >= LB_BACKENDS_MAX) {
		backend = pick_for_start(&message->client, scene->now);
		reason = LB_BECAUSE_POLICY;
	}
	if (!decide_new(scene, SESSION_SA, backend, reason)) {
		scene->decision.reason = LB_BECAUSE_FULL;
		return false;
	}
	if (scene->decision.verdict != LB_NEW)
		return true;
	address = session_at(look_for(scene, SESSION_ADDRESS));
	if (!address || session_state(session_read(address)) == SESSION_EMBRYONIC)
		bind(scene, SESSION_ADDRESS, SESSION_EMBRYONIC, scene->decision.backend, message->initiator_spi, true);
	return true;
}

/* IKE whose SA has no entry, or one that does not count: by the endpoint that it comes from. */
static __always_inline void decide_ike_by_endpoint(struct scene *scene, bool known)
{
	const struct message *message = &scene->message;
	enum lb_reason otherwise = LB_BECAUSE_HASH;
	__s64 place = look_for_endpoint(scene);
	struct session *session = session_at(place);
	struct session_meta meta = {};

	if (session) {
		meta = session_read(session);
		if (backend_is_left(meta.backend, scene->now)) {
			session = NULL;
			otherwise = LB_BECAUSE_DOWN;
		}
	}
	if (message->starts_sa && !known) {
		bool follows = session && backend_takes(meta.backend, WANTED_FOR_STARTS, scene->now);

		if (decide_new_sa(scene, follows ? meta.backend : LB_BACKENDS_MAX))
			return;
		/* What follows on this start has an SPI that nobody knows, so it goes by the endpoint, and so does the start. */
		otherwise = scene->decision.reason;
	}
	if (!session) {
		decide_by_hash_called(scene, otherwise);
		return;
	}
	decide_by_entry(scene, place, session, meta, LB_BECAUSE_ENDPOINT);
	/* An SA that goes on from one that is bound here, as after a rekey. */
	if (!known && message->initiator_spi && message->responder_spi && source_rate_allows(message->client))
		bind(scene, SESSION_SA, SESSION_LEARNED, meta.backend, message->initiator_spi, false);
}

__noinline int decide_ike(struct scene *scene)
{
	__u32 labelled = LB_BACKENDS_MAX;
	struct session *session;
	__s64 place;

	if (!scene)
		return 0;
	place = look_for(scene, SESSION_SA);
	session = session_at(place);
	if (!(session && session_has_spis(session, &scene->message)))
		labelled = backend_of_ike_label(scene);
	if (session && (labelled >= LB_BACKENDS_MAX || session_read(session).backend == labelled) &&
	    decide_sa(scene, place, session))
		return 0;
	if (labelled < LB_BACKENDS_MAX)
		decide_stateless(labelled, LB_BECAUSE_LABEL, &scene->decision);
	else
		decide_ike_by_endpoint(scene, session != NULL);
	return 0;
}

/*
 * What is done once a second for an entry that ESP came by: the SA that it belongs to lives as long as its ESP does, and
 * the SPI is noted, to find the tunnel by when NAT gives it another port.
 */
static __always_inline void tend_esp(struct scene *scene, const struct session *session, __u32 backend)
{
	__be64 initiator_spi = session->initiator_spi;
	struct session *other;

	if (initiator_spi) {
		other = session_at(look_for_sa(scene, initiator_spi));
		if (other)
			session_refresh(other, session_read(other), scene->now);
	}
	other = session_at(look_for(scene, SESSION_ADDRESS));
	if (other)
		session_refresh(other, session_read(other), scene->now);
	if (scene->message.spi < SPI_FIRST)
		return;
	other = session_at(look_for(scene, SESSION_ESP));
	if (other)
		session_refresh(other, session_read(other), scene->now);
	else if (source_rate_allows(scene->message.client))
		bind(scene, SESSION_ESP, SESSION_LEARNED, backend, initiator_spi, false);
}

/* ESP that its own entry, the endpoint's or the SPI's, does not decide, or that has something to tend. */
__noinline int decide_esp(struct scene *scene)
{
	const struct message *message;
	struct session_meta meta;
	struct session *session;
	bool binds = false;
	__s64 place;

	if (!scene)
		return 0;
	message = &scene->message;
	scene->decision.reason = message->port ? LB_BECAUSE_ENDPOINT : LB_BECAUSE_ESP;
	place = SESSION_NOWHERE;
	if (!scene->decision.missed)
		place = message->port ? look_for(scene, SESSION_ENDPOINT) : look_for(scene, SESSION_ESP);
	if (place == SESSION_NOWHERE) {
		/* NAT may have given the tunnel another port; plain ESP has the newest SA of its address. */
		scene->decision.reason = message->port ? LB_BECAUSE_ESP : LB_BECAUSE_ADDRESS;
		place = message->port ? look_for(scene, SESSION_ESP) : look_for(scene, SESSION_ADDRESS);
		binds = message->port;
	}
	if (place == SESSION_NOWHERE && message->port) {
		scene->decision.reason = LB_BECAUSE_ENDPOINT;
		place = look_for_endpoint(scene);
	}
	session = session_at(place);
	if (!session)
		goto by_hash;
	meta = session_read(session);
	if (scene->decision.reason == LB_BECAUSE_ADDRESS && session_state(meta) == SESSION_EMBRYONIC)
		goto by_hash;
	if (backend_is_left(meta.backend, scene->now)) {
		decide_by_hash_called(scene, LB_BECAUSE_DOWN);
		return 0;
	}
	tend_esp(scene, session, meta.backend);
	if (message->port && !binds)
		session->responder_spi = session->responder_spi << 32 | message->spi;
	if (binds && source_rate_allows(message->client))
		bind(scene, SESSION_ENDPOINT, SESSION_LEARNED, meta.backend, session->initiator_spi, false);
	decide_by_entry(scene, place, session, meta, scene->decision.reason);
	return 0;

by_hash:
	decide_by_hash_slot(&message->client, &scene->decision);
	return 0;
}

/* What names no tunnel: by its endpoint if it has one, or else by its address. */
__noinline int decide_rest(struct scene *scene)
{
	const struct message *message;
	struct session_meta meta;
	struct session *session;
	__s64 place = SESSION_NOWHERE;

	if (!scene)
		return 0;
	message = &scene->message;
	scene->decision.reason = LB_BECAUSE_ENDPOINT;
	if (message->port)
		place = look_for_endpoint(scene);
	if (place == SESSION_NOWHERE && message->kind == KIND_KEEPALIVE) {
		scene->decision.verdict = LB_KEEPALIVE_DROPPED;
		return 0;
	}
	if (place == SESSION_NOWHERE) {
		place = look_for(scene, SESSION_ADDRESS);
		scene->decision.reason = LB_BECAUSE_ADDRESS;
	}
	session = session_at(place);
	if (!session) {
		if (message->kind == KIND_ECHO_REQUEST)
			decide_start(scene, SESSION_ADDRESS);
		else
			decide_by_hash_called(scene, LB_BECAUSE_HASH);
		return 0;
	}
	meta = session_read(session);
	if (backend_is_left(meta.backend, scene->now))
		decide_by_hash_called(scene, LB_BECAUSE_DOWN);
	else
		decide_by_entry(scene, place, session, meta, scene->decision.reason);
	return 0;
}

/* decide_by_tunnel() for what takes more than a look at one entry. */
static __always_inline void decide_by_tunnel_more(struct scene *scene)
{
	if (scene->message.kind == KIND_IKE) {
		decide_ike(scene);
		if (scene->decision.proves)
			prove_sa(scene);
	} else if (scene->message.kind == KIND_ESP) {
		decide_esp(scene);
	} else {
		decide_rest(scene);
	}
}

/*
 * Whether the (address, SPI) of ESP in UDP has been noted. The entry of an endpoint has the last two SPIs that were, where others
 * have a responder's.
 */
static __always_inline bool is_noted(const struct session *endpoint, __u32 spi)
{
	return (__u32)endpoint->responder_spi == spi || endpoint->responder_spi >> 32 == spi;
}

/* IKE of an established SA at its place, with nothing to learn or to bind: as decide_by_tunnel(). */
static __always_inline bool decide_settled_sa(const struct message *message, __u32 now, __u32 ingress,
					      struct decision *decision, struct session **session)
{
	struct session_key key = session_key_of_sa(message->initiator_spi);
	struct session *found = session_at(session_look(&key, now));
	struct session_meta meta;

	if (!found)
		return false;
	meta = session_read(found);
	if (meta.last_seen != now || meta.ingress != ingress || !session_is_established(meta) ||
	    !session_has_spis(found, message) || (found->detail & SA_PORT) != message->port ||
	    !address_equal(&found->client, &message->client))
		return false;
	decision->verdict = LB_SESSION;
	decision->reason = LB_BECAUSE_SA;
	decision->backend = meta.backend;
	*session = found;
	return true;
}

/*
 * A packet from the client side that is for a backend. False where decide_by_tunnel_more() has to decide. *session is
 * the entry that it counts for.
 */
static __always_inline bool decide_by_tunnel(struct xdp_md *ctx, const struct packet *packet,
					     const struct message *message, __u32 now, struct decision *decision,
					     struct session **session)
{
	struct session_key key = session_key_of_esp(&message->client, message->spi);
	enum lb_reason reason = LB_BECAUSE_ESP;
	__u32 ingress = ingress_index(ctx), backend;
	struct session_meta meta;
	struct session *found;

	if (decide_by_esp_label(message, packet->bytes, now, decision))
		return true;
	if (message->kind == KIND_LATER_FRAGMENT && fragment_recall(packet, now, &backend)) {
		decide_stateless(backend, LB_BECAUSE_FRAGMENT, decision);
		return true;
	}
	if (message->kind == KIND_IKE)
		return decide_settled_sa(message, now, ingress, decision, session);
	if (message->kind != KIND_ESP)
		return false;
	if (message->port) {
		key = session_key_of_endpoint(&message->client, message->port);
		reason = LB_BECAUSE_ENDPOINT;
	}
	found = session_find(&key, now, &meta);
	decision->missed = !found;
	if (!found || meta.last_seen != now || meta.ingress != ingress)
		return false;
	if (reason == LB_BECAUSE_ENDPOINT && !is_noted(found, message->spi))
		return false;
	decision->verdict = LB_SESSION;
	decision->reason = reason;
	decision->backend = meta.backend;
	*session = found;
	return true;
}

/*
 * IKE from a backend with an SPI that is not known. It begins an SA, or goes on with a rekeyed one at an endpoint that is
 * bound to this backend: then it shows both SPIs.
 */
static __always_inline void hear_new_sa(struct scene *scene)
{
	const struct message *message = &scene->message;
	struct session *session = session_at(look_for(scene, SESSION_ENDPOINT));
	struct session_meta meta;

	if (session) {
		meta = session_read(session);
		scene->ingress = meta.ingress;
	}
	if (message->starts_sa) {
		learn_client(scene, SESSION_SA, SESSION_EMBRYONIC);
		session = session_at(look_for(scene, SESSION_SA));
		if (session)
			session->detail |= SA_OF_BACKEND;
	} else if (session && meta.backend == scene->sender && message->responder_spi && !message->notifies) {
		entry_for(scene, SESSION_SA, SESSION_LEARNED, scene->sender);
		session = session_at(session_put(&scene->entry));
		if (session)
			session->responder_spi = message->responder_spi;
	}
}

/* A packet from a backend: `scene->ingress` becomes the place where its client was last seen, if anyone knows. */
__noinline int hear_by_tunnel_more(struct scene *scene)
{
	const struct message *message;
	enum session_kind kind = SESSION_ADDRESS;
	struct session_meta meta;
	struct session *session;

	if (!scene)
		return 0;
	message = &scene->message;
	if (message->kind == KIND_IKE)
		kind = SESSION_SA;
	else if (message->port)
		kind = SESSION_ENDPOINT;
	session = session_at(look_for(scene, kind));
	if (session) {
		meta = session_read(session);
		scene->ingress = meta.ingress;
		session_refresh(session, meta, scene->now);
		if (kind == SESSION_SA && message->responder_spi && !message->notifies &&
		    !session_is_established(meta) && may_be_from(scene->source_mac, meta.backend))
			session->responder_spi = message->responder_spi;
		scene->decision.proves = kind == SESSION_SA && message->encrypted;
		return 0;
	}
	/* Where anything else from that address was last seen. */
	session = kind == SESSION_ADDRESS ? NULL : session_at(look_for(scene, SESSION_ADDRESS));
	if (session)
		scene->ingress = session_read(session).ingress;
	if (kind == SESSION_SA) {
		hear_new_sa(scene);
	} else if (message->kind == KIND_ESP) {
		learn_client(scene, kind, SESSION_ESTABLISHED);
		if (!session)
			learn_client(scene, SESSION_ADDRESS, SESSION_ESTABLISHED);
	}
	return 0;
}

/* The same for what an endpoint or address that is known decides; *more says whether hear_by_tunnel_more() has to. */
static __always_inline __u32 hear_by_tunnel(const struct message *message, __u32 now, bool *more)
{
	struct session_key key = session_key_of_address(&message->client);
	struct session_meta meta;
	struct session *session;

	*more = true;
	if (message->kind == KIND_IKE)
		return LB_INGRESS_UNKNOWN;
	if (message->port)
		key = session_key_of_endpoint(&message->client, message->port);
	session = session_find(&key, now, &meta);
	if (!session)
		return LB_INGRESS_UNKNOWN;
	session_refresh(session, meta, now);
	*more = false;
	return meta.ingress;
}
