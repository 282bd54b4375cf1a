/*
 * test_coalesce.c - segment(coalesce(x)) == x for random batches, and no packet overtakes one that it is related to.
 *
 * Structure:  a batch is 2 to 300 packets of up to 4 senders. Senders mostly do what makes superpackets; now and then something that must
 *             not be joined happens (enum event), once or from then on.
 * Arguments:  seed, batches. Prints packets, what they became, and the most segments of one; Python checks that they were joined at all.
 */
#include "check.h"

#include <netinet/in.h>
#include <stdbool.h>

#include "canal.h"
#include "packet.h"
#include "vnet.h"

enum { SENDERS = 4, PACKETS_MAX = 300, BATCH_BYTES = 1 << 20 };

enum event {
	SHORT, ONE_BYTE, EMPTY, LONG, PUSH, TCP_FLAG, ACK_NO, WINDOW, TIMESTAMP, TTL, TOS, DF, ID_JUMP, ID_SAME, SEQ_GAP, SEQ_REPEAT,
	IP_OPTION, FRAGMENT, NO_CHECKSUM, TCP_RESERVED, FLOW_LABEL, URGENT, ICMP, UDP_PADDING, EVENTS, NOTHING
};

struct sender {
	uint8_t family, proto, src, dst, ttl, tos, reserved;
	bool df, timestamps;
	uint16_t sport, dport, id, window, urgent, mss;
	uint32_t seq, ack, stamp, label;
};

struct batch {
	uint8_t *bytes;
	uint32_t used, n;
	struct canal_span spans[PACKETS_MAX];
};

static uint64_t seed;

static bool happens(uint32_t percent)
{
	return random_below(&seed, 100) < percent;
}

/* ---- making packets ------------------------------------------------------------------------------------------------------ */

static uint32_t slow_sum(const uint8_t *bytes, size_t size, uint32_t sum)
{
	for (size_t i = 0; i < size; i++)
		sum += i & 1 ? bytes[i] : (uint32_t)bytes[i] << 8;
	while (sum > 0xffff)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static void write_check(uint8_t *ip, uint32_t offset, uint32_t field, uint32_t size, uint8_t proto)
{
	bool ipv4 = ip[0] >> 4 == 4;
	uint32_t sum = slow_sum(ip + (ipv4 ? 12 : 8), ipv4 ? 8 : 32, proto + size);
	uint32_t check;

	store_be16(ip + offset + field, 0);
	check = ~slow_sum(ip + offset, size, sum) & 0xffff;
	store_be16(ip + offset + field, check == 0 && proto == IPPROTO_UDP ? 0xffff : check);
}

static void write_ipv4(uint8_t *ip, const struct sender *s, uint32_t header, uint32_t size, uint8_t proto, uint32_t frag)
{
	memset(ip, 1, header);                                   /* options: NOP */
	ip[0] = (uint8_t)(0x40 | header / 4);
	ip[1] = s->tos;
	store_be16(ip + 2, size);
	store_be16(ip + 4, s->id);
	store_be16(ip + 6, frag | (s->df ? 0x4000u : 0));
	ip[8] = s->ttl;
	ip[9] = proto;
	store_be16(ip + 10, 0);
	store_be32(ip + 12, 0x0af40100u + s->src);
	store_be32(ip + 16, 0x0af40200u + s->dst);
	store_be16(ip + 10, ~slow_sum(ip, header, 0) & 0xffff);
}

/* extra: bytes of an extension header, destination options or fragment */
static void write_ipv6(uint8_t *ip, const struct sender *s, uint32_t extra, uint32_t size, uint8_t proto, bool fragment, uint32_t frag)
{
	memset(ip, 0, 40 + extra);
	store_be32(ip, 6u << 28 | (uint32_t)s->tos << 20 | s->label);
	store_be16(ip + 4, size - 40);
	ip[6] = !extra ? proto : fragment ? IPPROTO_FRAGMENT : IPPROTO_DSTOPTS;
	ip[7] = s->ttl;
	ip[8] = ip[24] = 0xfd;
	ip[23] = s->src;
	ip[39] = s->dst;
	if (!extra)
		return;
	ip[40] = proto;
	if (fragment)
		store_be16(ip + 42, (frag & 0x1fff) << 3 | (frag & 0x2000 ? 1 : 0));
	else
		ip[42] = 1, ip[43] = 4;
}

/* Any fragment between the sender's addresses: first, middle or last. */
static uint32_t write_fragment(uint8_t *ip, struct sender *s)
{
	static const uint32_t frags[] = { 0x2000, 0x2000 | 100, 100 };
	uint32_t frag = frags[random_below(&seed, 3)], header = s->family == 4 ? 20 : 48, payload = 64;

	random_bytes(&seed, ip + header, payload);
	memset(ip + header + 12, 0x50, 1);
	store_be16(ip + header + 4, 500);
	if (s->family == 4)
		write_ipv4(ip, s, header, header + payload, s->proto, frag);
	else
		write_ipv6(ip, s, 8, header + payload, s->proto, true, frag);
	return header + payload;
}

static uint32_t write_icmp(uint8_t *ip, struct sender *s)
{
	uint32_t header = s->family == 4 ? 20 : 40;
	uint8_t proto = s->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;

	memset(ip + header, 0, 16);
	ip[header] = s->family == 4 ? 8 : 128;
	store_be16(ip + header + 4, s->sport);
	if (s->family == 4)
		write_ipv4(ip, s, header, header + 16, proto, 0);
	else
		write_ipv6(ip, s, 0, header + 16, proto, false, 0);
	return header + 16;
}

static uint32_t write_l4_header(uint8_t *l4, const struct sender *s, uint8_t flags)
{
	uint32_t size = s->proto == IPPROTO_UDP ? 8 : s->timestamps ? 32 : 20;

	memset(l4, 0, size);
	store_be16(l4, s->sport);
	store_be16(l4 + 2, s->dport);
	if (s->proto == IPPROTO_UDP)
		return size;
	store_be32(l4 + 4, s->seq);
	store_be32(l4 + 8, s->ack);
	l4[12] = (uint8_t)(size << 2 | s->reserved);
	l4[13] = flags;
	store_be16(l4 + 14, s->window);
	store_be16(l4 + 18, s->urgent);
	if (s->timestamps) {
		memcpy(l4 + 20, "\1\1\10\12", 4);
		store_be32(l4 + 24, s->stamp);
	}
	return size;
}

/* Returns the packet's size. */
static uint32_t write_packet(uint8_t *ip, struct sender *s, enum event event, uint32_t payload, uint8_t flags)
{
	uint32_t extra = event == IP_OPTION ? 8 : 0, offset = (s->family == 4 ? 20 : 40) + extra;
	uint32_t padding = event == UDP_PADDING && s->proto == IPPROTO_UDP ? 3 : 0, l4_size, size;

	l4_size = write_l4_header(ip + offset, s, flags);
	random_bytes(&seed, ip + offset + l4_size, payload + padding);
	size = offset + l4_size + payload + padding;
	if (s->family == 4)
		write_ipv4(ip, s, offset, size, s->proto, 0);
	else
		write_ipv6(ip, s, extra, size, s->proto, false, 0);
	if (s->proto == IPPROTO_UDP)
		store_be16(ip + offset + 4, l4_size + payload);
	write_check(ip, offset, s->proto == IPPROTO_TCP ? 16 : 6, l4_size + payload, s->proto);
	if (event == NO_CHECKSUM && s->proto == IPPROTO_UDP && s->family == 4)
		store_be16(ip + offset + 6, 0);
	return size;
}

/* ---- senders ------------------------------------------------------------------------------------------------------------- */

/* What holds for this packet and all later ones of the sender. */
static void change(struct sender *s, enum event event)
{
	switch (event) {
	case ACK_NO: s->ack++; break;
	case WINDOW: s->window++; break;
	case TIMESTAMP: s->stamp++; break;
	case TTL: s->ttl = (uint8_t)(64 + random_below(&seed, 2)); break;
	case TOS: s->tos = (uint8_t)random_below(&seed, 4); break;
	case DF: s->df = !s->df; break;
	case ID_JUMP: s->id = (uint16_t)random_u64(&seed); break;
	case ID_SAME: s->id--; break;
	case SEQ_GAP: s->seq += s->mss; break;
	case SEQ_REPEAT: s->seq -= s->mss; break;
	case TCP_RESERVED: s->reserved ^= 1; break;
	case FLOW_LABEL: s->label ^= 1; break;
	case URGENT: s->urgent ^= 1; break;
	default: break;
	}
}

static uint32_t payload_size(const struct sender *s, enum event event)
{
	switch (event) {
	case SHORT: return 1 + random_below(&seed, s->mss);
	case ONE_BYTE: return 1;
	case EMPTY: return 0;
	case LONG: return s->mss + 1 + random_below(&seed, 20);
	default: return s->mss;
	}
}

static void send_packet(struct batch *b, struct sender *s, uint32_t noise)
{
	enum event event = happens(noise) ? (enum event)random_below(&seed, EVENTS) : NOTHING;
	uint8_t *ip = b->bytes + b->used, flags = 16;
	uint32_t payload = payload_size(s, event), size;

	change(s, event);
	if (event == PUSH || (event == SHORT && happens(50)))
		flags |= 8;
	if (event == TCP_FLAG)
		flags = (uint8_t)(1u << random_below(&seed, 8) | (happens(80) ? 16 : 0));
	if (event == FRAGMENT)
		size = write_fragment(ip, s);
	else if (event == ICMP)
		size = write_icmp(ip, s);
	else
		size = write_packet(ip, s, event, payload, flags);
	if (event != FRAGMENT && event != ICMP)
		s->seq += payload;
	s->id++;
	b->spans[b->n++] = (struct canal_span){ b->used, size };
	b->used += size + 1;                                     /* a gap */
}

static struct sender new_sender(uint32_t mss)
{
	return (struct sender){
		.family = happens(50) ? 4 : 6, .proto = happens(60) ? IPPROTO_TCP : IPPROTO_UDP, .src = 1, .dst = 9, .ttl = 64, .df = happens(70),
		.timestamps = happens(60), .sport = 3000, .dport = 80, .id = happens(20) ? 65530 : (uint16_t)random_u64(&seed), .window = 500,
		.mss = (uint16_t)mss, .seq = happens(20) ? 0xfffffe00 : (uint32_t)random_u64(&seed),
	};
}

/* Another one; when `alike` it differs only in what makes it another flow, by as much as leaves the hash of canal_coalesce() the same. */
static struct sender next_sender(const struct sender *first, uint32_t index, uint32_t mss, bool alike)
{
	struct sender s = alike ? *first : new_sender(mss);

	s.src = (uint8_t)(first->src + index / 2);
	s.dst = (uint8_t)(first->dst - index / 2);
	s.sport = index % 2 ? first->dport : first->sport;
	s.dport = index % 2 ? first->sport : first->dport;
	return s;
}

static void new_batch(struct batch *b)
{
	struct sender senders[SENDERS];
	bool many = happens(2), huge = happens(1), alike = happens(30);
	uint32_t n_senders = 1 + random_below(&seed, SENDERS), noise = happens(40) ? 0 : 5 + random_below(&seed, 40);
	uint32_t n = many ? 100 + random_below(&seed, PACKETS_MAX - 100) : 2 + random_below(&seed, 24), at = 0;
	uint32_t mss = huge ? 5000 + random_below(&seed, 4000) : 1 + random_below(&seed, many ? 20 : 200);

	senders[0] = new_sender(mss);
	for (uint32_t i = 1; i < n_senders; i++)
		senders[i] = next_sender(&senders[0], i, mss, alike);
	b->used = b->n = 0;
	while (b->n < n && b->used < BATCH_BYTES - 10000) {
		at = happens(many ? 1 : 30) ? random_below(&seed, n_senders) : at;
		send_packet(b, &senders[at], noise);
	}
}

/* ---- checking ------------------------------------------------------------------------------------------------------------ */

static bool is_fragment(const struct canal_flow *f)
{
	return f->flags & CANAL_FLOW_FRAG;
}

static bool related(const struct canal_flow *a, const struct canal_flow *b)
{
	if (memcmp(a->src, b->src, 16) != 0 || memcmp(a->dst, b->dst, 16) != 0)
		return false;
	return is_fragment(a) || is_fragment(b) || (a->proto == b->proto && a->sport_be == b->sport_be && a->dport_be == b->dport_be);
}

/* wire: what came back; position[i]: where packet i of the batch is in it. */
static void check_same(const struct batch *b, const struct batch *wire, uint32_t *position)
{
	static bool taken[PACKETS_MAX];

	CHECK_EQ(wire->n, b->n);
	memset(taken, 0, sizeof(taken));
	for (uint32_t i = 0; i < b->n; i++) {
		uint32_t k = 0;

		while (k < wire->n && (taken[k] || wire->spans[k].size != b->spans[i].size ||
		                       memcmp(wire->bytes + wire->spans[k].offset, b->bytes + b->spans[i].offset, b->spans[i].size) != 0))
			k++;
		CHECK(k < wire->n);
		taken[k] = true;
		position[i] = k;
	}
}

static void check_order(const struct batch *b, const struct canal_flow *flows, const uint32_t *position)
{
	for (uint32_t i = 0; i < b->n; i++)
		for (uint32_t k = i + 1; k < b->n; k++)
			CHECK(position[i] < position[k] || !related(&flows[i], &flows[k]));
}

/* The header that goes to the TUN is one that we would take from it, and the checksum is the pseudo header's sum. */
static void check_superpacket(const uint8_t *ip, uint32_t size, const struct canal_vnet *vnet)
{
	struct canal_span span = { 0, size };
	uint8_t hdr[CANAL_VNET_HDR_SIZE];
	struct canal_vnet back;
	struct canal_flow flow;
	bool ipv4 = ip[0] >> 4 == 4;
	uint32_t l4 = size - vnet->csum_start;

	canal_parse(ip, &span, 1, &flow);
	CHECK_EQ(flow.drop, CANAL_DROP_NONE);
	CHECK_EQ(flow.total_size, size);
	vnet_push(hdr, vnet);
	CHECK_EQ(vnet_pull(hdr, &flow, &back), CANAL_DROP_NONE);
	CHECK_BYTES(&back, vnet, sizeof(back));
	CHECK_EQ(load_be16(ip + vnet->csum_start + vnet->csum_offset), slow_sum(ip + (ipv4 ? 12 : 8), ipv4 ? 8 : 32, flow.proto + l4));
}

/* Superpackets -> wire; returns the most segments of one. */
static uint32_t cut_all(const uint8_t *bytes, const struct canal_span *spans, const struct canal_vnet *vnets, int n, struct batch *wire)
{
	uint32_t most = 0;

	wire->n = wire->used = 0;
	for (int i = 0; i < n; i++) {
		uint32_t left = PACKETS_MAX - wire->n;
		int count = canal_segment(bytes + spans[i].offset, spans[i].size, &vnets[i], wire->bytes + wire->used, BATCH_BYTES - wire->used,
		                          wire->spans + wire->n, vnets[i].segments < left ? vnets[i].segments : left);

		CHECK_EQ(count, vnets[i].segments);
		if (count > 1)
			check_superpacket(bytes + spans[i].offset, spans[i].size, &vnets[i]);
		for (int k = 0; k < count; k++, wire->n++)
			wire->spans[wire->n].offset += wire->used;
		wire->used = wire->spans[wire->n - 1].offset + wire->spans[wire->n - 1].size;
		most = (uint32_t)count > most ? (uint32_t)count : most;
	}
	return most;
}

static void check_flags(uint32_t flags, const struct canal_vnet *vnets, int n)
{
	for (int i = 0; i < n; i++) {
		CHECK(!(flags & CANAL_DP_NO_COALESCE) || vnets[i].segments == 1);
		CHECK(!(flags & CANAL_DP_NO_USO_WRITE) || vnets[i].gso_type != GSO_UDP_L4);
	}
}

int main(int argc, char **argv)
{
	static struct batch batch, wire;
	static struct canal_span spans[PACKETS_MAX];
	static struct canal_vnet vnets[PACKETS_MAX];
	static struct canal_flow flows[PACKETS_MAX];
	static uint32_t position[PACKETS_MAX];
	uint8_t *out = malloc(BATCH_BYTES);
	uint32_t batches = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 0) : 1000, most = 0;
	unsigned long packets = 0, became = 0;

	seed = strtoull(argc > 1 ? argv[1] : "1", NULL, 0);
	batch.bytes = malloc(BATCH_BYTES);
	wire.bytes = malloc(BATCH_BYTES);
	CHECK(out && batch.bytes && wire.bytes);
	for (uint32_t i = 0; i < batches; i++) {
		uint32_t flags = happens(10) ? CANAL_DP_NO_USO_WRITE : happens(2) ? CANAL_DP_NO_COALESCE : 0, cut;
		uint8_t *exact;
		int n;

		new_batch(&batch);
		exact = exact_copy(batch.bytes, batch.used - 1);
		canal_parse(exact, batch.spans, batch.n, flows);
		for (uint32_t k = 0; k < batch.n; k++)
			CHECK_EQ(flows[k].drop, CANAL_DROP_NONE);
		n = canal_coalesce(exact, batch.spans, batch.n, flags, out, batch.used, spans, vnets, batch.n);
		CHECK(n > 0);
		check_flags(flags, vnets, n);
		cut = cut_all(out, spans, vnets, n, &wire);
		check_same(&batch, &wire, position);
		check_order(&batch, flows, position);
		most = cut > most ? cut : most;
		packets += batch.n;
		became += (unsigned long)n;
		free(exact);
	}
	printf("%lu %lu %u\n", packets, became, most);
	free(out);
	free(batch.bytes);
	free(wire.bytes);
	return 0;
}
