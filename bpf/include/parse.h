/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the first byte of a frame to the first byte of its transport header.
 *
 * parse_frame() fills one struct packet; nothing is read before the header that says what it is
 * has been checked. Fields named __be16 or __be32 are in network order as they lie in the packet,
 * all others are in host order. Lengths are bytes.
 *
 * Ethernet padding is no part of a packet: what a header may claim is bounded by the length that
 * IP states, and that length by the frame.
 */
#pragma once

#include "address.h"
#include "common.h"

#define VLAN_TAGS_MAX 2
/* More extension headers than any lawful sender uses (RFC 8200, section 4.1 lists seven). */
#define IPV6_EXTENSIONS_MAX 8

#define IPV4_OFFSET_MASK 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_OFFSET_MASK 0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001

enum fragment {
	FRAGMENT_NONE,  /* the whole packet */
	FRAGMENT_FIRST, /* holds the transport header, not all of the payload */
	FRAGMENT_LATER, /* holds no transport header */
};

/* What frames a program takes. */
enum buffers {
	ONE_BUFFER,      /* SEC("xdp"): every frame lies in one piece */
	SEVERAL_BUFFERS, /* SEC("xdp.frags"): of a long frame, only the first piece can be read directly */
};

struct packet {
	struct ethhdr *eth;
	void *end;   /* of the frame's first buffer: no byte at or behind it may be read */
	__u32 bytes; /* of the frame; with SEVERAL_BUFFERS only those of the first, if its headers claim no more */
	void *l3;    /* what follows the Ethernet header and its VLAN tags */
	__u32 l3_at; /* the same as an offset from the start of the frame */
	__u16 ethertype;
	/* The fields from here on are of IP, and zero for other ethertypes. */
	void *l4;       /* what follows the IP headers; not for FRAGMENT_LATER */
	__u32 l4_bytes; /* from `l4` to the end of the packet as IP states it */
	enum fragment fragment;
	__be32 fragment_id;     /* IPv4: the 16 bits of its identification field */
	__u8 fragment_protocol; /* what all fragments of one packet say follows */
	__u8 protocol;          /* of the header at `l4`; for FRAGMENT_LATER the same as fragment_protocol */
	struct address source;
	struct address destination;
};

/* Whether `bytes` bytes at `at` lie in the frame. Written so that the verifier learns it too. */
#define packet_holds(packet, at, bytes) ((void *)(at) + (bytes) <= (packet)->end)

/* By hand: the compiler may keep half of a pointer on the stack between its load and its use, which the verifier does not take. */
static __always_inline __u32 frame_bytes(const struct xdp_md *ctx)
{
	__u64 bytes, data;

	asm volatile("%[bytes] = *(u32 *)(%[ctx] + %[end_at])\n"
		     "%[data] = *(u32 *)(%[ctx] + %[data_at])\n"
		     "%[bytes] -= %[data]\n"
		     : [bytes] "=&r"(bytes), [data] "=&r"(data)
		     : [ctx] "r"(ctx), [end_at] "i"(offsetof(struct xdp_md, data_end)),
		       [data_at] "i"(offsetof(struct xdp_md, data)));
	return bytes;
}

static __always_inline bool parse_ethernet(struct xdp_md *ctx, struct packet *packet)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *next = eth + 1;
	__be16 type;

	packet->eth = eth;
	packet->end = (void *)(long)ctx->data_end;
	packet->bytes = frame_bytes(ctx);
	packet->l3_at = sizeof(*eth);
	if (next > packet->end)
		return false;
	type = eth->h_proto;
	packet->l3 = next;
	/* Nearly every frame; said twice for the sake of the compiler, which then goes straight to parse_ipv4(). */
	if (type == bpf_htons(ETH_P_IP)) {
		packet->ethertype = ETH_P_IP;
		return true;
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		packet->ethertype = ETH_P_IPV6;
		return true;
	}

#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		struct vlan_hdr *tag = next;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (!packet_holds(packet, tag, sizeof(*tag)))
			return false;
		type = tag->h_vlan_encapsulated_proto;
		next = tag + 1;
		packet->l3_at += sizeof(*tag);
	}
	packet->ethertype = bpf_ntohs(type);
	packet->l3 = next;
	return true;
}

/* Whether the frame has as many bytes, which its headers claim. */
static __always_inline bool frame_reaches(struct xdp_md *ctx, struct packet *packet, __u32 bytes, enum buffers buffers)
{
	if (bytes <= packet->bytes)
		return true;
	if (buffers == ONE_BUFFER)
		return false;
	packet->bytes = bpf_xdp_get_buff_len(ctx);
	return bytes <= packet->bytes;
}

/* RFC 791, section 3.1. */
static __always_inline bool parse_ipv4(struct xdp_md *ctx, struct packet *packet, enum buffers buffers)
{
	struct iphdr *ip = packet->l3;
	__u32 header_bytes, total_bytes;
	__u16 offset;

	if (!packet_holds(packet, ip, sizeof(*ip)))
		return false;
	header_bytes = ip->ihl * 4;
	total_bytes = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header_bytes < sizeof(*ip) || total_bytes < header_bytes ||
	    !frame_reaches(ctx, packet, packet->l3_at + total_bytes, buffers))
		return false;

	offset = bpf_ntohs(ip->frag_off);
	if (offset & IPV4_OFFSET_MASK)
		packet->fragment = FRAGMENT_LATER;
	else
		packet->fragment = offset & IPV4_MORE_FRAGMENTS ? FRAGMENT_FIRST : FRAGMENT_NONE;
	packet->fragment_id = ip->id;
	packet->fragment_protocol = ip->protocol;
	packet->protocol = ip->protocol;
	packet->source = address_v4(ip->saddr);
	packet->destination = address_v4(ip->daddr);
	packet->l4 = packet->l3 + header_bytes;
	packet->l4_bytes = total_bytes - header_bytes;
	return true;
}

/* The headers that RFC 8200, section 4 puts between IPv6 and its payload, and that have its common form. */
static __always_inline bool ipv6_is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS;
}

struct ipv6_walk {
	__u32 at;       /* offset in the frame of the next header */
	__u32 bytes;    /* from there to the end of the packet as IPv6 states it */
	__u32 protocol; /* of the next header */
	__u32 fragment; /* enum fragment, set if a fragment header was met */
	__be32 fragment_id;
	__u32 fragment_protocol;
};

/* The furthest that IPV6_EXTENSIONS_MAX headers of 256 times 8 bytes can lead. */
#define IPV6_WALK_END (sizeof(struct ethhdr) + VLAN_TAGS_MAX * 4 + sizeof(struct ipv6hdr) + IPV6_EXTENSIONS_MAX * 2048)

/*
 * Walks over the extension headers at `walk`, until the one that ends them or the fragment header of a later
 * fragment (RFC 8200, section 4). False where one does not fit, or where there are more than IPV6_EXTENSIONS_MAX.
 *
 * A function of its own, with no inlining and external linkage, so that the verifier walks it once, and
 * not once for every path through what comes before and after.
 */
__noinline bool ipv6_walk_extensions(struct xdp_md *ctx, struct ipv6_walk *walk)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (!walk)
		return false;
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		__u32 at = walk->at, header_bytes;

		if (at > IPV6_WALK_END)
			return false;
		if (ipv6_is_extension(walk->protocol)) {
			struct ipv6_opt_hdr *extension = data + at;

			if ((void *)(extension + 1) > end)
				return false;
			header_bytes = (extension->hdrlen + 1) * 8;
			walk->protocol = extension->nexthdr;
		} else if (walk->protocol == IPPROTO_FRAGMENT) {
			struct frag_hdr *extension = data + at;
			__u16 offset;

			if ((void *)(extension + 1) > end)
				return false;
			header_bytes = sizeof(*extension);
			offset = bpf_ntohs(extension->frag_off);
			walk->protocol = extension->nexthdr;
			walk->fragment_id = extension->identification;
			walk->fragment_protocol = extension->nexthdr;
			/* Neither offset nor more: an "atomic fragment", which is a whole packet (RFC 6946). */
			if (offset & IPV6_OFFSET_MASK)
				walk->fragment = FRAGMENT_LATER;
			else if (offset & IPV6_MORE_FRAGMENTS)
				walk->fragment = FRAGMENT_FIRST;
		} else {
			return true;
		}

		if (header_bytes > walk->bytes)
			return false;
		walk->bytes -= header_bytes;
		walk->at = at + header_bytes;
		if (walk->fragment == FRAGMENT_LATER)
			return true;
	}
	return !ipv6_is_extension(walk->protocol) && walk->protocol != IPPROTO_FRAGMENT;
}

/* RFC 8200, section 3. */
static __always_inline bool parse_ipv6(struct xdp_md *ctx, struct packet *packet, enum buffers buffers)
{
	struct ipv6hdr *ip = packet->l3;
	void *next = ip + 1;
	__u32 bytes;

	if (!packet_holds(packet, ip, sizeof(*ip)))
		return false;
	bytes = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || !frame_reaches(ctx, packet, packet->l3_at + sizeof(*ip) + bytes, buffers))
		return false;

	packet->fragment = FRAGMENT_NONE;
	packet->fragment_id = 0;
	packet->fragment_protocol = 0;
	packet->source = address_v6(&ip->saddr);
	packet->destination = address_v6(&ip->daddr);
	packet->protocol = ip->nexthdr;
	if (ipv6_is_extension(packet->protocol) || packet->protocol == IPPROTO_FRAGMENT) {
		struct ipv6_walk walk = {
			.at = packet->l3_at + sizeof(*ip),
			.bytes = bytes,
			.protocol = packet->protocol,
		};

		if (!ipv6_walk_extensions(ctx, &walk) || walk.at > IPV6_WALK_END)
			return false;
		next = (void *)packet->eth + walk.at;
		bytes = walk.bytes;
		packet->protocol = walk.protocol;
		packet->fragment = walk.fragment;
		packet->fragment_id = walk.fragment_id;
		packet->fragment_protocol = walk.fragment_protocol;
	}
	packet->l4 = next;
	packet->l4_bytes = bytes;
	return true;
}

/*
 * Parses the frame of `ctx`. False where a header does not fit or contradicts
 * itself; whatever ethertype other than the two IPs the frame has is for the caller to judge.
 */
static __always_inline bool parse_frame(struct xdp_md *ctx, struct packet *packet, enum buffers buffers)
{
	if (!parse_ethernet(ctx, packet))
		return false;
	if (packet->ethertype == ETH_P_IP)
		return parse_ipv4(ctx, packet, buffers);
	if (packet->ethertype == ETH_P_IPV6)
		return parse_ipv6(ctx, packet, buffers);

	packet->l4 = packet->l3;
	packet->l4_bytes = 0;
	packet->fragment = FRAGMENT_NONE;
	packet->fragment_id = 0;
	packet->fragment_protocol = 0;
	packet->protocol = 0;
	packet->source = (struct address){};
	packet->destination = (struct address){};
	return true;
}
