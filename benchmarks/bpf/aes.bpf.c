/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One block of AES-128: by the balancer's tables, and by the kernel's cipher
 * (bpf_crypto_encrypt and bpf_crypto_decrypt, Linux 6.10 and later).
 */
#include "aes.h"

char LICENSE[] SEC("license") = "GPL";

#define KPTR __attribute__((btf_type_tag("kptr")))
#define KFUNC extern __attribute__((section(".ksyms")))

/* The kernel's; libbpf compares kinds of types, so it has to be more than declared. */
struct bpf_crypto_ctx {
	__u32 opaque;
};

/* As the kernel has it (<linux/bpf_crypto.h>). */
struct bpf_crypto_params {
	char type[14];
	__u8 reserved[2];
	char algo[128];
	__u8 key[256];
	__u32 key_len;
	__u32 authsize;
};

KFUNC struct bpf_crypto_ctx *bpf_crypto_ctx_create(const struct bpf_crypto_params *params,
						   __u32 params__sz, int *err);
KFUNC void bpf_crypto_ctx_release(struct bpf_crypto_ctx *ctx);
KFUNC int bpf_crypto_encrypt(struct bpf_crypto_ctx *ctx, const struct bpf_dynptr *src,
			     const struct bpf_dynptr *dst, const struct bpf_dynptr *siv__nullable);
KFUNC int bpf_crypto_decrypt(struct bpf_crypto_ctx *ctx, const struct bpf_dynptr *src,
			     const struct bpf_dynptr *dst, const struct bpf_dynptr *siv__nullable);
static void *(*const bpf_kptr_xchg)(void *to, void *pointer) = AS_HELPER(BPF_FUNC_kptr_xchg);
static long (*const bpf_dynptr_from_mem)(void *data, __u32 size, __u64 flags,
					 struct bpf_dynptr *ptr) =
	AS_HELPER(BPF_FUNC_dynptr_from_mem);

struct task {
	__u8 from[16];
	__u8 to[16];
	__u8 key[16];
	__u32 encryption[AES_KEY_WORDS];
	__u32 decryption[AES_KEY_WORDS];
};

struct holder {
	struct bpf_crypto_ctx KPTR *ctx;
};

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_UINT(map_flags, BPF_F_MMAPABLE);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct task);
} tasks SEC(".maps");

struct {
	MAP_UINT(type, BPF_MAP_TYPE_ARRAY);
	MAP_UINT(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct holder);
} holders SEC(".maps");

/* Makes the kernel's cipher ready. */
SEC("syscall")
int prepare(void *ctx)
{
	struct bpf_crypto_params params = {
		.type = "skcipher",
		.algo = "ecb(aes)",
		.key_len = 16,
	};
	struct bpf_crypto_ctx *made;
	struct holder *holder;
	struct task *task;
	__u32 zero = 0;
	int error = 0;

	(void)ctx;
	task = bpf_map_lookup_elem(&tasks, &zero);
	holder = bpf_map_lookup_elem(&holders, &zero);
	if (!task || !holder)
		return 1;
	__builtin_memcpy(params.key, task->key, 16);
	made = bpf_crypto_ctx_create(&params, sizeof(params), &error);
	if (!made)
		return -error;
	made = bpf_kptr_xchg(&holder->ctx, made);
	if (made)
		bpf_crypto_ctx_release(made);
	return 0;
}

static ALWAYS_INLINE int by_kernel(bool encrypts)
{
	struct bpf_dynptr from, to;
	struct bpf_crypto_ctx *cipher;
	struct holder *holder;
	struct task *task;
	__u32 zero = 0;

	task = bpf_map_lookup_elem(&tasks, &zero);
	holder = bpf_map_lookup_elem(&holders, &zero);
	if (!task || !holder)
		return XDP_ABORTED;
	cipher = holder->ctx;
	if (!cipher)
		return XDP_ABORTED;
	bpf_dynptr_from_mem(task->from, 16, 0, &from);
	bpf_dynptr_from_mem(task->to, 16, 0, &to);
	if (encrypts ? bpf_crypto_encrypt(cipher, &from, &to, NULL) :
		       bpf_crypto_decrypt(cipher, &from, &to, NULL))
		return XDP_ABORTED;
	return XDP_PASS;
}

static ALWAYS_INLINE int by_tables(bool encrypts, bool is_empty)
{
	struct aes_block block;
	struct task *task;
	__u32 zero = 0;

	task = bpf_map_lookup_elem(&tasks, &zero);
	if (!task)
		return XDP_ABORTED;
	__builtin_memcpy(&block, task->from, 16);
#pragma unroll
	for (int at = 0; at < AES_WORDS; at++)
		block.word[at] = swap32(block.word[at]);
	if (is_empty)
		;
	else if (encrypts)
		aes_encrypt(task->encryption, &block);
	else
		aes_decrypt(task->decryption, &block);
#pragma unroll
	for (int at = 0; at < AES_WORDS; at++)
		block.word[at] = swap32(block.word[at]);
	__builtin_memcpy(task->to, &block, 16);
	return XDP_PASS;
}

SEC("xdp")
int empty(struct xdp_md *ctx)
{
	(void)ctx;
	return by_tables(true, true);
}

SEC("xdp")
int tables_encrypt(struct xdp_md *ctx)
{
	(void)ctx;
	return by_tables(true, false);
}

SEC("xdp")
int tables_decrypt(struct xdp_md *ctx)
{
	(void)ctx;
	return by_tables(false, false);
}

SEC("xdp")
int kernel_encrypt(struct xdp_md *ctx)
{
	(void)ctx;
	return by_kernel(true);
}

SEC("xdp")
int kernel_decrypt(struct xdp_md *ctx)
{
	(void)ctx;
	return by_kernel(false);
}
