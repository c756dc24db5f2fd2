// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The load balancer: IPsec tunnels of clients, spread over VPN concentrators ("backends") that all own
 * the same address.
 *
 * lb_client runs on the interfaces towards the clients, lb_backend on those towards the backends.
 * A frame that goes to a backend gets its MAC as destination and nothing else changed: the balancer is a
 * bump in the wire, checksums and AH stay valid, the TTL stays.
 *
 * A client is its IP address. All its protocols, IKE on both ports, ESP, AH, ESP in UDP and ping, go to
 * one backend. Its first IKE packet or ping gives it a session (session.h), at the next backend in turn.
 * What comes without a session belongs to a tunnel that this balancer has not seen begin, or has had no room for:
 * it goes by a consistent hash of the client's address, so that all of such a tunnel goes one way too.
 * Nothing of a tunnel is dropped while a backend is there.
 *
 * Each packet ends in one enum lb_verdict, counted once, in leave() or refuse().
 */
#include "lb.h"

/* The first of the read-only data in every version, for user space of another version to tell that it is another. */
const volatile __u32 lb_layout = LB_LAYOUT;

#include "clock.h"
#include "common.h"
#include "counters.h"
#include "ipsec.h"
#include "rate.h"
#include "rewrite.h"
#include "session.h"

/*
 * Configuration. The defaults make a working balancer, so that a static check of the object walks
 * the paths that real ones walk.
 */
const volatile struct lb_config lb_config = {
	.ingress_count = 2,
	.vip_count = 1,
	.start_interval = 50000,
	.source_interval = 1000000,
};

/*
 * Types that no map names, here so that the generated skeleton has them. Aligned, so that the read-only data
 * ends where Rust's idea of it does.
 */
struct lb_types {
	enum lb_verdict verdict;
	enum lb_unplaced unplaced;
	enum lb_limits limits;
} __attribute__((aligned(8)));

const volatile struct lb_types lb_types;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, struct lb_backend);
} backends SEC(".maps");

/* Which backend owns a MAC; the key holds its six bytes in wire order, then two zero bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * LB_BACKENDS_MAX);
	__type(key, __u64);
	__type(value, __u32);
} backend_macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_runtime);
} runtime SEC(".maps");

/* Backends in the order of their turns, each as often as its weight asks for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_RING_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ring SEC(".maps");

/* Maglev's lookup table: the backend for each value of the consistent hash. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_HASH_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} hash_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_INTERFACES);
	__type(key, __u32);
	__type(value, struct lb_interface);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, LB_INGRESS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} ingress_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, __u32);
} egress_ports SEC(".maps");

/* Where the first fragment of a packet went. Old ones make room by themselves. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LB_FRAGMENTS_MAX);
	__type(key, struct lb_fragment_key);
	__type(value, struct lb_fragment);
} fragments SEC(".maps");

/*
 * Token buckets of sources, by a hash of the source. Two sources may share one, which costs them nothing until
 * one of them floods; an attacker cannot know whom they share with.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LB_SOURCES);
	__type(key, __u32);
	__type(value, __u64);
} source_rates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_VERDICTS);
	__type(key, __u32);
	__type(value, struct counter);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_UNPLACED);
	__type(key, __u32);
	__type(value, struct counter);
} unplaced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_BACKENDS_MAX);
	__type(key, __u32);
	__type(value, struct counter);
} backend_counters SEC(".maps");

/* RFC 8200, section 4.5: a packet whose fragments have not come together after 60 seconds is given up. */
#define FRAGMENT_SECONDS 60
/* How often the schedule or the hash is asked again when it names a backend that takes nothing. */
#define PICK_TRIES 16
/* Balancers side by side must hash alike, so this seed is no secret. */
#define PUBLIC_SEED 0x6c62ULL

/* What is decided about a frame. */
struct decision {
	enum lb_verdict verdict;
	__u32 backend;           /* LB_SESSION, LB_NEW, LB_STATELESS: index of the backend it goes to */
	struct session *session; /* LB_SESSION, LB_NEW: the client's */
	__u32 port;              /* LB_NEIGHBOUR, LB_RETURNED: key of the interface in the map of the other side, */
	bool to_all;             /* or all of them */
};

static __always_inline bool goes_to_one_backend(enum lb_verdict verdict)
{
	return verdict == LB_SESSION || verdict == LB_NEW || verdict == LB_STATELESS;
}

static __always_inline bool is_forwarded(enum lb_verdict verdict)
{
	return goes_to_one_backend(verdict) || verdict == LB_NEIGHBOUR || verdict == LB_RETURNED;
}

static __always_inline enum lb_verdict other_verdict(void)
{
	return lb_config.other == LB_OTHER_PASS ? LB_OTHER_PASSED : LB_OTHER_DROPPED;
}

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

static __always_inline bool backend_takes_packets(__u32 index)
{
	struct lb_backend *backend = backend_get(index);

	return backend && station_read(backend).state == LB_ACTIVE;
}

static __always_inline struct lb_runtime *runtime_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&runtime, &zero);
}

/*
 * The first backend that takes packets, for when the orderly ways of choosing one have not found any;
 * LB_BACKENDS_MAX where there is none.
 *
 * This function and others below are not inlined, and have external linkage, so that the verifier walks each once.
 */
__noinline __u32 pick_any(void)
{
	struct lb_runtime *rt = runtime_get();

	if (!rt)
		return LB_BACKENDS_MAX;
	for (__u32 i = 0; i < LB_BACKENDS_MAX && i < rt->backends; i++) {
		if (backend_takes_packets(i))
			return i;
	}
	return LB_BACKENDS_MAX;
}

static __always_inline __u32 hash_slot_get(__u64 hash)
{
	__u32 slot = hash_to_range(hash, LB_HASH_SLOTS);
	__u32 *index = bpf_map_lookup_elem(&hash_slots, &slot);

	return index ? *index : LB_BACKENDS_MAX;
}

/* pick_by_hash() where the hash's own backend takes no packets. Every balancer tries the same others in the same order. */
__noinline __u32 pick_by_next_hash(__u64 hash)
{
	for (int i = 0; i < PICK_TRIES; i++) {
		__u32 index;

		/* The linear congruence of Knuth's MMIX. */
		hash = hash * 6364136223846793005ULL + 1442695040888963407ULL;
		index = hash_slot_get(hash);
		if (backend_takes_packets(index))
			return index;
	}
	return pick_any();
}

/* The backend that `client` hashes to among those that take packets; LB_BACKENDS_MAX where none does. */
static __always_inline __u32 pick_by_hash(const struct address *client)
{
	__u64 hash = address_hash(client, PUBLIC_SEED);
	__u32 index = hash_slot_get(hash);

	return backend_takes_packets(index) ? index : pick_by_next_hash(hash);
}

/* The backend whose turn it is; LB_BACKENDS_MAX where none takes packets. */
__noinline __u32 pick_by_turn(void)
{
	struct lb_runtime *rt = runtime_get();

	if (!rt || !rt->ring_slots)
		return pick_any();
	for (int i = 0; i < PICK_TRIES; i++) {
		__u32 slot = __sync_fetch_and_add(&rt->ring_next, 1) % rt->ring_slots;
		__u32 *index = bpf_map_lookup_elem(&ring, &slot);

		if (index && backend_takes_packets(*index))
			return *index;
	}
	return pick_any();
}

/* Whether the rates allow one more new session. The source is asked first: its flood is not to use up what all share. */
static __always_inline bool rates_allow(struct address source, __u32 bytes)
{
	struct lb_runtime *rt = runtime_get();
	__u64 now = bpf_ktime_get_ns();
	__u64 *of_source;
	__u32 slot;

	/* IPv6 hosts are given whole /64s, so that is what counts as one source. */
	if (!address_is_v4(&source))
		source.words[1] = 0;
	slot = hash_to_range(address_hash(&source, session_config.seed), LB_SOURCES);
	of_source = bpf_map_lookup_elem(&source_rates, &slot);
	if (of_source && !rate_take(of_source, lb_config.source_interval, now)) {
		counter_add(&unplaced, LB_UNPLACED_SOURCE_RATE, bytes);
		return false;
	}
	if (rt && !rate_take(&rt->starts, lb_config.start_interval, now)) {
		counter_add(&unplaced, LB_UNPLACED_TOTAL_RATE, bytes);
		return false;
	}
	return true;
}

/* The entry of the interface `ifindex`, or NULL. */
static __always_inline struct lb_interface *interface_find(__u32 ifindex)
{
	__u32 first = (ifindex * LB_INTERFACE_FACTOR) >> LB_INTERFACE_SHIFT;

	for (__u32 i = 0; i < LB_INTERFACE_PROBES; i++) {
		__u32 slot = (first + i) % LB_INTERFACES;
		struct lb_interface *interface = bpf_map_lookup_elem(&interfaces, &slot);

		if (!interface || !interface->ifindex)
			return NULL;
		if (interface->ifindex == ifindex)
			return interface;
	}
	return NULL;
}

/* The index of the client-side interface that a frame came in on. */
static __always_inline __u8 ingress_index(const struct xdp_md *ctx)
{
	struct lb_interface *interface;

	if (lb_config.ingress_count == 1)
		return 0;
	interface = interface_find(ctx->ingress_ifindex);
	return interface ? interface->index : 0;
}

static __always_inline __u64 mac_key(const __u8 *mac)
{
	union station_word key = {};

	__builtin_memcpy(key.station.mac, mac, sizeof(key.station.mac));
	return key.word;
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

static __always_inline struct lb_fragment_key fragment_key(const struct packet *packet)
{
	return (struct lb_fragment_key){
		.source = packet->source,
		.destination = packet->destination,
		.id = packet->fragment_id,
		.protocol = packet->fragment_protocol,
	};
}

static __always_inline void fragment_remember(const struct packet *packet, __u32 backend, __u32 now)
{
	struct lb_fragment_key key = fragment_key(packet);
	struct lb_fragment fragment = {.backend = backend, .seen = now};

	bpf_map_update_elem(&fragments, &key, &fragment, BPF_ANY);
}

/* Whether the first fragment of this packet was seen: *backend is where it went. */
static __always_inline bool fragment_recall(const struct packet *packet, __u32 now, __u32 *backend)
{
	struct lb_fragment_key key = fragment_key(packet);
	struct lb_fragment *fragment = bpf_map_lookup_elem(&fragments, &key);

	if (!fragment || (__s32)(now - fragment->seen) > FRAGMENT_SECONDS)
		return false;
	*backend = fragment->backend;
	return true;
}

/* Whether an IKE packet of a client shows that the client has its backend's answer. */
static __always_inline bool proves_return_path(const struct session *session, const struct message *message)
{
	if (message->kind != KIND_IKE || !message->responder_spi)
		return false;
	if (lb_config.return_path == LB_RETURN_DIRECT)
		return true;
	return session->initiator_spi == message->initiator_spi && session->responder_spi == message->responder_spi;
}

/* A packet of a client that has a session. */
static __always_inline void decide_by_session(const struct xdp_md *ctx, const struct message *message,
					      struct session *session, struct session_meta meta, __u32 now,
					      struct decision *decision)
{
	decision->verdict = LB_SESSION;
	decision->backend = meta.backend;
	decision->session = session;
	session_refresh(session, meta, now);
	/* An ICMP error comes from some router, whose way here is no news about the client's. */
	if (lb_config.ingress_count > 1 && message->kind != KIND_ICMP_ERROR) {
		__u8 ingress = ingress_index(ctx);

		if (meta.ingress != ingress)
			WRITE_ONCE(session->meta.ingress, ingress);
	}
	if (meta.state == SESSION_EMBRYONIC) {
		if (message->starts_sa && session->initiator_spi != message->initiator_spi) {
			session->responder_spi = 0;
			session->initiator_spi = message->initiator_spi;
		}
		if (proves_return_path(session, message))
			session_establish(session);
	}
}

/*
 * A packet that may begin a session. False where the session could not be had: then the packet goes by hash, and
 * so will all that follow it.
 */
static __always_inline bool decide_new(const struct xdp_md *ctx, const struct message *message,
				       const struct address *client, __u32 now, struct decision *decision)
{
	struct session *session;
	__s64 place;
	__u32 backend;

	if (!rates_allow(*client, frame_bytes(ctx)))
		return false;
	if (session_table_full(now)) {
		counter_add(&unplaced, LB_UNPLACED_TABLE_FULL, frame_bytes(ctx));
		return false;
	}
	backend = lb_config.policy == LB_MAGLEV ? pick_by_hash(client) : pick_by_turn();
	if (backend >= LB_BACKENDS_MAX) {
		decision->verdict = LB_NO_BACKEND;
		return true;
	}
	place = session_insert(client, backend, ingress_index(ctx), now, message->initiator_spi);
	session = place == SESSION_NOWHERE ? NULL : session_at(place);
	if (!session) {
		counter_add(&unplaced, LB_UNPLACED_TABLE_FULL, frame_bytes(ctx));
		return false;
	}
	decision->verdict = LB_NEW;
	decision->backend = session_read(session).backend;
	decision->session = session;
	return true;
}

static __always_inline void decide_by_hash(const struct address *client, struct decision *decision)
{
	decision->backend = pick_by_hash(client);
	decision->verdict = decision->backend < LB_BACKENDS_MAX ? LB_STATELESS : LB_NO_BACKEND;
}

/* A packet of a tunnel, or of a client about to have one. */
static __always_inline void decide_tunnel(const struct xdp_md *ctx, const struct packet *packet,
					  const struct message *message, struct decision *decision)
{
	bool starts = message->starts_sa || message->kind == KIND_ECHO_REQUEST;
	__u32 now = clock_seconds();
	struct session_meta meta = {};
	struct session *session;

	session = session_find(&message->client, now, &meta);
	/* The first fragment went elsewhere than the session where it came before that, or quotes another client. */
	if (message->kind == KIND_LATER_FRAGMENT && fragment_recall(packet, now, &decision->backend) &&
	    (!session || meta.backend != decision->backend)) {
		decision->verdict = LB_STATELESS;
		return;
	}
	if (session)
		decide_by_session(ctx, message, session, meta, now, decision);
	else if (message->kind == KIND_KEEPALIVE)
		decision->verdict = LB_KEEPALIVE_DROPPED;
	else if (!starts || !decide_new(ctx, message, &message->client, now, decision))
		decide_by_hash(&message->client, decision);

	if (packet->fragment == FRAGMENT_FIRST && goes_to_one_backend(decision->verdict))
		fragment_remember(packet, decision->backend, now);
}

static __always_inline void decide_client(const struct xdp_md *ctx, const struct packet *packet,
					  const struct message *message, struct ethhdr *eth, struct decision *decision)
{
	if (message->kind == KIND_NEIGHBOUR)
		decide_neighbour(eth, decision);
	else if (!is_vip(&packet->destination))
		decision->verdict = other_verdict();
	else
		decide_tunnel(ctx, packet, message, decision);
}

/* Takes the source MAC of a frame as its backend's, if no MAC of that was known. */
static __always_inline void learn_mac(struct lb_backend *backend, __u32 index, const struct ethhdr *eth)
{
	union station_word old = {.station = station_read(backend)}, new = {};
	__u64 key = mac_key(eth->h_source);

	if (old.station.state != LB_UNRESOLVED || eth->h_source[0] & 1 || !key)
		return;
	new.word = key;
	new.station.state = LB_ACTIVE;
	new.station.learned = true;
	if (__sync_val_compare_and_swap((__u64 *)&backend->station, old.word, new.word) == old.word)
		bpf_map_update_elem(&backend_macs, &key, &index, BPF_ANY);
}

/* Notes what any frame says of the backend that sent it: that it lives, and which MAC it has. */
static __always_inline void hear_backend(const struct xdp_md *ctx, const struct ethhdr *eth, __u32 now)
{
	struct lb_interface *interface = interface_find(ctx->ingress_ifindex);
	struct lb_backend *backend = interface ? backend_get(interface->index) : NULL;

	if (!backend)
		return;
	if (backend->last_seen != now)
		WRITE_ONCE(backend->last_seen, now);
	learn_mac(backend, interface->index, eth);
}

/*
 * Whether a frame is from `index`, as far as MACs tell: from the one that it has, or from one that is no other
 * backend's. The interface says less, as backends may be behind one switch.
 */
static __always_inline bool may_be_from(const struct ethhdr *eth, __u32 index)
{
	struct lb_backend *backend = backend_get(index);
	__u64 key = mac_key(eth->h_source);

	if (backend && mac_key(station_read(backend).mac) == key)
		return true;
	return !bpf_map_lookup_elem(&backend_macs, &key);
}

/*
 * A packet from a backend to a client: back to where the client was last seen. The SPIs of an answer count
 * where the session's own backend gives it. Another one may still have an SA from before the session, and
 * what the client says to that proves nothing of the new backend.
 */
static __always_inline void decide_returned(const struct packet *packet, const struct message *message,
					    const struct ethhdr *eth, __u32 now, struct decision *decision)
{
	struct session_meta meta;
	struct session *session = session_find(&packet->destination, now, &meta);

	decision->verdict = LB_RETURNED;
	if (!session) {
		/* Like a switch that does not know a MAC: to all ports, behind one of which is whose MAC it is. */
		decision->to_all = lb_config.ingress_count > 1;
		return;
	}
	decision->port = meta.ingress;
	session_refresh(session, meta, now);
	if (meta.state == SESSION_EMBRYONIC && message->kind == KIND_IKE && message->responder_spi &&
	    !message->notifies && may_be_from(eth, meta.backend)) {
		session->initiator_spi = message->initiator_spi;
		session->responder_spi = message->responder_spi;
	}
}

static __always_inline void decide_backend(const struct xdp_md *ctx, const struct packet *packet,
					   const struct message *message, struct ethhdr *eth, struct decision *decision)
{
	__u32 now = clock_seconds();

	hear_backend(ctx, eth, now);
	if (message->kind == KIND_NEIGHBOUR) {
		decision->verdict = LB_NEIGHBOUR;
		decision->to_all = lb_config.ingress_count > 1;
	} else {
		decide_returned(packet, message, eth, now, decision);
	}
}

/* Addresses the frame to its backend. A backend that takes no packets makes the verdict LB_NO_BACKEND. */
static __always_inline void address_to_backend(struct ethhdr *eth, struct decision *decision)
{
	struct lb_backend *backend = backend_get(decision->backend);
	struct lb_station station = {};

	if (backend)
		station = station_read(backend);
	if (!backend || station.state != LB_ACTIVE) {
		decision->verdict = LB_NO_BACKEND;
		return;
	}
	set_destination_mac(eth, station.mac);
	decision->port = backend->port;
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
static __always_inline int leave(struct decision *decision, void *ports, __u32 bytes)
{
	long action;

	if (!is_forwarded(decision->verdict))
		return refuse(decision->verdict, bytes);
	if (decision->to_all)
		action = bpf_redirect_map(ports, 0, BPF_F_BROADCAST);
	else
		action = bpf_redirect_map(ports, decision->port, XDP_DROP);
	if (action != XDP_REDIRECT)
		return refuse(LB_NO_BACKEND, bytes);

	counter_add(&verdicts, decision->verdict, bytes);
	if (goes_to_one_backend(decision->verdict)) {
		counter_add(&backend_counters, decision->backend, bytes);
		if (decision->session)
			session_count(decision->session, bytes);
	}
	return action;
}

/* Both programs but for what they decide by. */
static __always_inline int handle(struct xdp_md *ctx, enum side side, void *ports)
{
	/* Not zeroed, as what is dropped below would pay for it; parse_frame() and classify() say what they set. */
	struct packet packet;
	struct message message;
	struct decision decision = {};
	__u32 bytes = frame_bytes(ctx);
	struct ethhdr *eth;

	if (!parse_frame(ctx, &packet))
		return refuse(LB_MALFORMED, bytes);
	classify(&packet, &message, side);
	if (message.kind == KIND_MALFORMED)
		return refuse(LB_MALFORMED, bytes);
	if (message.kind == KIND_OTHER || (side == SIDE_CLIENT && message.kind == KIND_ICMP_OTHER))
		return refuse(other_verdict(), bytes);

	/* What the decision branches on, and the frame: all that is known of them until here is forgotten. */
	message.kind += unknown_zero();
	message.starts_sa += unknown_zero();
	message.responder_spi += unknown_zero();
	packet.fragment += unknown_zero();
	eth = (void *)(long)READ_ONCE(ctx->data);
	if ((void *)(eth + 1) > (void *)(long)READ_ONCE(ctx->data_end))
		return refuse(LB_MALFORMED, bytes);

	if (side == SIDE_CLIENT)
		decide_client(ctx, &packet, &message, eth, &decision);
	else
		decide_backend(ctx, &packet, &message, eth, &decision);
	if (goes_to_one_backend(decision.verdict))
		address_to_backend(eth, &decision);
	return leave(&decision, ports, bytes);
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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
