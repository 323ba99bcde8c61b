/*
 * The inner loop of a Maglev ring (Eisenbud et al., "Maglev: A Fast and Reliable Software
 * Network Load Balancer", NSDI 2016, section 3.4), with weights.
 *
 * Compiled when the wheel is built, called through ctypes by sockway.wire.maglev, which
 * says what it means and has the same in Python. No library is used, not even C's.
 */
typedef unsigned short u16;
typedef unsigned int u32;

#define FREE 0xffff

/*
 * ring: `size` slots, all FREE before. A member's next slot is next[i] (its offset at
 * first), then next[i] + skip[i] modulo size. credit: zeros. A member takes its turn when
 * its credit reaches the largest weight.
 */
void sockway_maglev(u16 *ring, u32 size, u32 members, u32 *next, const u32 *skip, const u32 *weight,
		    u32 *credit, u32 largest)
{
	u32 filled = 0;

	while (filled < size) {
		for (u32 i = 0; i < members; i++) {
			u32 slot = next[i];

			credit[i] += weight[i];
			if (credit[i] < largest)
				continue;
			credit[i] -= largest;
			while (ring[slot] != FREE) {
				slot += skip[i];
				if (slot >= size)
					slot -= size;
			}
			ring[slot] = (u16)i;
			slot += skip[i];
			next[i] = slot >= size ? slot - size : slot;
			if (++filled == size)
				return;
		}
	}
}

/* Have the slots of a ring forget their previous backends. */
void sockway_settle(u32 *slots, u32 size)
{
	for (u32 i = 0; i < size; i++)
		if (slots[i] >> 16)
			*(volatile u32 *)&slots[i] = slots[i] & 0xffff;
}

/*
 * Give the slots of a ring their new backends, and let them know the previous ones: a slot
 * is current | previous << 16. A slot that changes again keeps its oldest previous backend, if
 * that is still counted; `counted` says so of each number. Each slot is one store, so a
 * packet sees the old pair or the new one.
 */
void sockway_history(u32 *slots, const u16 *ring, const u16 *numbers, u32 size,
		     const unsigned char *counted)
{
	for (u32 i = 0; i < size; i++) {
		u32 slot = slots[i], current = slot & 0xffff, previous = slot >> 16;
		u32 wanted = ring[i] == FREE ? 0 : numbers[ring[i]], oldest = 0;

		if (previous && counted[previous])
			oldest = previous;
		if (current == wanted) {
			if (previous != oldest)
				*(volatile u32 *)&slots[i] = current | oldest << 16;
			continue;
		}
		if (!oldest && counted[current])
			oldest = current;
		*(volatile u32 *)&slots[i] = wanted | oldest << 16;
	}
}
