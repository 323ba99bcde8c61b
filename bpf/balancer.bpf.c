/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The balancer: each packet for a VIP goes to one backend of the VIP's pool.
 *
 * A packet is parsed once, into one small record; then it is decided what becomes of
 * it; then, and only then, is the frame touched. What is for no VIP leaves after one
 * look-up. docs/reference/balancer-packets.md says all of it from the outside.
 */
#include "answer.h"
#include "balancer_maps.h"
#include "choose.h"
#include "packet.h"
#include "read_stamp.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "GPL";

/* Keeps every shared type in the object's BTF at the price of a pointer; see balancer.h. */
const struct balancer_manifest *const volatile manifest = NULL;

/* A decision: what to do, and with what. */
struct decision {
	struct choice choice;
	struct way_out asked; /* the way out, if the kernel had to be asked */
	const struct way_out *way;
	const struct vip_entry *vip;
	const struct pool *pool;
	const struct backend *backend;
	__u8 outcome;
	__u8 verdict;
};

static ALWAYS_INLINE void decide_drop(struct decision *decision, enum outcome outcome)
{
	decision->outcome = outcome;
	decision->verdict = XDP_DROP;
}

/* Section 3 of the page: from the backend chosen to what is sent. */
static ALWAYS_INLINE void decide_way(struct xdp_md *ctx, const struct packet *packet,
				     struct decision *decision)
{
	const struct backend *backend = decision->backend;
	__u32 length;

	if (unlikely(backend->flags & BACKEND_LOCAL)) {
		decision->outcome = TO_LOCAL;
		decision->verdict = XDP_PASS;
		return;
	}
	if (unlikely(packet->ttl <= 1)) {
		decide_drop(decision, TTL_EXPIRED);
		return;
	}
	length = packet->length + tunnel_overhead(decision->pool, backend);
	if (unlikely(length > backend->mtu && backend->mtu)) {
		if (packet->dont_fragment && !packet->quoting && packet->length >= QUOTE &&
		    answerable(packet->client, packet->is_ipv4)) {
			decision->outcome = TOO_BIG;
			decision->verdict = XDP_TX;
		} else {
			decide_drop(decision, TOO_BIG_DROPPED);
		}
		return;
	}
	decision->way = &backend->way;
	if (unlikely(!(backend->flags & BACKEND_RESOLVED))) {
		if (!ask_route(ctx, backend, &decision->asked)) {
			decide_drop(decision, NO_ROUTE);
			return;
		}
		decision->way = &decision->asked;
	}
	decision->verdict = decision->way->ifindex == ctx->ingress_ifindex ? XDP_TX : XDP_REDIRECT;
}

/* The backend that the packet itself names; NOBODY: it names none that counts. */
static ALWAYS_INLINE __u32 stamped_backend(struct xdp_md *ctx, const struct packet *packet,
					   const struct vip_entry *vip, bool dry, __u32 *stamp)
{
	__u32 id = stamp_of(ctx, packet), number;

	if (id == NO_STAMP)
		return NOBODY;
	if (id == BAD_STAMP) {
		if (!dry)
			count_at(vip->index, BAD_OPTIONS);
		return NOBODY;
	}
	*stamp = id;
	number = id <= ID_LAST ? backend_of(vip->pool, id) : 0;
	if (backend_up(number))
		return number;
	if (!dry)
		count_at(vip->index, FOREIGN_STAMP);
	return NOBODY;
}

/* Sections 2 and 3, for a packet that has a VIP. */
static ALWAYS_INLINE void decide_flow(struct xdp_md *ctx, const struct packet *packet,
				      bool fragment, bool dry, struct decision *decision)
{
	__u32 index = decision->vip->pool, stamped = NOBODY;
	const struct pool *pool = bpf_map_lookup_elem(&pools, &index);

	if (decision->vip->flags & VIP_STAMPED && !fragment)
		stamped = stamped_backend(ctx, packet, decision->vip, dry, &decision->choice.stamp);
	if (unlikely(!pool || !pool->size ||
		     !choose_backend(packet, decision->vip, pool, stamped, fragment, dry,
				     &decision->choice))) {
		decide_drop(decision, NO_BACKEND);
		return;
	}
	decision->pool = pool;
	decision->backend = backend_up(decision->choice.backend);
	if (unlikely(!decision->backend)) {
		decide_drop(decision, NO_BACKEND);
		return;
	}
	decision->outcome = packet->quoting ? ICMP_ERROR : decision->choice.outcome;
	decide_way(ctx, packet, decision);
}

enum icmp_kind {
	ICMP_IS_NOTHING,
	ICMP_IS_ECHO,
	ICMP_IS_ERROR,
};

static ALWAYS_INLINE enum icmp_kind icmp_kind(struct xdp_md *ctx, const struct packet *packet)
{
	const struct icmp_header *icmp = frame_start(ctx) + BOUND(packet->l4, 0x3fff);
	__u8 type;

	if ((void *)(icmp + 1) > frame_end(ctx) ||
	    packet->length < packet->l4 - packet->l3 + sizeof(*icmp))
		return ICMP_IS_NOTHING;
	type = icmp->type;
	if (packet->is_ipv4) {
		if (type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED ||
		    type == ICMP_PARAMETER_PROBLEM)
			return ICMP_IS_ERROR;
		return type == ICMP_ECHO_REQUEST && !icmp->code ? ICMP_IS_ECHO : ICMP_IS_NOTHING;
	}
	if (type >= ICMP6_UNREACHABLE && type <= ICMP6_PARAMETER_PROBLEM)
		return ICMP_IS_ERROR;
	return type == ICMP6_ECHO_REQUEST && !icmp->code ? ICMP_IS_ECHO : ICMP_IS_NOTHING;
}

/* Finds the VIP of what is neither TCP nor UDP with ports. False: passed. */
static NO_INLINE bool find_unusual(struct xdp_md *ctx, struct packet *packet, enum parsed parsed,
				   struct decision *decision)
{
	struct vip_entry *address = vip_find(packet->address, 0, 0), *vip;
	enum icmp_kind kind;

	if (!address)
		return false;
	if (parsed == PARSED_FRAGMENT) {
		packet->client_port = 0;
		packet->port = 0;
		vip = vip_find(packet->address, 0, packet->protocol);
		decision->vip = address;
		decide_drop(decision, FRAGMENT);
		if (vip && vip->flags & VIP_BY_SOURCE) {
			decision->vip = vip;
			decision->verdict = XDP_PASS; /* to be decided */
		}
		return true;
	}
	kind = icmp_kind(ctx, packet);
	if (kind == ICMP_IS_ECHO) {
		if (!packet->plain || !(address->flags & VIP_ECHO) ||
		    !answerable(packet->client, packet->is_ipv4))
			return false;
		decision->vip = address;
		decision->outcome = ECHOED;
		decision->verdict = XDP_TX;
		return true;
	}
	if (kind != ICMP_IS_ERROR || !parse_quoted(ctx, packet))
		return false;
	decision->vip = vip_of(packet);
	decision->verdict = XDP_PASS;
	return decision->vip;
}

/* One VIP's packets, or all, for whoever looks. */
NO_INLINE int capture_frame(struct xdp_md *ctx, __u32 vip, __u32 backend, __u32 outcome,
			    __u32 verdict)
{
	__u32 every = settings.capture_every, length = bpf_xdp_get_buff_len(ctx);
	struct capture *record;

	if (every > 1 && bpf_get_prandom_u32() % every)
		return 0;
	record = bpf_ringbuf_reserve(&captured, sizeof(*record), 0);
	if (!record)
		return 0;
	record->time = bpf_ktime_get_ns();
	record->vip = vip;
	record->length = length;
	record->backend = backend;
	record->outcome = outcome;
	record->verdict = verdict;
	record->ifindex = ctx->ingress_ifindex;
	record->reserved = 0;
	if (length > CAPTURE_OCTETS)
		length = CAPTURE_OCTETS;
	if (!WITHIN(length, CAPTURE_OCTETS) || bpf_xdp_load_bytes(ctx, 0, record->frame, length))
		length = 0;
	record->kept = length;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

static ALWAYS_INLINE void count_sent(const struct packet *packet, const struct decision *decision)
{
	__u32 index = decision->vip->index, number = decision->choice.backend;
	struct backend_counters *sent;
	struct vip_counters *counters;
	__u32 outcome = decision->outcome;

	counters = bpf_map_lookup_elem(&vip_counters, &index);
	asm volatile("" : "+r"(outcome));
	if (counters && outcome < OUTCOMES) {
		counters->outcome[outcome]++;
		if (outcome <= TO_LOCAL)
			counters->octets += packet->length;
	}
	if (outcome > TO_LOCAL)
		return;
	sent = bpf_map_lookup_elem(&backend_counters, &number);
	if (sent) {
		sent->packets++;
		sent->octets += packet->length;
	}
}

/* Does what was decided. */
static ALWAYS_INLINE int act(struct xdp_md *ctx, const struct packet *packet,
			     struct decision *decision)
{
	int verdict = decision->verdict;

	/* Whoever is sent somewhere has a backend: said for the verifier. */
	if (likely(decision->outcome <= ICMP_ERROR && decision->backend && decision->pool &&
		   decision->way)) {
		verdict = tunnel(ctx, packet, decision->pool, decision->backend, decision->way,
				 decision->choice.hash);
	} else if (decision->outcome == ECHOED) {
		verdict = answer_echo(ctx, packet);
	} else if (decision->outcome == TOO_BIG && decision->backend && decision->pool) {
		verdict =
			answer_too_big(ctx, packet,
				       decision->backend->mtu -
					       tunnel_overhead(decision->pool, decision->backend));
	}
	if (unlikely(verdict == XDP_ABORTED)) {
		decision->outcome = NO_ROOM;
		verdict = XDP_DROP;
	}
	return verdict;
}

/* False: the packet is for no VIP, or nothing of the balancer's; it is passed. */
static ALWAYS_INLINE bool decide(struct xdp_md *ctx, struct packet *packet, bool dry,
				 struct decision *decision)
{
	enum parsed parsed = packet_parse(ctx, packet);

	if (likely(parsed == PARSED_FLOW)) {
		decision->vip = vip_of(packet);
		if (!decision->vip)
			return false;
		decide_flow(ctx, packet, false, dry, decision);
		return true;
	}
	if (parsed == PARSED_MALFORMED && !dry)
		count_at(0, MALFORMED);
	if (parsed != PARSED_ICMP && parsed != PARSED_FRAGMENT)
		return false;
	if (!find_unusual(ctx, packet, parsed, decision))
		return false;
	if (decision->verdict == XDP_PASS && decision->vip)
		decide_flow(ctx, packet, parsed == PARSED_FRAGMENT, dry, decision);
	return true;
}

static ALWAYS_INLINE int balance(struct xdp_md *ctx, struct chain *chain)
{
	struct decision decision;
	struct packet packet;
	int verdict;

	__builtin_memset(&packet, 0, sizeof(packet));
	__builtin_memset(&decision, 0, sizeof(decision));
	if (!decide(ctx, &packet, false, &decision)) {
		if (config.chain)
			bpf_tail_call(ctx, chain, 0);
		return XDP_PASS;
	}
	if (unlikely(settings.capture) &&
	    (settings.capture == decision.vip->index || settings.capture == ~0u))
		capture_frame(ctx, decision.vip->index,
			      decision.backend ? decision.choice.backend : NOBODY, decision.outcome,
			      decision.verdict);
	verdict = act(ctx, &packet, &decision);
	count_sent(&packet, &decision);
	return verdict;
}

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	return balance(ctx, &next);
}

/* The same for frames of more than one page. */
SEC("xdp.frags")
int balancer_frags(struct xdp_md *ctx)
{
	return balance(ctx, &next_frags);
}

/* What would be done, and why: changes nothing, and counts nothing. */
SEC("xdp")
int explain(struct xdp_md *ctx)
{
	struct explanation *answer;
	struct decision decision;
	struct packet packet;
	__u32 zero = 0;
	bool found;

	__builtin_memset(&packet, 0, sizeof(packet));
	__builtin_memset(&decision, 0, sizeof(decision));
	found = decide(ctx, &packet, true, &decision);
	answer = bpf_map_lookup_elem(&explanation, &zero);
	if (!answer)
		return XDP_ABORTED;
	__builtin_memset(answer, 0, sizeof(*answer));
	if (!found)
		return XDP_PASS;
	answer->found = true;
	answer->vip = decision.vip->index;
	answer->pool = decision.vip->pool;
	answer->hash = decision.choice.hash;
	answer->slot = decision.choice.slot;
	answer->current = decision.choice.current;
	answer->previous = decision.choice.previous;
	answer->known = decision.choice.known;
	answer->stamp = decision.choice.stamp;
	answer->backend = decision.backend ? decision.choice.backend : NOBODY;
	answer->in_transition = decision.choice.in_transition;
	answer->outcome = decision.outcome;
	answer->verdict = decision.verdict;
	return decision.verdict;
}
