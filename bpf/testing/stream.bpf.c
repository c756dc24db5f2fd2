// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The far end of streams of ESP, for tests that must know of every packet: it checks their numbers and drops them. And
 * a flood of IKE starts from as many sources as there are packets, made by BPF_PROG_TEST_RUN with live frames.
 */
#include "checksum.h"
#include "common.h"

#define STREAM_FLOWS 64
/* The last bytes of every frame that is counted. */
#define STREAM_MAGIC 0x5357464c
/* As many starts may be under way; a veth takes 256 packets before it loses any. */
#define STREAM_FLOOD_WINDOW 64

struct stream_mark {
	__u32 magic;
	__u16 flow;        /* one sender's packets to one receiver; STREAM_FLOWS: a start of the flood */
	__u16 sequence_at; /* where in the frame the sequence number of ESP is */
};

/* What a receiver has of one flow. */
struct stream_tally {
	__u64 received;
	__u64 late;    /* numbers that are not above all before: repeated, or overtaken */
	__u64 skipped; /* numbers left out by those that came */
	__u64 highest;
};

/* One entry, of all receivers and the flood together. */
struct stream_totals {
	__u64 arrived; /* packets of flows */
	__u64 flood_made;
	__u64 flood_arrived;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STREAM_FLOWS);
	__type(key, __u32);
	__type(value, struct stream_tally);
} stream_tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stream_totals);
} stream_totals SEC(".maps");

/* The interface that the flood leaves by. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} stream_port SEC(".maps");

/* Counts what is marked. The rest is the network stack's. */
SEC("xdp")
int stream_receive(struct xdp_md *ctx)
{
	__u32 length = ctx->data_end - ctx->data, flow, zero = 0;
	struct stream_totals *totals = bpf_map_lookup_elem(&stream_totals, &zero);
	struct stream_tally *tally;
	struct stream_mark mark;
	__u64 sequence;
	__be32 bytes;

	if (!totals || length < sizeof(mark) || bpf_xdp_load_bytes(ctx, length - sizeof(mark), &mark, sizeof(mark)) ||
	    mark.magic != STREAM_MAGIC)
		return XDP_PASS;
	flow = mark.flow;
	if (flow == STREAM_FLOWS) {
		__sync_fetch_and_add(&totals->flood_arrived, 1);
		return XDP_DROP;
	}
	tally = bpf_map_lookup_elem(&stream_tallies, &flow);
	if (!tally || bpf_xdp_load_bytes(ctx, mark.sequence_at, &bytes, sizeof(bytes)))
		return XDP_PASS;
	sequence = bpf_ntohl(bytes);
	if (sequence <= tally->highest) {
		__sync_fetch_and_add(&tally->late, 1);
	} else {
		__sync_fetch_and_add(&tally->skipped, sequence - tally->highest - 1);
		tally->highest = sequence;
	}
	__sync_fetch_and_add(&tally->received, 1);
	__sync_fetch_and_add(&totals->arrived, 1);
	return XDP_DROP;
}

/*
 * Sends an IKE start, with headers of IP without options and of UDP, from another source and with another initiator SPI at
 * each run. A run that finds enough starts under way sends nothing.
 */
SEC("xdp")
int stream_flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct stream_mark mark = {.magic = STREAM_MAGIC, .flow = STREAM_FLOWS};
	struct ethhdr *eth = data;
	struct iphdr *ip4 = (void *)(eth + 1);
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct stream_totals *totals;
	__u32 length = end - data, zero = 0, *spi;
	struct udphdr *udp;

	totals = bpf_map_lookup_elem(&stream_totals, &zero);
	if (!totals || (void *)(ip6 + 1) > end)
		return XDP_ABORTED;
	if (totals->flood_made - READ_ONCE(totals->flood_arrived) >= STREAM_FLOOD_WINDOW)
		return XDP_DROP;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		__u16 *words = (void *)ip4;
		__u32 sum = 0;

		/* From 11.0.0.0 to 180.255.255.255, where no test has a client. */
		ip4->saddr = bpf_htonl((11 + bpf_get_prandom_u32() % 170) << 24 | (bpf_get_prandom_u32() & 0xffffff));
		ip4->check = 0;
		for (int i = 0; i < 10; i++)
			sum += words[i];
		ip4->check = checksum_finish(sum);
		udp = (void *)(ip4 + 1);
	} else {
		/* The first 32 bits stay. */
		for (int i = 1; i < 4; i++)
			ip6->saddr.in6_u.u6_addr32[i] = bpf_get_prandom_u32();
		udp = (void *)(ip6 + 1);
	}
	spi = (void *)(udp + 1);
	if ((void *)(spi + 2) > end)
		return XDP_ABORTED;
	spi[0] = bpf_get_prandom_u32() | 1;
	spi[1] = bpf_get_prandom_u32();
	if (length < sizeof(mark) || bpf_xdp_store_bytes(ctx, length - sizeof(mark), &mark, sizeof(mark)))
		return XDP_ABORTED;
	totals->flood_made++;
	return bpf_redirect_map(&stream_port, 0, XDP_DROP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
