// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The echo responder: ICMP and ICMPv6 echo requests are answered on the interface that they came in on, before the kernel
 * makes a socket buffer. Everything else goes to the stack as it came.
 *
 * A request is turned into its reply where it lies: MACs and addresses change places, the type changes, the TTL
 * becomes that of this host, and both checksums follow. So nothing may be answered that the stack would not answer with
 * just these bytes: what has options, what is a fragment, what is wrong in any way is the stack's to judge.
 *
 * Each frame ends in one enum echo_verdict, counted once, in lb_echo().
 */
#include "echo.h"
#include "checksum.h"
#include "common.h"
#include "counters.h"
#include "parse.h"
#include "rate.h"
#include "rewrite.h"

/* include/uapi/linux/icmp.h and icmpv6.h. */
#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* RFC 8200, section 4.2: the option that stands for two and more bytes of nothing. */
#define IPV6_PADN 1

/* RFC 791, section 3.1: the flag that must be zero. */
#define IPV4_RESERVED 0x8000

/* Configuration. The defaults walk all paths, so that a static check of the object does too. */
const volatile struct echo_config echo_config = {
	.any = 1,
	.source_interval = 10000000,
};

/* Types that no map names, here so that the generated skeleton has them. */
struct echo_types {
	enum echo_verdict verdict;
	enum echo_limits limits;
	enum echo_address_kind kind;
	__u32 padding;
};

const volatile struct echo_types echo_types;

/* Two, of which `current` names the one that counts: user space writes the other one, and then changes that word. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct echo_view);
} views SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} current SEC(".maps");

/* Token buckets of those who ask, if there is a limit. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, ECHO_SOURCES);
	__type(key, struct address);
	__type(value, __u64);
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ECHO_VERDICTS);
	__type(key, __u32);
	__type(value, struct counter);
} verdicts SEC(".maps");

static __always_inline struct echo_view *view_get(void)
{
	__u32 zero = 0, *index = bpf_map_lookup_elem(&current, &zero);

	return index ? bpf_map_lookup_elem(&views, index) : NULL;
}

static __always_inline enum echo_address_kind kind_of(const struct echo_view *view, const struct address *address)
{
	__u64 hash = (address->words[0] * 0x9e3779b97f4a7c15ULL ^ address->words[1]) * view->factor;
	const struct echo_bucket *bucket = &view->buckets[hash >> ECHO_BUCKET_SHIFT];

#pragma unroll
	for (int i = 0; i < ECHO_WAYS; i++) {
		const struct echo_slot *slot = &bucket->slots[i];

		if (slot->kind == ECHO_NO_ADDRESS || address_equal(&slot->address, address))
			return slot->kind;
	}
	return ECHO_NO_ADDRESS;
}

/* Whether an IPv4 address can be one host's on a wire: not nobody's, no loopback, no group, not all (RFC 1122, section 3.2.1.3). */
static __always_inline bool is_host_v4(const struct address *address)
{
	__u32 v4 = bpf_be64_to_cpu(address->words[1]), first = v4 >> 24;

	return first != 0 && first != 127 && (first & 0xf0) != 0xe0 && v4 != 0xffffffff;
}

/*
 * The same of IPv6: no group, neither :: nor ::1 (RFC 4291, section 2.4), and none that stands for an IPv4 address, which
 * no packet has (RFC 4038, section 4.2).
 */
static __always_inline bool is_host_v6(const struct address *address)
{
	if ((bpf_be64_to_cpu(address->words[0]) >> 56) == 0xff || address_is_v4(address))
		return false;
	return address->words[0] || bpf_be64_to_cpu(address->words[1]) > 1;
}

static __always_inline bool is_host(const struct address *address, bool v6)
{
	return v6 ? is_host_v6(address) : is_host_v4(address);
}

/* Whether a MAC can be one host's: no group, and not zero (IEEE 802.3, section 3.2.3). */
static __always_inline bool is_host_mac(const __u8 *mac)
{
	const __u16 *words = (const void *)mac;

	return !(mac[0] & 1) && (words[0] | words[1] | words[2]);
}

/*
 * What an offset in a packet has to be masked with before it is added to a pointer: all that there are are less, but the verifier
 * forgets what comparisons have told.
 */
#define OFFSET_MASK 0x7fff

/* The sums below: as much as no sum of a message can be. */
#define SUM_UNKNOWN (~0ULL)

/*
 * Adds up the 16-bit words of a message from `at` on, with a zero byte behind an odd one, as the 32-bit words that they make,
 * so that nothing overflows: the sum is zero where all bytes are. SUM_UNKNOWN where some lie behind the first buffer.
 */
static __always_inline __u64 sum_first_buffer(struct xdp_md *ctx, __u32 at, __u32 bytes)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *next = data + ((at + unknown_zero()) & OFFSET_MASK);
	/* Nothing is known of these when the loop ends, or the verifier would walk all that follows for each length. */
	__u64 sum = unknown_zero();
	__u32 words = (bytes + unknown_zero()) / 8;

	for (__u32 i = 0; i < ECHO_CHECKED_MAX / 8 && i < words; i++, next += 8) {
		__u64 two;

		/* Else the compiler counts in another way, with arithmetic that the verifier does not allow on pointers. */
		barrier_var(next);
		if (next + 8 > end)
			return SUM_UNKNOWN;
		two = *(__u64 *)next;
		sum += (__u32)two;
		sum += two >> 32;
	}
	next = data + ((at + (bytes & 0x7f8) + unknown_zero()) & OFFSET_MASK);
	if (bytes & 4) {
		if (next + 4 > end)
			return SUM_UNKNOWN;
		sum += *(__u32 *)next;
		next += 4;
	}
	if (bytes & 2) {
		if (next + 2 > end)
			return SUM_UNKNOWN;
		sum += *(__u16 *)next;
		next += 2;
	}
	if (bytes & 1) {
		if (next + 1 > end)
			return SUM_UNKNOWN;
		sum += bpf_htons(*(__u8 *)next << 8);
	}
	return sum;
}

/* The same, wherever the bytes lie, for drivers whose first buffer ends before the message does. */
__noinline __u64 sum_all_buffers(struct xdp_md *ctx, __u32 at, __u32 bytes)
{
	__u64 sum = 0;

	for (int i = 0; i <= ECHO_CHECKED_MAX / 64 && bytes; i++) {
		__u32 piece[16] = {};
		__u32 last = bytes - 1, length;

		/* From 1 to 64, which the verifier of Linux 6.1 learns from arithmetic alone. */
		barrier_var(last);
		length = bytes < sizeof(piece) ? (last & (sizeof(piece) - 1)) + 1 : sizeof(piece);
		if (bpf_xdp_load_bytes(ctx, at, piece, length))
			return SUM_UNKNOWN;
		for (int j = 0; j < 16; j++)
			sum += piece[j];
		at += length;
		bytes -= length;
	}
	return sum;
}

static __always_inline __u16 sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return checksum_fold(sum);
}

/* An options header of eight bytes (RFC 8200, sections 4.2 and 4.3). */
struct padding_header {
	__u8 next;
	__u8 length; /* units of eight bytes behind the first */
	__u8 options[6];
};

/*
 * What the IPv6 extension headers of a request mean for its answer. They stay where they are in the reply, so only those that say
 * nothing are taken: hop-by-hop options, which must come first, and destination options, each of one PadN or six Pad1. More
 * padding, or padding that is not zero, Linux does not take either (net/ipv6/exthdrs.c, ip6_parse_tlv). What headers say otherwise
 * is to be obeyed, and a routing header must not be sent back (RFC 8200, section 8.4).
 */
__noinline int judge_extensions(struct xdp_md *ctx, __u32 at, __u32 protocol)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		struct padding_header *header;
		const __be16 *words;

		if (protocol == IPPROTO_ICMPV6)
			return ECHO_REPLY;
		if (protocol == IPPROTO_FRAGMENT)
			return ECHO_FRAGMENT;
		if (protocol != IPPROTO_DSTOPTS && (protocol != IPPROTO_HOPOPTS || i > 0))
			return ECHO_OPTIONS;
		header = data + ((at + unknown_zero()) & OFFSET_MASK);
		if ((void *)(header + 1) > end)
			return ECHO_OPTIONS;
		words = (const void *)header->options;
		if (header->length || (words[0] && words[0] != bpf_htons(IPV6_PADN << 8 | 4)) || words[1] || words[2])
			return ECHO_OPTIONS;
		protocol = header->next;
		at += sizeof(*header);
	}
	return protocol == IPPROTO_ICMPV6 ? ECHO_REPLY : ECHO_OPTIONS;
}

/* Whether the checksum of an IPv4 header without options is right (RFC 1071). */
static __always_inline bool header_is_whole(const struct iphdr *ip)
{
	const __u32 *words = (const void *)ip;

	return sum_fold((__u64)words[0] + words[1] + words[2] + words[3] + words[4]) == 0xffff;
}

/* What the checksum of ICMPv6 covers besides the message (RFC 8200, section 8.1). */
static __always_inline __u64 sum_pseudo_header(const struct packet *packet)
{
	const struct address *a = &packet->source, *b = &packet->destination;
	__u64 sum = bpf_htonl(packet->l4_bytes) + (__u64)bpf_htonl(IPPROTO_ICMPV6);

	sum += (a->words[0] & 0xffffffff) + (a->words[0] >> 32) + (a->words[1] & 0xffffffff) + (a->words[1] >> 32);
	sum += (b->words[0] & 0xffffffff) + (b->words[0] >> 32) + (b->words[1] & 0xffffffff) + (b->words[1] >> 32);
	return sum;
}

/* Takes one of the requests that its source may send a second. */
static __always_inline bool source_may_ask(const struct address *source)
{
	__u64 *bucket, fresh = 0;

	if (!echo_config.source_interval)
		return true;
	bucket = bpf_map_lookup_elem(&sources, source);
	if (!bucket) {
		/* Another CPU may be first. */
		bpf_map_update_elem(&sources, source, &fresh, BPF_NOEXIST);
		bucket = bpf_map_lookup_elem(&sources, source);
	}
	return !bucket || rate_take(bucket, echo_config.source_interval, bpf_ktime_get_coarse_ns());
}

/* Makes an IPv4 request its reply. The addresses change places, which no checksum sees. `sum` is that of the message. */
static __always_inline void make_reply_v4(struct iphdr *ip, struct icmphdr *icmp, const struct echo_view *view,
					  __u64 sum)
{
	__be16 *ttl = (__be16 *)&ip->ttl, old = *ttl;
	__be32 address = ip->saddr;
	bool is_zero = sum == SUM_UNKNOWN || sum == *(__u32 *)icmp;

	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->ttl = view->ttl;
	ip->check = checksum_replace(ip->check, old, *ttl);

	icmp->type = ICMP_ECHOREPLY;
	icmp->checksum = checksum_replace(icmp->checksum, bpf_htons(ICMP_ECHO << 8), bpf_htons(ICMP_ECHOREPLY << 8));
	/*
	 * A message of zeros alone needs the other zero. RFC 1624 knows no such message; this is one that has identifier and
	 * sequence number 0 and no other bytes than 0. Where the bytes were not looked at, one zero is as good as the other.
	 */
	if (!icmp->checksum && is_zero)
		icmp->checksum = 0xffff;
}

/* The same for IPv6, whose checksum covers the addresses too (RFC 4443, section 2.3), and so is never of zeros alone. */
static __always_inline void make_reply_v6(struct ipv6hdr *ip, struct icmphdr *icmp, const struct echo_view *view)
{
	struct in6_addr address = ip->saddr;

	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->hop_limit = view->hop_limit;

	icmp->type = ICMPV6_ECHO_REPLY;
	icmp->checksum = checksum_replace(icmp->checksum, bpf_htons(ICMPV6_ECHO_REQUEST << 8),
					  bpf_htons(ICMPV6_ECHO_REPLY << 8));
}

/* Answers the frame, or says why it does not. */
static __always_inline enum echo_verdict answer(struct xdp_md *ctx, struct packet *packet)
{
	enum echo_address_kind from, to;
	struct echo_view *view;
	struct icmphdr *icmp;
	__u64 sum = SUM_UNKNOWN, pseudo = 0;
	__be16 request;
	__u32 at;
	bool v6;

	if (!parse_frame(ctx, packet, SEVERAL_BUFFERS)) {
		packet->bytes = bpf_xdp_get_buff_len(ctx);
		return ECHO_MALFORMED;
	}
	v6 = packet->ethertype == ETH_P_IPV6;
	if (packet->ethertype != ETH_P_IP && !v6) {
		packet->bytes = bpf_xdp_get_buff_len(ctx);
		return ECHO_NOT_ECHO;
	}
	if (packet->protocol != (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return ECHO_NOT_ECHO;
	if (packet->fragment != FRAGMENT_NONE)
		return ECHO_FRAGMENT;
	icmp = packet->l4;
	at = packet->l4 - (void *)packet->eth;
	if (packet->l4_bytes < sizeof(*icmp) || !packet_holds(packet, icmp, sizeof(*icmp)) || at > IPV6_WALK_END)
		return ECHO_MALFORMED;
	request = bpf_htons((v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO) << 8);
	if (*(__be16 *)icmp != request)
		return ECHO_NOT_ECHO;

	if (v6 && at != packet->l3_at + sizeof(struct ipv6hdr)) {
		struct ipv6hdr *ip = packet->l3;
		int verdict = judge_extensions(ctx, packet->l3_at + sizeof(*ip), ip->nexthdr);

		if (verdict != ECHO_REPLY)
			return verdict;
	}
	if (!v6 && at != packet->l3_at + sizeof(struct iphdr))
		return ECHO_OPTIONS;
	if (!v6 && ((struct iphdr *)packet->l3)->frag_off & bpf_htons(IPV4_RESERVED))
		return ECHO_MALFORMED;

	/* A TTL of zero is that of a view which nobody has written yet. */
	view = view_get();
	if (!view || !view->ttl || !mac_equal(packet->eth->h_dest, view->mac))
		return ECHO_OTHER_MAC;
	to = kind_of(view, &packet->destination);
	if ((to != ECHO_OURS && !(echo_config.any && to == ECHO_NO_ADDRESS)) || !is_host(&packet->destination, v6))
		return ECHO_OTHER_ADDRESS;
	/* Nobody sends to itself on a wire, and a reply goes to one host. */
	from = kind_of(view, &packet->source);
	if (!is_host_mac(packet->eth->h_source) || mac_equal(packet->eth->h_source, view->mac) ||
	    from != ECHO_NO_ADDRESS || address_equal(&packet->source, &packet->destination) ||
	    !is_host(&packet->source, v6))
		return ECHO_BAD_SOURCE;

	if (!v6 && !header_is_whole(packet->l3))
		return ECHO_BAD_CHECKSUM;
	if (packet->l4_bytes <= ECHO_CHECKED_MAX) {
		sum = sum_first_buffer(ctx, at, packet->l4_bytes);
		if (sum == SUM_UNKNOWN)
			sum = sum_all_buffers(ctx, at, packet->l4_bytes);
		if (v6)
			pseudo = sum_pseudo_header(packet);
		if (sum == SUM_UNKNOWN || sum_fold(sum + pseudo) != 0xffff)
			return ECHO_BAD_CHECKSUM;
	}
	if (!source_may_ask(&packet->source))
		return ECHO_RATE_LIMITED;

	swap_macs(packet->eth);
	if (v6)
		make_reply_v6(packet->l3, icmp, view);
	else
		make_reply_v4(packet->l3, icmp, view, sum);
	return ECHO_REPLY;
}

/* The only place where verdicts become actions. */
static __always_inline int action_of(enum echo_verdict verdict)
{
	if (verdict == ECHO_REPLY)
		return XDP_TX;
	return verdict == ECHO_RATE_LIMITED ? XDP_DROP : XDP_PASS;
}

SEC("xdp.frags")
int lb_echo(struct xdp_md *ctx)
{
	struct packet packet;
	enum echo_verdict verdict = answer(ctx, &packet);

	counter_add(&verdicts, verdict, packet.bytes);
	return action_of(verdict);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
