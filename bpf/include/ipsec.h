/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet means to a VPN: which protocol of the IPsec family it is, and whether it is whole.
 *
 * Answers depend on nothing but the packet. The side that a frame comes from matters in one point: a
 * client sends to the well-known ports, a backend from them.
 */
#pragma once

#include "parse.h"

#define PORT_IKE 500      /* RFC 7296, section 2 */
#define PORT_IKE_NAT 4500 /* RFC 3948, section 2.1 */

#define IKE_BYTES_MIN 28 /* struct ike_header without the four bytes that C pads it with */
#define ESP_BYTES_MIN 8  /* SPI and sequence number, RFC 4303, section 2 */
#define AH_BYTES_MIN 12  /* without its ICV, RFC 4302, section 2 */
#define ICMP_BYTES_MIN 8 /* RFC 792, RFC 4443 */
#define ARP_BYTES_MIN 28 /* for Ethernet and IPv4, RFC 826 */
#define NAT_KEEPALIVE 0xff

/* RFC 7296, section 3.1; RFC 2408, section 3.1 has the same shape for IKEv1. */
struct ike_header {
	__be64 initiator_spi;
	__be64 responder_spi;
	__u8 next_payload;
	__u8 version;
	__u8 exchange;
	__u8 flags;
	__be32 message_id;
	__be32 length;
};

#define IKE_MAJOR(version) ((version) >> 4)
#define IKE_SA_INIT 34
#define IKE_FLAG_INITIATOR 0x08
#define IKE_FLAG_RESPONSE 0x20
#define SPI_FIRST 256 /* SPIs below are reserved, RFC 4303, section 2.1 */
#define IKE_NOTIFY 41 /* the payload, RFC 7296, section 3.2 */
#define IKE_ENCRYPTED 46
#define IKE_ENCRYPTED_FRAGMENT 53 /* RFC 7383, section 2.5 */
#define IKEV1_FLAG_ENCRYPTED 0x01 /* RFC 2408, section 3.1 */
#define IKEV1_NOTIFY 11

/* include/uapi/linux/icmp.h and icmpv6.h. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_ERROR_FIRST 1 /* destination unreachable, packet too big, */
#define ICMPV6_ERROR_LAST 4  /* time exceeded, parameter problem */
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_MLD_FIRST 130 /* query, report, done */
#define ICMPV6_MLD_LAST 132
#define ICMPV6_ND_FIRST 133 /* router and neighbour solicitation and advertisement, */
#define ICMPV6_ND_LAST 137  /* redirect */
#define ICMPV6_MLD2_REPORT 143

/* Of a message's port, above its 16 bits; an enum, as user space cannot see macros. */
enum message_port {
	PORT_TO_IKE = 0x10000,
};

enum side {
	SIDE_CLIENT,
	SIDE_BACKEND,
};

enum kind {
	KIND_OTHER,
	KIND_MALFORMED,
	KIND_NEIGHBOUR, /* ARP, ND and MLD */
	KIND_IKE,
	KIND_KEEPALIVE,
	KIND_ESP, /* AH and ESP in UDP too: data of a tunnel */
	KIND_ECHO_REQUEST,
	KIND_ECHO_REPLY,
	KIND_ICMP_ERROR,
	KIND_ICMP_OTHER,
	KIND_LATER_FRAGMENT,
};

struct message {
	/* The client that it is from or to; for a KIND_ICMP_ERROR from the client side, whom the quoted packet was sent to. */
	struct address client;
	/* These are set for KIND_IKE, and 0 for others. */
	__be64 initiator_spi;
	__be64 responder_spi;
	enum kind kind;
	/* Of KIND_ESP, in host order: the receiver's SPI. 0 for others. */
	__u32 spi;
	/*
	 * The client's UDP port, in host order, with PORT_TO_IKE where it speaks to port 500: a NAT may give one port to two
	 * clients that speak to different ones. For a KIND_ICMP_ERROR from the client side that of the quote. 0: none.
	 */
	__u32 port;
	/* For KIND_IKE, and false for others. */
	bool starts_sa;
	bool notifies;
	bool of_initiator; /* whether the sender began the SA, as far as the message tells */
	bool encrypted;    /* whether all of its payloads are */
};

/*
 * Whether an IKE message asks for a new SA: the responder has no SPI yet, and (IKEv2) it is a
 * request. An answer without a responder SPI exists: the one that demands a cookie (RFC 7296, section 2.6).
 */
static __always_inline bool ike_starts_sa(const struct ike_header *ike)
{
	if (!ike->initiator_spi || ike->responder_spi)
		return false;
	if (IKE_MAJOR(ike->version) == 1)
		return true;
	return IKE_MAJOR(ike->version) == 2 && ike->exchange == IKE_SA_INIT && !(ike->flags & IKE_FLAG_RESPONSE);
}

/*
 * Whether an IKE message is a notification in clear. INVALID_IKE_SPI is one (RFC 7296, section 1.5): it repeats
 * the SPIs of the message that it complains of, so whoever sends it has chosen neither.
 */
static __always_inline bool ike_notifies(const struct ike_header *ike)
{
	return ike->next_payload == (IKE_MAJOR(ike->version) == 1 ? IKEV1_NOTIFY : IKE_NOTIFY);
}

/*
 * Whether the sender of an IKE message is who began the SA, so that the initiator SPI is its own: in IKEv2 a flag
 * says so (RFC 7296, section 3.1). IKEv1 has none; there it is taken for granted that clients begin.
 */
static __always_inline bool ike_of_initiator(const struct ike_header *ike, enum side side)
{
	if (IKE_MAJOR(ike->version) == 1)
		return side == SIDE_CLIENT;
	return ike->flags & IKE_FLAG_INITIATOR;
}

/* Whether the sender of an IKE message shows that it has the SA's keys, to whom can check it. */
static __always_inline bool ike_encrypted(const struct ike_header *ike)
{
	if (IKE_MAJOR(ike->version) == 1)
		return ike->flags & IKEV1_FLAG_ENCRYPTED;
	return ike->next_payload == IKE_ENCRYPTED || ike->next_payload == IKE_ENCRYPTED_FRAGMENT;
}

static __always_inline void classify_ike(const struct packet *packet, struct message *message, enum side side,
					 void *payload, __u32 bytes)
{
	struct ike_header *ike = payload;

	if (bytes < IKE_BYTES_MIN || !packet_holds(packet, ike, IKE_BYTES_MIN)) {
		message->kind = KIND_MALFORMED;
		return;
	}
	message->kind = KIND_IKE;
	message->initiator_spi = ike->initiator_spi;
	message->responder_spi = ike->responder_spi;
	message->starts_sa = ike_starts_sa(ike);
	message->notifies = ike_notifies(ike);
	message->of_initiator = ike_of_initiator(ike, side);
	message->encrypted = ike_encrypted(ike);
}

/* ESP begins with its SPI, RFC 4303, section 2. */
static __always_inline void classify_esp(const struct packet *packet, struct message *message, void *at, __u32 bytes)
{
	__be32 *spi = at;

	message->kind = KIND_ESP;
	if (bytes < ESP_BYTES_MIN || !packet_holds(packet, spi, ESP_BYTES_MIN))
		message->kind = KIND_MALFORMED;
	else
		message->spi = bpf_ntohl(*spi);
}

/* In AH the SPI comes behind four other bytes, RFC 4302, section 2. */
static __always_inline void classify_ah(const struct packet *packet, struct message *message)
{
	__be32 *words = packet->l4;

	message->kind = KIND_ESP;
	if (packet->l4_bytes < AH_BYTES_MIN || !packet_holds(packet, words, AH_BYTES_MIN))
		message->kind = KIND_MALFORMED;
	else
		message->spi = bpf_ntohl(words[1]);
}

/* RFC 3948, section 2: port 4500 tells IKE, ESP and keepalives apart by their first bytes. */
static __always_inline void classify_udp4500(const struct packet *packet, struct message *message, enum side side,
					     void *payload, __u32 bytes)
{
	__be32 *marker = payload;
	__u8 *first = payload;

	if (bytes == 1 && packet_holds(packet, first, 1) && *first == NAT_KEEPALIVE)
		message->kind = KIND_KEEPALIVE;
	else if (bytes < sizeof(*marker) || !packet_holds(packet, marker, sizeof(*marker)))
		message->kind = KIND_MALFORMED;
	else if (!*marker)
		classify_ike(packet, message, side, payload + sizeof(*marker), bytes - sizeof(*marker));
	else
		classify_esp(packet, message, payload, bytes);
}

static __always_inline void classify_udp(const struct packet *packet, struct message *message, enum side side)
{
	struct udphdr *udp = packet->l4;
	__u32 bytes;
	__be16 port;

	if (packet->l4_bytes < sizeof(*udp) || !packet_holds(packet, udp, sizeof(*udp))) {
		message->kind = KIND_MALFORMED;
		return;
	}
	bytes = bpf_ntohs(udp->len);
	/* A first fragment holds less than the length of the whole datagram. */
	if (packet->fragment == FRAGMENT_FIRST && bytes > packet->l4_bytes)
		bytes = packet->l4_bytes;
	if (bytes < sizeof(*udp) || bytes > packet->l4_bytes) {
		message->kind = KIND_MALFORMED;
		return;
	}
	bytes -= sizeof(*udp);

	port = side == SIDE_CLIENT ? udp->dest : udp->source;
	message->port = bpf_ntohs(side == SIDE_CLIENT ? udp->source : udp->dest);
	if (port == bpf_htons(PORT_IKE)) {
		message->port |= PORT_TO_IKE;
		classify_ike(packet, message, side, udp + 1, bytes);
	} else if (port == bpf_htons(PORT_IKE_NAT)) {
		classify_udp4500(packet, message, side, udp + 1, bytes);
	} else {
		message->kind = KIND_OTHER;
	}
}

/*
 * Takes for the client whom the packet that an ICMP error quotes was sent to. The quote is cut short by
 * whoever reports the error, so its own length fields say nothing; `bytes` is what the error holds of it.
 */
static __always_inline bool client_from_quote(const struct packet *packet, struct message *message, void *quote,
					      __u32 bytes)
{
	struct udphdr *udp;

	if (packet->ethertype == ETH_P_IP) {
		struct iphdr *ip = quote;

		if (bytes < sizeof(*ip) || !packet_holds(packet, ip, sizeof(*ip)) || ip->version != 4 || ip->ihl < 5)
			return false;
		message->client = address_v4(ip->daddr);
		if (ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(IPV4_OFFSET_MASK))
			return true;
		udp = quote + ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = quote;

		if (bytes < sizeof(*ip) || !packet_holds(packet, ip, sizeof(*ip)) || ip->version != 6)
			return false;
		message->client = address_v6(&ip->daddr);
		if (ip->nexthdr != IPPROTO_UDP)
			return true;
		udp = (void *)(ip + 1);
	}
	if ((void *)(udp + 1) <= quote + bytes && packet_holds(packet, udp, sizeof(*udp)))
		message->port = bpf_ntohs(udp->dest) | (udp->source == bpf_htons(PORT_IKE) ? PORT_TO_IKE : 0);
	return true;
}

static __always_inline enum kind icmp_kind(__u8 type)
{
	switch (type) {
	case ICMP_ECHO:
		return KIND_ECHO_REQUEST;
	case ICMP_ECHOREPLY:
		return KIND_ECHO_REPLY;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return KIND_ICMP_ERROR;
	default:
		return KIND_ICMP_OTHER;
	}
}

static __always_inline enum kind icmpv6_kind(__u8 type)
{
	if (type == ICMPV6_ECHO_REQUEST)
		return KIND_ECHO_REQUEST;
	if (type == ICMPV6_ECHO_REPLY)
		return KIND_ECHO_REPLY;
	if (type >= ICMPV6_ERROR_FIRST && type <= ICMPV6_ERROR_LAST)
		return KIND_ICMP_ERROR;
	if ((type >= ICMPV6_MLD_FIRST && type <= ICMPV6_MLD_LAST) ||
	    (type >= ICMPV6_ND_FIRST && type <= ICMPV6_ND_LAST) || type == ICMPV6_MLD2_REPORT)
		return KIND_NEIGHBOUR;
	return KIND_ICMP_OTHER;
}

static __always_inline void classify_icmp(const struct packet *packet, struct message *message, enum side side)
{
	__u8 *type = packet->l4;

	if (packet->l4_bytes < ICMP_BYTES_MIN || !packet_holds(packet, type, ICMP_BYTES_MIN)) {
		message->kind = KIND_MALFORMED;
		return;
	}
	message->kind = packet->ethertype == ETH_P_IP ? icmp_kind(*type) : icmpv6_kind(*type);
	if (message->kind == KIND_ICMP_ERROR && side == SIDE_CLIENT &&
	    !client_from_quote(packet, message, packet->l4 + ICMP_BYTES_MIN, packet->l4_bytes - ICMP_BYTES_MIN))
		message->kind = KIND_MALFORMED;
}

/* What `packet`, parsed from a frame of `side`, is. */
static __always_inline void classify(const struct packet *packet, struct message *message, enum side side)
{
	__u8 icmp = packet->ethertype == ETH_P_IP ? IPPROTO_ICMP : IPPROTO_ICMPV6;
	__u8 protocol = packet->protocol;

	message->client = side == SIDE_CLIENT ? packet->source : packet->destination;
	message->port = 0;
	message->spi = 0;
	message->initiator_spi = 0;
	message->responder_spi = 0;
	message->starts_sa = false;
	message->notifies = false;
	message->of_initiator = false;
	message->encrypted = false;
	if (packet->ethertype == ETH_P_ARP) {
		bool whole = packet_holds(packet, packet->l3, ARP_BYTES_MIN);

		message->kind = whole ? KIND_NEIGHBOUR : KIND_MALFORMED;
		return;
	}
	if (packet->ethertype != ETH_P_IP && packet->ethertype != ETH_P_IPV6) {
		message->kind = KIND_OTHER;
		return;
	}
	if (packet->fragment == FRAGMENT_LATER) {
		/* Behind another extension header the protocol stands in the first fragment alone. */
		bool hidden = packet->ethertype == ETH_P_IPV6 && ipv6_is_extension(protocol);
		bool ours = protocol == IPPROTO_UDP || protocol == IPPROTO_ESP || protocol == IPPROTO_AH ||
			    protocol == icmp || hidden;

		message->kind = ours ? KIND_LATER_FRAGMENT : KIND_OTHER;
		return;
	}
	if (protocol == IPPROTO_ESP)
		classify_esp(packet, message, packet->l4, packet->l4_bytes);
	else if (protocol == IPPROTO_UDP)
		classify_udp(packet, message, side);
	else if (protocol == IPPROTO_AH)
		classify_ah(packet, message);
	else if (protocol == icmp)
		classify_icmp(packet, message, side);
	else
		message->kind = KIND_OTHER;
}
