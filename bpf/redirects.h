/* SPDX-License-Identifier: GPL-2.0-only */
/* What `redirects` shares with the control plane. */
#pragma once

#include <linux/types.h>

enum redirect_limit {
	REDIRECT_PROGRAMS = 64, /* programs that are watched at a time */
	REDIRECT_DEVICES = 256, /* devices, too */
	REDIRECT_KINDS = 1024, /* failures that are told apart; all are counted in the sum */
};

/* A frame that came in by one device and was not sent by the other. */
struct redirect_failure {
	__u32 way_in; /* index of the device; 0: unknown */
	__u32 way_out;
	__u32 error; /* errno; 0: the kernel does not say why */
	__u32 reserved;
};

/* A device, in whichever network namespace. */
struct redirect_device {
	__u64 namespace; /* its cookie */
	__u32 ifindex;
	__u32 reserved;
};

struct redirect_manifest {
	enum redirect_limit redirect_limit;
	struct redirect_failure redirect_failure;
	struct redirect_device redirect_device;
};
