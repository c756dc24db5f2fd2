// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The echo responder: ICMP and ICMPv6 echo requests are answered on the interface that they came in on, before the kernel
 * makes a socket buffer. Everything else goes to the stack as it came.
 *
 * A request is turned into its reply where it lies: MACs and addresses change places, the type changes, the TTL
 * becomes that of this host, and both checksums follow. So nothing may be answered that the stack would not answer with
 * just these bytes: what has options, what is a fragment, what is wrong in any way is the stack's to judge.
 *
 * Nearly all frames are plain: one buffer, no VLAN tag, no options, no extension headers, no fragment. Those go a way of their own,
 * on which the compiler knows where each header lies; judge_any() knows the others. Both meet in answer().
 *
 * Each frame ends in one enum echo_verdict, counted once, in finish().
 */

/* What is read here, headers and struct xdp_md, looks the same on each kernel, and needs no relocation, which costs instructions. */
#define BPF_NO_PRESERVE_ACCESS_INDEX

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

/* RFC 791, section 3.1: the flag that must be zero, and the one that a whole packet may have. */
#define IPV4_RESERVED 0x8000
#define IPV4_DONT_FRAGMENT 0x4000

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

/* Read by name, as looking maps up would cost more than all that is read from them. */
struct echo_views views SEC(".data.views");

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

static __always_inline const struct echo_view *view_get(void)
{
	const struct echo_view *view = &views.views[READ_ONCE(views.current) & 1];

	/* One pointer from here on, or the compiler finds it anew each time. */
	barrier_var(view);
	return view;
}

static __always_inline enum echo_address_kind kind_of(const struct echo_view *view, const struct address *address)
{
	__u64 first = address->words[0] * 0x9e3779b97f4a7c15ULL;
	/* The halves change places, as a product carries upwards alone, and addresses differ in their last bytes, which are the upper ones. */
	__u64 hash = ((first << 32 | first >> 32) ^ address->words[1]) * view->factor;
	const struct echo_bucket *bucket = &view->buckets[hash >> ECHO_BUCKET_SHIFT];

	barrier_var(bucket);
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

	if (first - 1 < 126)
		return true;
	barrier_var(first);
	return (first >= 128 && first < 224) || (v4 >= 0xf0000000 && v4 != 0xffffffff);
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

/*
 * What an offset in a packet has to be masked with before it is added to a pointer: all that there are are less, but the verifier
 * forgets what comparisons have told.
 */
#define OFFSET_MASK 0x7fff

/* The sums below: as much as no sum of a message can be. */
#define SUM_UNKNOWN (~0ULL)

/* Bytes that are looked for, and added up, at once. */
#define SUM_ROW 64

/*
 * Adds up the 16-bit words of a message of at least 8 bytes, with a zero byte behind an odd one, as the 32-bit words that they
 * make, so that nothing overflows: the sum is zero where all bytes are. SUM_UNKNOWN where some lie behind the first buffer.
 */
static __always_inline __u64 sum_first_buffer(void *next, void *end, __u32 bytes)
{
	__u64 sum = 0, last;

	for (int i = 0; i < ECHO_CHECKED_MAX / SUM_ROW && bytes >= SUM_ROW; i++, next += SUM_ROW, bytes -= SUM_ROW) {
		__u32 *words = next;
		__u64 row = 0;

		/* Else the compiler counts in another way, with arithmetic that the verifier does not allow on pointers. */
		barrier_var(next);
		if (next + SUM_ROW > end)
			return SUM_UNKNOWN;
#pragma unroll
		for (int j = 0; j < SUM_ROW / 4; j++) {
			row += words[j];
			/* Word by word: a tree of sums needs more registers than there are. Rows do not wait for each other. */
			barrier_var(row);
		}
		sum += row;
	}
	for (int i = 0; i < SUM_ROW / 8 && bytes >= 8; i++, next += 8, bytes -= 8) {
		barrier_var(next);
		if (next + 8 > end)
			return SUM_UNKNOWN;
		last = *(__u64 *)next;
		sum += (__u32)last;
		sum += last >> 32;
	}
	if (bytes) {
		/* The last eight bytes, without those that are in the sum: the lower ones on the machines that this is for. */
		barrier_var(bytes);
		next = next - 8 + (bytes & 7);
		barrier_var(next);
		if (next + 8 > end)
			return SUM_UNKNOWN;
		last = *(__u64 *)next >> (8 - bytes) * 8;
		sum += (__u32)last;
		sum += last >> 32;
	}
	return sum;
}

/* The same, wherever the bytes lie. Verified once, and not for each way to get here, as it is a function of its own. */
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

/*
 * Whether words with this sum, one of them their checksum, are as they were sent (RFC 1071). The sum of 16-bit words, folded,
 * is the remainder by 0xffff; and a number is a multiple of that where its product with the inverse of 0xffff modulo 2^64 is no more
 * than 2^64 / 0xffff. Not all words are zero here: each message has a type, each header a version.
 */
static __always_inline bool sum_is_right(__u64 sum)
{
	return sum * 0xfffefffefffeffffULL <= 0x0001000100010001ULL;
}

/* `check` after a word that it covers changed from `old` to `new`, where not all words that it covers are zero. */
static __always_inline __sum16 checksum_move(__sum16 check, __be16 old, __be16 new)
{
	__s32 moved = check + old - new;

	moved = (moved & 0xffff) + (moved >> 16);
	return moved == 0xffff ? 0 : moved;
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

	return sum_is_right((__u64)words[0] + words[1] + words[2] + words[3] + words[4]);
}

/* What the checksum of ICMPv6 covers besides the message (RFC 8200, section 8.1). */
static __always_inline __u64 sum_pseudo_header(const struct ipv6hdr *ip, __u32 bytes)
{
	const __u32 *words = (const void *)&ip->saddr;
	__u64 sum = bpf_htonl(bytes) + (__u64)bpf_htonl(IPPROTO_ICMPV6);

#pragma unroll
	for (int i = 0; i < 8; i++)
		sum += words[i];
	return sum;
}

/* Takes one of the requests that a source, whose address these words are, may send a second. */
__noinline bool source_may_ask(__u64 first, __u64 second)
{
	struct address source = {.words = {first, second}};
	__u64 *bucket, fresh = 0;

	bucket = bpf_map_lookup_elem(&sources, &source);
	if (!bucket) {
		/* Another CPU may be first. */
		bpf_map_update_elem(&sources, &source, &fresh, BPF_NOEXIST);
		bucket = bpf_map_lookup_elem(&sources, &source);
	}
	return !bucket || rate_take(bucket, echo_config.source_interval, bpf_ktime_get_coarse_ns());
}

/* Where in an IP header its addresses are. */
#define SOURCE_AT(v6) ((v6) ? offsetof(struct ipv6hdr, saddr) : offsetof(struct iphdr, saddr))
#define DESTINATION_AT(v6) ((v6) ? offsetof(struct ipv6hdr, daddr) : offsetof(struct iphdr, daddr))

/* An address of a header. Read where it is used: the compiler would else read all addresses first, and keep them on the stack. */
static __always_inline struct address address_at(const void *at, bool v6)
{
	const __u64 *words = at;

	if (v6)
		return (struct address){.words = {READ_ONCE(words[0]), READ_ONCE(words[1])}};
	return address_v4(READ_ONCE(*(__be32 *)at));
}

/* The first word of the one message that is all zeros but for type and checksum. */
#define ZERO_MESSAGE bpf_htonl(0x0800f7ff)

/* Makes an IPv4 request its reply. The addresses change places, which no checksum sees. `sum` is that of the message. */
static __always_inline void make_reply_v4(struct iphdr *ip, struct icmphdr *icmp, const struct echo_view *view,
					  __u64 sum)
{
	__be32 address = ip->saddr;

	ip->saddr = ip->daddr;
	ip->daddr = address;
	ip->check = checksum_move(ip->check, bpf_htons(ip->ttl << 8), bpf_htons(view->ttl << 8));
	ip->ttl = view->ttl;

	icmp->type = ICMP_ECHOREPLY;
	icmp->checksum = checksum_move(icmp->checksum, bpf_htons(ICMP_ECHO << 8), bpf_htons(ICMP_ECHOREPLY << 8));
	/*
	 * A message of zeros alone needs the other zero: it is one that has identifier and sequence number 0 and no other bytes
	 * than 0. Where the bytes were not looked at, one zero is as good as the other.
	 */
	if (__builtin_expect(!icmp->checksum, 0) && (sum == SUM_UNKNOWN || sum == ZERO_MESSAGE))
		icmp->checksum = 0xffff;
}

/* The same for IPv6, whose checksum covers the addresses too (RFC 4443, section 2.3), and so is never of zeros alone. */
static __always_inline void make_reply_v6(struct ipv6hdr *ip, struct icmphdr *icmp, const struct echo_view *view)
{
	__u64 *words = (void *)&ip->saddr, first = words[0], second = words[1];

	words[0] = words[2];
	words[1] = words[3];
	words[2] = first;
	words[3] = second;
	ip->hop_limit = view->hop_limit;

	icmp->type = ICMPV6_ECHO_REPLY;
	icmp->checksum =
		checksum_move(icmp->checksum, bpf_htons(ICMPV6_ECHO_REQUEST << 8), bpf_htons(ICMPV6_ECHO_REPLY << 8));
}

/* A request, all of whose headers have been checked but for MACs, addresses and checksums. */
struct echo_request {
	void *eth;
	void *end;
	void *ip;
	struct icmphdr *icmp;
	__u32 at;    /* of the message in the frame */
	__u32 bytes; /* of the message */
};

/* Answers a request, or says why it does not. For the compiler, `v6` and `plain` are known. */
static __always_inline enum echo_verdict answer(struct xdp_md *ctx, const struct echo_request *request, bool v6,
						bool plain)
{
	const void *mac = request->eth + offsetof(struct ethhdr, h_source);
	const struct echo_view *view = view_get();
	struct address source, destination;
	enum echo_address_kind to;
	__u64 sum = SUM_UNKNOWN;

	/* A TTL of zero is that of a view which nobody has written yet. */
	if (!mac_equal(request->eth, view->mac) || !view->ttl)
		return ECHO_OTHER_MAC;
	destination = address_at(request->ip + DESTINATION_AT(v6), v6);
	to = kind_of(view, &destination);
	/* Ours are hosts' addresses, or user space would not have put them there; but of IPv4, maybe. */
	if (to == ECHO_OURS ? v6 && address_is_v4(&destination)
			    : !echo_config.any || to != ECHO_NO_ADDRESS || !is_host(&destination, v6))
		return ECHO_OTHER_ADDRESS;
	/* Nobody sends to itself on a wire, and a reply goes to one host. */
	source = address_at(request->ip + SOURCE_AT(v6), v6);
	if (!mac_is_host(mac) || mac_equal(mac, view->mac) || kind_of(view, &source) != ECHO_NO_ADDRESS ||
	    (to != ECHO_OURS && address_equal(&source, &destination)) || !is_host(&source, v6))
		return ECHO_BAD_SOURCE;

	if (!v6 && !header_is_whole(request->ip))
		return ECHO_BAD_CHECKSUM;
	if (request->bytes <= ECHO_CHECKED_MAX) {
		if (plain)
			sum = sum_first_buffer(request->icmp, request->end, request->bytes);
		if (sum == SUM_UNKNOWN)
			sum = sum_all_buffers(ctx, request->at, request->bytes);
		if (sum == SUM_UNKNOWN ||
		    !sum_is_right(sum + (v6 ? sum_pseudo_header(request->ip, request->bytes) : 0)))
			return ECHO_BAD_CHECKSUM;
	}
	if (echo_config.source_interval && !source_may_ask(source.words[0], source.words[1]))
		return ECHO_RATE_LIMITED;

	swap_macs(request->eth);
	if (v6)
		make_reply_v6(request->ip, request->icmp, view);
	else
		make_reply_v4(request->ip, request->icmp, view, sum);
	return ECHO_REPLY;
}

/* Any frame. */
static __always_inline enum echo_verdict judge_any(struct xdp_md *ctx, struct packet *packet)
{
	struct echo_request request;
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
	request = (struct echo_request){
		.eth = packet->eth,
		.end = packet->end,
		.ip = packet->l3,
		.icmp = packet->l4,
		.at = packet->l4 - (void *)packet->eth,
		.bytes = packet->l4_bytes,
	};
	if (request.bytes < sizeof(*request.icmp) || !packet_holds(packet, request.icmp, sizeof(*request.icmp)) ||
	    request.at > IPV6_WALK_END)
		return ECHO_MALFORMED;
	if (*(__be16 *)request.icmp != bpf_htons((v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO) << 8))
		return ECHO_NOT_ECHO;

	if (v6) {
		struct ipv6hdr *ip = packet->l3;
		__u32 next_at = packet->l3_at + sizeof(*ip);
		int verdict = request.at == next_at ? ECHO_REPLY : judge_extensions(ctx, next_at, ip->nexthdr);

		return verdict == ECHO_REPLY ? answer(ctx, &request, true, false) : verdict;
	}
	if (request.at != packet->l3_at + sizeof(struct iphdr))
		return ECHO_OPTIONS;
	if (((struct iphdr *)packet->l3)->frag_off & bpf_htons(IPV4_RESERVED))
		return ECHO_MALFORMED;
	return answer(ctx, &request, false, false);
}

/* The only place where verdicts become actions. */
static __always_inline int action_of(enum echo_verdict verdict)
{
	if (verdict == ECHO_REPLY)
		return XDP_TX;
	return verdict == ECHO_RATE_LIMITED ? XDP_DROP : XDP_PASS;
}

static __always_inline int finish(enum echo_verdict verdict, __u32 bytes)
{
	/* Else the compiler has the action ready before it knows the verdict, once for each that there may be. */
	barrier_var(verdict);
	counter_add(&verdicts, verdict, bytes);
	return action_of(verdict);
}

__noinline int handle_any(struct xdp_md *ctx)
{
	struct packet packet;
	enum echo_verdict verdict = judge_any(ctx, &packet);

	return finish(verdict, packet.bytes);
}

/* Where plain frames have their ICMP message, and how much of a frame there has to be to say so. */
#define PLAIN_V4 (sizeof(struct ethhdr) + sizeof(struct iphdr))
#define PLAIN_V6 (sizeof(struct ethhdr) + sizeof(struct ipv6hdr))
#define NOT_PLAIN ECHO_VERDICTS

static __always_inline enum echo_verdict judge_plain_v4(struct xdp_md *ctx, void *data, void *end, __u32 bytes)
{
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct echo_request request = {.eth = data, .end = end, .ip = ip, .icmp = data + PLAIN_V4, .at = PLAIN_V4};
	__u32 total = bpf_ntohs(ip->tot_len);

	/* Version 4, and a header of five words. */
	if (*(__u8 *)ip != 0x45 || total < sizeof(*ip) + sizeof(*request.icmp) ||
	    sizeof(struct ethhdr) + total > bytes || ip->frag_off & bpf_htons((__u16)~IPV4_DONT_FRAGMENT))
		return NOT_PLAIN;
	if (ip->protocol != IPPROTO_ICMP || *(__be16 *)request.icmp != bpf_htons(ICMP_ECHO << 8))
		return ECHO_NOT_ECHO;
	request.bytes = total - sizeof(*ip);
	return answer(ctx, &request, false, true);
}

static __always_inline enum echo_verdict judge_plain_v6(struct xdp_md *ctx, void *data, void *end, __u32 bytes)
{
	struct ipv6hdr *ip = data + sizeof(struct ethhdr);
	struct echo_request request = {.eth = data, .end = end, .ip = ip, .icmp = data + PLAIN_V6, .at = PLAIN_V6};

	request.bytes = bpf_ntohs(ip->payload_len);
	if ((*(__u8 *)ip & 0xf0) != 0x60 || request.bytes < sizeof(*request.icmp) || PLAIN_V6 + request.bytes > bytes)
		return NOT_PLAIN;
	if (ip->nexthdr != IPPROTO_ICMPV6)
		return ipv6_is_extension(ip->nexthdr) || ip->nexthdr == IPPROTO_FRAGMENT ? NOT_PLAIN : ECHO_NOT_ECHO;
	if (*(__be16 *)request.icmp != bpf_htons(ICMPV6_ECHO_REQUEST << 8))
		return ECHO_NOT_ECHO;
	return answer(ctx, &request, true, true);
}

SEC("xdp.frags")
int lb_echo(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 bytes = end - data;
	enum echo_verdict verdict = NOT_PLAIN;

	if (data + PLAIN_V4 + sizeof(struct icmphdr) <= end && eth->h_proto == bpf_htons(ETH_P_IP))
		verdict = judge_plain_v4(ctx, data, end, bytes);
	else if (data + PLAIN_V6 + sizeof(struct icmphdr) <= end && eth->h_proto == bpf_htons(ETH_P_IPV6))
		verdict = judge_plain_v6(ctx, data, end, bytes);
	return verdict == NOT_PLAIN ? handle_any(ctx) : finish(verdict, bytes);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
