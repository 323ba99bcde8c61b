/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the control plane keeps for itself beside the packet path's maps: the
 * configuration that is in force, with names and the numbers that they were given.
 * It is in the kernel for one reason: it lives and dies with what it describes.
 */
#pragma once

#include "kernel.h"

enum note_limit {
	NOTE_OCTETS = 4096, /* of a page */
};

struct note {
	__u8 octets[NOTE_OCTETS];
};
