// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The load balancer: IPsec tunnels of clients, spread over VPN concentrators ("backends") that all own
 * the same address.
 *
 * lb_client runs on the interfaces towards the clients, lb_backend on those towards the backends.
 * A frame that goes to a backend gets its MAC as destination and nothing else changed: the balancer is a
 * bump in the wire, checksums and AH stay valid, the TTL stays.
 *
 * All protocols of a client, IKE on both ports, ESP, AH, ESP in UDP and ping, go to one backend. What one client is,
 * an address or an IKE SA, is --affinity's to say: lb/by_address.h and lb/by_tunnel.h. Its first IKE packet or ping
 * gives it a session (session.h), at the backend that the policy chooses (lb/backends.h).
 * What comes without a session belongs to a tunnel that this balancer has not seen begin, or has had no room for:
 * it goes by a consistent hash of the client's address, so that all of such a tunnel goes one way too (lb/decision.h).
 * Nothing of a tunnel is dropped while a backend is there.
 *
 * Each packet ends in one enum lb_verdict, counted once, in leave() or refuse().
 */
#include "lb.h"

/* The first of the read-only data in every version, for user space of another version to tell that it is another. */
const volatile __u32 lb_layout = LB_LAYOUT;

#include "lb/by_address.h"
#include "lb/by_tunnel.h"

static __always_inline enum lb_verdict other_verdict(void)
{
	return lb_config.other == LB_OTHER_PASS ? LB_OTHER_PASSED : LB_OTHER_DROPPED;
}

/*
 * ARP, ND and MLD: group addressed frames reach every backend, so that none is a single point of failure.
 * What is for one MAC goes to the backend that has it; to all if none is known to.
 */
static __always_inline void decide_neighbour(const struct ethhdr *eth, struct decision *decision)
{
	decision->verdict = LB_NEIGHBOUR;
	decision->to_all = true;
	if (!(eth->h_dest[0] & 1)) {
		__u64 key = mac_key(eth->h_dest);
		__u32 *index = bpf_map_lookup_elem(&backend_macs, &key);
		struct lb_backend *backend = index ? backend_get(*index) : NULL;

		if (backend) {
			decision->to_all = false;
			decision->port = backend->port;
		}
	}
}

static __always_inline bool is_vip(const struct address *address)
{
	if (!lb_config.vip_count)
		return true;
	for (__u32 i = 0; i < LB_VIPS_MAX && i < lb_config.vip_count; i++) {
		if (lb_config.vips[i].words[0] == address->words[0] && lb_config.vips[i].words[1] == address->words[1])
			return true;
	}
	return false;
}

/* The scene of a packet, for functions that are not inlined. */
static __always_inline struct scene *scene_set(struct xdp_md *ctx, const struct message *message, __u32 now)
{
	struct scene *scene = scene_get();

	if (!scene)
		return NULL;
	/* Field by field, so that the message need not lie in memory before it is known to be wanted here. */
	scene->message.client = message->client;
	scene->message.initiator_spi = message->initiator_spi;
	scene->message.responder_spi = message->responder_spi;
	scene->message.kind = message->kind;
	scene->message.spi = message->spi;
	scene->message.port = message->port;
	scene->message.starts_sa = message->starts_sa;
	scene->message.notifies = message->notifies;
	scene->message.of_initiator = message->of_initiator;
	scene->message.encrypted = message->encrypted;
	scene->decision = (struct decision){.place = SESSION_NOWHERE};
	scene->source_mac = 0;
	scene->now = now;
	scene->bytes = frame_bytes(ctx);
	scene->sender = LB_BACKENDS_MAX;
	scene->ingress = LB_INGRESS_UNKNOWN;
	return scene;
}

/* A packet of a tunnel, or of a client about to have one. *session is the entry that it counts for. */
static __always_inline void decide_tunnel(struct xdp_md *ctx, const struct packet *packet,
					  const struct message *message, __u32 now, struct decision *decision,
					  struct session **session)
{
	bool by_tunnel = lb_config.affinity == LB_BY_TUNNEL;
	struct scene *scene;

	if (by_tunnel ? decide_by_tunnel(ctx, packet, message, now, decision, session)
		      : decide_by_address(ctx, packet, message, now, decision, session))
		return;
	decision->verdict = LB_NO_BACKEND;
	scene = scene_set(ctx, message, now);
	if (!scene)
		return;
	scene->ingress = ingress_index(ctx);
	scene->decision.missed = decision->missed;
	if (by_tunnel)
		decide_by_tunnel_more(scene);
	else
		decide_by_address_more(scene);
	*decision = scene->decision;
	*session = session_at(decision->place);
}

static __always_inline void decide_client(struct xdp_md *ctx, const struct packet *packet,
					  const struct message *message, const struct ethhdr *eth, __u32 now,
					  struct decision *decision, struct session **session)
{
	if (message->kind == KIND_NEIGHBOUR) {
		decide_neighbour(eth, decision);
		return;
	}
	if (!is_vip(&packet->destination)) {
		decision->verdict = other_verdict();
		return;
	}
	decide_tunnel(ctx, packet, message, now, decision, session);
}

/* What a backend's packet tells of its client; returns where that was last seen, or LB_INGRESS_UNKNOWN. */
static __always_inline __u32 hear_answer(struct xdp_md *ctx, const struct message *message, const struct ethhdr *eth,
					 __u32 now, __u32 sender)
{
	bool by_tunnel = lb_config.affinity == LB_BY_TUNNEL, more = false;
	struct scene *scene;
	__u32 ingress;

	check_label(message, sender, frame_bytes(ctx));
	ingress = by_tunnel ? hear_by_tunnel(message, now, &more) : hear_by_address(message, now, &more);
	if (!more)
		return ingress;
	scene = scene_set(ctx, message, now);
	if (!scene)
		return ingress;
	scene->sender = sender;
	scene->source_mac = mac_key(eth->h_source);
	scene->ingress = ingress;
	if (by_tunnel) {
		hear_by_tunnel_more(scene);
		if (scene->decision.proves)
			confirm_sa(scene);
	} else {
		hear_by_address_more(scene);
	}
	return scene->ingress;
}

/* What a backend sends to a client goes back to where that was last seen. */
static __always_inline void decide_backend(struct xdp_md *ctx, const struct message *message, const struct ethhdr *eth,
					   __u32 now, struct decision *decision)
{
	__u32 sender = hear_backend(ctx, eth, now);
	__u32 ingress = LB_INGRESS_UNKNOWN;

	decision->verdict = LB_NEIGHBOUR;
	if (message->kind != KIND_NEIGHBOUR) {
		decision->verdict = LB_RETURNED;
		ingress = hear_answer(ctx, message, eth, now, sender);
	}
	/* Like a switch that does not know a MAC: to all ports, behind one of which is whose MAC it is. */
	if (ingress == LB_INGRESS_UNKNOWN)
		decision->to_all = lb_config.ingress_count > 1;
	else
		decision->port = ingress;
}

/* Where packets go whose backend takes none, if that is no reason to drop them. Those without a session never wait for one. */
__noinline __u32 pick_instead(const struct address *client, __u32 index, enum lb_reason reason, __u32 now)
{
	if (!client || (reason != LB_BECAUSE_HASH && !backend_is_left(index, now)))
		return LB_BACKENDS_MAX;
	return pick_by_hash(client, WANTED_FOR_PACKETS, now);
}

/* Gives the frame the MAC of its backend, if that takes packets. */
static __always_inline bool address_to(struct ethhdr *eth, const struct message *message, __u32 now,
				       struct decision *decision)
{
	struct lb_backend *backend = backend_get(decision->backend);
	struct lb_station station;

	if (!backend)
		return false;
	station = station_read(backend);
	if (!station_takes_packets(backend, station, now))
		return false;
	set_destination_mac(eth, station.mac);
	decision->port = backend->port;
	if (lb_config.down_after && message_starts(message))
		backend_ask(backend, now);
	return true;
}

/*
 * Addresses the frame to its backend. One that takes no packets makes the verdict LB_NO_BACKEND, unless the packets of
 * its sessions go to others meanwhile.
 */
static __always_inline void address_to_backend(struct ethhdr *eth, const struct message *message, __u32 now,
					       struct decision *decision, struct session **session)
{
	enum lb_reason reason = decision->reason;
	struct address client;
	__u32 backend;

	if (address_to(eth, message, now, decision))
		return;
	client = message->client;
	backend = pick_instead(&client, decision->backend, reason, now);
	decide_stateless(backend, reason == LB_BECAUSE_HASH ? reason : LB_BECAUSE_DOWN, decision);
	*session = NULL;
	if (decision->verdict == LB_STATELESS && !address_to(eth, message, now, decision))
		decision->verdict = LB_NO_BACKEND;
}

/* Says what became of a packet, where somebody has asked. */
static __always_inline void explain(const struct decision *decision, enum lb_verdict verdict)
{
	struct lb_explained *told;
	__u32 zero = 0;

	if (!lb_config.explain)
		return;
	told = bpf_map_lookup_elem(&explained, &zero);
	if (!told)
		return;
	told->verdict = verdict;
	told->reason = decision ? decision->reason : LB_BECAUSE_VERDICT;
	told->backend = decision && goes_to_one_backend(decision->verdict) ? decision->backend : LB_BACKENDS_MAX;
	told->port = decision ? decision->port : 0;
	told->to_all = decision ? decision->to_all : 0;
}

/* The XDP action for a packet that is not forwarded, once it is counted. */
static __always_inline int refuse(enum lb_verdict verdict, __u32 bytes)
{
	counter_add(&verdicts, verdict, bytes);
	return verdict == LB_OTHER_PASSED ? XDP_PASS : XDP_DROP;
}

/*
 * Carries out a decision, counts it, and gives the XDP action that belongs to it. `ports` are those of the other side.
 * With refuse(), the only place where verdicts become actions.
 */
static __always_inline int leave(struct decision *decision, struct session *session, void *ports, __u32 bytes)
{
	long action;

	if (!is_forwarded(decision->verdict)) {
		explain(decision, decision->verdict);
		return refuse(decision->verdict, bytes);
	}
	if (decision->to_all)
		action = bpf_redirect_map(ports, 0, BPF_F_BROADCAST);
	else
		action = bpf_redirect_map(ports, decision->port, XDP_DROP);
	if (action != XDP_REDIRECT) {
		explain(decision, LB_NO_BACKEND);
		return refuse(LB_NO_BACKEND, bytes);
	}

	explain(decision, decision->verdict);
	counter_add(&verdicts, decision->verdict, bytes);
	if (goes_to_one_backend(decision->verdict)) {
		counter_add(&backend_counters, decision->backend, bytes);
		if (session)
			session_count(session, bytes);
	}
	return action;
}

/* refuse() before anything was decided. */
static __always_inline int refuse_early(enum lb_verdict verdict, __u32 bytes)
{
	explain(NULL, verdict);
	return refuse(verdict, bytes);
}

/* Both programs but for what they decide by. */
static __always_inline int handle(struct xdp_md *ctx, enum side side, void *ports)
{
	/* Not zeroed, as what is dropped below would pay for it; parse_frame() and classify() say what they set. */
	struct packet packet;
	struct message message;
	struct decision decision = {};
	struct session *session = NULL;
	__u32 bytes = frame_bytes(ctx), now;
	struct ethhdr *eth;
	__u64 zero;

	if (!parse_frame(ctx, &packet, ONE_BUFFER))
		return refuse_early(LB_MALFORMED, bytes);
	classify(&packet, &message, side);
	if (message.kind == KIND_MALFORMED)
		return refuse_early(LB_MALFORMED, bytes);
	if (message.kind == KIND_OTHER || (side == SIDE_CLIENT && message.kind == KIND_ICMP_OTHER))
		return refuse_early(other_verdict(), bytes);

	/* What the decision branches on, and the frame: all that is known of them until here is forgotten. */
	zero = unknown_zero();
	message.kind += zero;
	message.starts_sa += zero;
	message.responder_spi += zero;
	packet.fragment += zero;
	if (lb_config.affinity == LB_BY_TUNNEL) {
		message.port += zero;
		message.spi += zero;
	}
	eth = (void *)(long)READ_ONCE(ctx->data);
	if ((void *)(eth + 1) > (void *)(long)READ_ONCE(ctx->data_end))
		return refuse_early(LB_MALFORMED, bytes);

	now = clock_seconds();
	if (side == SIDE_CLIENT)
		decide_client(ctx, &packet, &message, eth, now, &decision, &session);
	else
		decide_backend(ctx, &message, eth, now, &decision);
	if (goes_to_one_backend(decision.verdict)) {
		address_to_backend(eth, &message, now, &decision, &session);
		if (packet.fragment == FRAGMENT_FIRST && goes_to_one_backend(decision.verdict))
			fragment_remember(&packet, decision.backend, now);
	}
	return leave(&decision, session, ports, bytes);
}

SEC("xdp")
int lb_client(struct xdp_md *ctx)
{
	return handle(ctx, SIDE_CLIENT, &egress_ports);
}

SEC("xdp")
int lb_backend(struct xdp_md *ctx)
{
	return handle(ctx, SIDE_BACKEND, &ingress_ports);
}

/* What lb_import is run on: an entry for the session table. */
struct lb_import {
	struct session_entry entry;
	__be64 responder_spi;
	__u64 packets;
	__u64 bytes;
	__u32 created; /* seconds of CLOCK_MONOTONIC */
	__u32 padding;
};

/* What lb_import returns, of the XDP actions. */
enum lb_import_result {
	LB_IMPORT_FAILED = XDP_ABORTED, /* the frame is no struct lb_import */
	LB_IMPORT_NO_ROOM = XDP_DROP,
	LB_IMPORT_DONE = XDP_PASS,
};

struct lb_import_types {
	struct lb_import import;
	enum lb_import_result result;
};

const volatile struct lb_import_types lb_import_types;

/*
 * Puts one entry into the session table, for user space, which cannot hold a bucket's lock. Never attached: it is run by
 * BPF_PROG_TEST_RUN, on a struct lb_import where others have a frame.
 */
SEC("xdp")
int lb_import(struct xdp_md *ctx)
{
	struct lb_import *given = (void *)(long)ctx->data;
	struct session_entry entry;
	struct session *session;

	if ((void *)(given + 1) > (void *)(long)ctx->data_end)
		return LB_IMPORT_FAILED;
	entry = given->entry;
	session = session_at(session_put(&entry));
	given = (void *)(long)READ_ONCE(ctx->data);
	if ((void *)(given + 1) > (void *)(long)READ_ONCE(ctx->data_end))
		return LB_IMPORT_FAILED;
	if (!session)
		return LB_IMPORT_NO_ROOM;
	session->responder_spi = given->responder_spi;
	session->packets = given->packets;
	session->bytes = given->bytes;
	session->created = given->created;
	return LB_IMPORT_DONE;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
