/* What Sockway calls of libbpf (1.1 and later), for cffi's ABI mode.
 * Option structs begin with their own size; fields beyond it are taken as 0. */

typedef uint32_t __u32;
typedef uint64_t __u64;
struct bpf_object;
struct bpf_map;
struct bpf_program;
struct btf;
struct ring_buffer;

typedef int (*libbpf_print_fn_t)(int level, const char *format, void *arguments);
libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t callback);
const char *libbpf_version_string(void);
int libbpf_probe_bpf_map_type(int type, const void *opts);
int libbpf_probe_bpf_helper(int prog_type, int helper, const void *opts);

struct open_opts {
	size_t sz;
	const char *object_name;
};

struct bpf_object *bpf_object__open_mem(const void *bytes, size_t size, const struct open_opts *o);
int bpf_object__load(struct bpf_object *object);
void bpf_object__close(struct bpf_object *object);
struct btf *bpf_object__btf(const struct bpf_object *object);
const void *btf__raw_data(const struct btf *btf, __u32 *size);

struct bpf_map *bpf_object__next_map(const struct bpf_object *object, const struct bpf_map *map);
const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
__u32 bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 entries);
int bpf_map__set_map_flags(struct bpf_map *map, __u32 flags);
int bpf_map__set_inner_map_fd(struct bpf_map *map, int fd);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
int bpf_map__set_autocreate(struct bpf_map *map, _Bool autocreate);
__u32 bpf_map__btf_key_type_id(const struct bpf_map *map);
__u32 bpf_map__btf_value_type_id(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
void *bpf_map__initial_value(struct bpf_map *map, size_t *size);

struct bpf_program *bpf_object__next_program(const struct bpf_object *object,
					     struct bpf_program *program);
const char *bpf_program__name(const struct bpf_program *program);
const char *bpf_program__section_name(const struct bpf_program *program);
int bpf_program__fd(const struct bpf_program *program);
int bpf_program__set_autoload(struct bpf_program *program, _Bool autoload);
size_t bpf_program__insn_cnt(const struct bpf_program *program);
const void *bpf_program__insns(const struct bpf_program *program);

struct prog_load_opts {
	size_t sz;
	int attempts;
	int expected_attach_type;
	__u32 prog_btf_fd;
	__u32 prog_flags;
};

int bpf_prog_load(int type, const char *name, const char *license, const void *instructions,
		  size_t count, const struct prog_load_opts *opts);

struct map_create_opts {
	size_t sz;
	__u32 btf_fd;
	__u32 btf_key_type_id;
	__u32 btf_value_type_id;
	__u32 btf_vmlinux_value_type_id;
	__u32 inner_map_fd;
	__u32 map_flags;
	__u64 map_extra;
	__u32 numa_node;
	__u32 map_ifindex;
};

int bpf_map_create(int type, const char *name, __u32 key_size, __u32 value_size, __u32 max_entries,
		   const struct map_create_opts *opts);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next);

struct batch_opts {
	size_t sz;
	__u64 elem_flags;
	__u64 flags;
};

int bpf_map_update_batch(int fd, const void *keys, const void *values, __u32 *count,
			 const struct batch_opts *opts);
int bpf_map_delete_batch(int fd, const void *keys, __u32 *count, const struct batch_opts *opts);
int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, __u32 *count,
			 const struct batch_opts *opts);

int bpf_obj_pin(int fd, const char *path);
int bpf_obj_get(const char *path);
int bpf_obj_get_info_by_fd(int fd, void *info, __u32 *size);
int bpf_map_get_fd_by_id(__u32 id);
int bpf_prog_get_fd_by_id(__u32 id);
int bpf_prog_get_next_id(__u32 start, __u32 *next);
int bpf_enable_stats(int type);

struct link_opts {
	size_t sz;
	__u32 flags;
};

int bpf_link_create(int prog_fd, int target_fd, int attach_type, const struct link_opts *opts);
int bpf_link_update(int link_fd, int prog_fd, const void *opts);
int bpf_link_detach(int link_fd);
int bpf_iter_create(int link_fd);
int bpf_raw_tracepoint_open(const char *name, int prog_fd);

struct test_run_opts {
	size_t sz;
	const void *data_in;
	void *data_out;
	__u32 data_size_in;
	__u32 data_size_out;
	const void *ctx_in;
	void *ctx_out;
	__u32 ctx_size_in;
	__u32 ctx_size_out;
	__u32 retval;
	int repeat;
	__u32 duration;
	__u32 flags;
	__u32 cpu;
	__u32 batch_size;
};

int bpf_prog_test_run_opts(int prog_fd, struct test_run_opts *opts);

typedef int (*ring_buffer_sample_fn)(void *ctx, void *data, size_t size);
struct ring_buffer *ring_buffer__new(int map_fd, ring_buffer_sample_fn callback, void *ctx,
				     const void *opts);
void ring_buffer__free(struct ring_buffer *ring);
int ring_buffer__poll(struct ring_buffer *ring, int timeout_ms);
int ring_buffer__consume(struct ring_buffer *ring);
int ring_buffer__epoll_fd(const struct ring_buffer *ring);

/* Of the C library that libbpf is linked with. */
int vasprintf(char **buffer, const char *format, void *arguments);
void free(void *buffer);
