#include "nps/flush.h"
#include "nps/json.h"
#include "writer_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_NAME "model.safetensors.index.json"

/* One safetensors file: targets [first, last) of the layout. */
typedef struct shard {
  int first, last;
  char *name;
  char *path;
  char *header; /* length word and JSON; kept until it is written */
  size_t header_size;
  int64_t size; /* of the whole file */
  bool touched; /* this rank has written to it */
} shard_t;

typedef struct state {
  shard_t *shards;
  int count;
  int *shard_of;   /* [layout->count] */
  int64_t *offset; /* [layout->count] of the tensor's first byte in its file */
  shard_t *open;   /* the one last written to, open as fd, or NULL: there may be more than a process may open */
  int fd;
  nps_flush_t *flush; /* of fd */
  nps_h5_t *kept;     /* NAME_state.h5, see nps_output_t, or NULL */
} state_t;

static int64_t target_bytes(const nps_target_t *t) { return t->count * (int64_t)nps_dtype_size(t->dtype); }

/* ---- which tensor goes where: every rank comes to the same plan ---- */

static void add_shard(state_t *s, int first) {
  s->shards = nps_xrealloc(s->shards, (size_t)s->count + 1, sizeof *s->shards);
  s->shards[s->count++] = (shard_t){.first = first, .last = first};
}

/* @param limit  bytes of a shard; 0: one shard for all */
static void plan_shards(const nps_layout_t *layout, int64_t limit, state_t *s) {
  int64_t used = 0;
  add_shard(s, 0);
  for (int i = 0; i < layout->count; i++) {
    int64_t bytes = target_bytes(&layout->targets[i]);
    if (used > 0 && limit > 0 && bytes > limit - used) {
      add_shard(s, i);
      used = 0;
    }
    used += bytes;
    s->shards[s->count - 1].last = i + 1;
    s->shard_of[i] = s->count - 1;
  }
}

/* Describe a tensor in a header and place it behind the others. */
static nps_err_t add_tensor(json_t *header, const nps_target_t *t, int64_t *offset, int64_t *end) {
  json_t *shape = json_array();
  for (int d = 0; d < t->ndim; d++) json_array_append_new(shape, json_integer(t->shape[d]));
  *offset = *end;
  *end += target_bytes(t);
  json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", nps_dtype_name(t->dtype), "shape", shape, "data_offsets",
                            (json_int_t)*offset, (json_int_t)*end);
  if (json_object_set_new(header, t->name, entry) == 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: the tensor's name is no valid UTF-8, which a safetensors file needs", t->name);
}

static char *dump(json_t *json, size_t flags) {
  char *text = json_dumps(json, flags);
  if (!text) nps_fatal("a JSON text could not be made");
  json_decref(json);
  return text;
}

/* Wider types come first, so that every tensor begins at a multiple of its element size without holes, which safetensors does
 * not allow; the header is padded for the same reason. */
nps_err_t nps_safetensors_plan(const nps_target_t *targets, int count, nps_safetensors_t *out) {
  int64_t end = 0;
  nps_err_t err = NPS_OK;
  json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
  out->offset = nps_xcalloc((size_t)count + 1, sizeof *out->offset);
  for (size_t size = 8; size > 0; size /= 2)
    for (int i = 0; i < count; i++)
      if (err == NPS_OK && nps_dtype_size(targets[i].dtype) == size)
        err = add_tensor(header, &targets[i], &out->offset[i], &end);
  char *text = dump(header, JSON_COMPACT);
  size_t length = strlen(text);
  uint64_t padded = (length + 7) / 8 * 8;
  out->header_size = 8 + padded;
  out->header = nps_xcalloc(out->header_size, 1);
  memset(out->header, ' ', out->header_size);
  for (int b = 0; b < 8; b++) out->header[b] = (char)(unsigned char)(padded >> (8 * b));
  memcpy(out->header + 8, text, length);
  free(text);
  for (int i = 0; i < count; i++) out->offset[i] += (int64_t)out->header_size;
  out->size = (int64_t)out->header_size + end;
  return err;
}

void nps_safetensors_free(nps_safetensors_t *plan) {
  free(plan->header);
  free(plan->offset);
}

static nps_err_t plan_shard(const nps_layout_t *layout, state_t *s, shard_t *shard) {
  nps_safetensors_t plan;
  nps_err_t err = nps_safetensors_plan(layout->targets + shard->first, shard->last - shard->first, &plan);
  for (int i = shard->first; i < shard->last; i++) s->offset[i] = plan.offset[i - shard->first];
  shard->header = plan.header;
  shard->header_size = plan.header_size;
  shard->size = plan.size;
  free(plan.offset);
  return err;
}

static nps_err_t plan_folder(const nps_writer_t *w, state_t *s) {
  const char *stem = w->output.adapter ? "adapter_model" : "model";
  plan_shards(w->layout, w->output.adapter ? 0 : w->output.shard_size, s);
  for (int k = 0; k < s->count; k++) {
    shard_t *shard = &s->shards[k];
    shard->name = s->count == 1 ? nps_xstrf("%s.safetensors", stem)
                                : nps_xstrf("%s-%05d-of-%05d.safetensors", stem, k + 1, s->count);
    shard->path = nps_xstrf("%s/%s", w->place.partial, shard->name);
    NPS_TRY(plan_shard(w->layout, s, shard));
  }
  return NPS_OK;
}

/* ---- writing ---- */

static nps_err_t fail_errno(const shard_t *shard) {
  return nps_fail(NPS_ERR_IO, "%s: %s", shard->path, strerror(errno));
}

/* Network file systems report failed writes here. */
static nps_err_t close_shard(state_t *s) {
  const shard_t *shard = s->open;
  s->open = NULL;
  if (!shard) return NPS_OK;
  const int cause = nps_flush_end(s->flush, shard->path);
  if (close(s->fd) != 0) return fail_errno(shard);
  errno = cause;
  return cause ? fail_errno(shard) : NPS_OK;
}

static void open_shard(state_t *s, shard_t *shard, int flags) {
  s->fd = open(shard->path, O_WRONLY | O_CLOEXEC | flags, 0666);
  if (s->fd < 0) return;
  s->flush = nps_flush_begin(s->fd);
  s->open = shard;
  shard->touched = true;
}

static nps_err_t create_shards(state_t *s) {
  for (int k = 0; k < s->count; k++) {
    shard_t *shard = &s->shards[k];
    NPS_TRY(close_shard(s));
    open_shard(s, shard, O_CREAT | O_TRUNC);
    if (s->fd < 0) return fail_errno(shard);
    if (ftruncate(s->fd, shard->size) != 0) return fail_errno(shard);
    NPS_TRY(nps_fd_write(s->fd, shard->path, shard->header, shard->header_size, 0));
  }
  return close_shard(s);
}

static nps_err_t use_shard(const nps_writer_t *w, shard_t *shard) {
  state_t *s = w->state;
  if (s->open == shard) return NPS_OK;
  NPS_TRY(close_shard(s));
  open_shard(s, shard, 0);
  int rank = nps_comm_rank(w->comm);
  if (s->fd < 0 && rank > 0)
    return nps_fail(NPS_ERR_IO,
                    "%s: created by rank 0, cannot be opened by rank %d: %s; is the folder shared by all nodes?",
                    shard->path, rank, strerror(errno));
  return s->fd < 0 ? fail_errno(shard) : NPS_OK;
}

/* Creates NAME_state.h5 beside the tensors, which all ranks write. */
static nps_err_t create_kept(nps_writer_t *w, state_t *s) {
  if (!w->output.state) return NPS_OK;
  char *path = nps_xstrf("%s/%s_state.h5", w->place.partial, w->output.state);
  nps_err_t err = nps_h5_create(w->comm, path, &s->kept);
  if (err == NPS_OK) err = nps_state_create(w, s->kept);
  if (err == NPS_OK) err = nps_h5_reserve(s->kept);
  free(path);
  return nps_comm_agree(w->comm, err);
}

static nps_err_t finish_kept(nps_writer_t *w, state_t *s) {
  if (!s->kept) return NPS_OK;
  NPS_TRY(nps_comm_agree(w->comm, nps_state_finish(w, s->kept)));
  nps_err_t err = nps_h5_close(s->kept);
  s->kept = NULL;
  return nps_comm_agree(w->comm, err);
}

static nps_err_t folder_open(nps_writer_t *w) {
  assert(w->output.shard_size > 0 || w->output.adapter);
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->shard_of = nps_xcalloc((size_t)w->layout->count, sizeof *s->shard_of);
  s->offset = nps_xcalloc((size_t)w->layout->count, sizeof *s->offset);
  w->state = s;
  nps_err_t err = plan_folder(w, s);
  if (err == NPS_OK && nps_comm_rank(w->comm) == 0) err = create_shards(s);
  for (int k = 0; k < s->count; k++) {
    free(s->shards[k].header);
    s->shards[k].header = NULL;
  }
  NPS_TRY(nps_comm_agree(w->comm, err));
  return create_kept(w, s);
}

static nps_err_t folder_write(nps_writer_t *w, int i, int64_t first, int64_t count, const void *data) {
  state_t *s = w->state;
  shard_t *shard = &s->shards[s->shard_of[i]];
  NPS_TRY(use_shard(w, shard));
  const int64_t width = (int64_t)nps_dtype_size(w->layout->targets[i].dtype), bytes = count * width;
  NPS_TRY(nps_fd_write(s->fd, shard->path, data, (size_t)bytes, s->offset[i] + first * width));
  nps_flush_note(s->flush, bytes);
  return NPS_OK;
}

/* A rank brings to the device what went through its own node. */
static nps_err_t sync_shards(state_t *s) {
  NPS_TRY(close_shard(s));
  for (int k = 0; k < s->count; k++)
    if (s->shards[k].touched) NPS_TRY(nps_path_sync(s->shards[k].path));
  return NPS_OK;
}

/* ---- small files, by rank 0 ---- */

static nps_err_t put_json(const nps_writer_t *w, const char *name, json_t *json, size_t flags) {
  char *text = dump(json, JSON_INDENT(2) | flags);
  nps_err_t err = nps_file_put(w->place.partial, name, text, strlen(text));
  free(text);
  return err;
}

static nps_err_t put_index(const nps_writer_t *w, const state_t *s) {
  json_int_t total = 0;
  json_t *map = json_object();
  for (int i = 0; i < w->layout->count; i++) {
    total += target_bytes(&w->layout->targets[i]);
    json_object_set_new(map, w->layout->targets[i].name, json_string(s->shards[s->shard_of[i]].name));
  }
  json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", total, "weight_map", map);
  return put_json(w, INDEX_NAME, index, JSON_SORT_KEYS);
}

static nps_err_t put_provenance(const nps_writer_t *w, const nps_digest_t *digest) {
  const char *recipe = w->output.recipe;
  char hex[65];
  json_t *inputs = json_array();
  for (int i = 0; i < nps_digest_count(digest); i++) {
    json_int_t size = nps_digest_size(digest, i);
    /* A path need not be UTF-8. */
    json_t *path = json_string(nps_digest_path(digest, i));
    json_array_append_new(inputs, json_pack("{s:o, s:I, s:s}", "path", path ? path : json_null(), "size", size,
                                            "sha256", nps_digest_hex(digest, i)));
  }
  json_t *all = json_pack("{s:s, s:o}", "created_by", NPS_CREATED_BY, "inputs", inputs);
  if (recipe) {
    nps_sha256_hex(recipe, strlen(recipe), hex);
    json_object_set_new(all, "recipe_sha256", json_string(hex));
  }
  return put_json(w, "provenance.json", all, 0);
}

/* What a merged HDF5 has in groups of its own. */
static nps_err_t put_findings(const nps_writer_t *w) {
  nps_comm_t *self = nps_comm_self();
  nps_h5_t *file = NULL;
  char *path = nps_xstrf("%s/findings.h5", w->place.partial);
  nps_err_t err = nps_h5_create(self, path, &file);
  if (err == NPS_OK) err = w->output.extra(w->output.extra_ctx, file);
  if (err == NPS_OK) {
    err = nps_h5_close(file);
    file = NULL;
  }
  nps_h5_abandon(file);
  free(path);
  nps_comm_free(self);
  return err;
}

/* A module's file goes into the module's folder. */
static nps_err_t put_sidecar(const char *folder, const nps_sidecar_t *sidecar) {
  const char *slash = strchr(sidecar->name, '/');
  if (!slash) return nps_file_put(folder, sidecar->name, sidecar->data, sidecar->size);
  char *module = nps_xstrf("%s/%.*s", folder, (int)(slash - sidecar->name), sidecar->name);
  nps_err_t err = NPS_OK;
  if (mkdir(module, 0777) != 0 && errno != EEXIST) err = nps_fail(NPS_ERR_IO, "%s: %s", module, strerror(errno));
  if (err == NPS_OK) err = nps_file_put(module, slash + 1, sidecar->data, sidecar->size);
  if (err == NPS_OK) err = nps_path_sync(module);
  free(module);
  return err;
}

static nps_err_t put_small_files(const nps_writer_t *w, const state_t *s, const nps_digest_t *digest) {
  const nps_output_t *o = &w->output;
  const char *folder = w->place.partial;
  for (int i = 0; i < o->sidecar_count; i++) NPS_TRY(put_sidecar(folder, &o->sidecars[i]));
  if (o->config_json)
    NPS_TRY(nps_file_put(folder, o->adapter ? "adapter_config.json" : "config.json", o->config_json,
                         strlen(o->config_json)));
  else
    nps_note("%s: there is no config.json, as no input has one", w->place.target);
  NPS_TRY(nps_file_put(folder, "README.md", o->model_card, strlen(o->model_card)));
  if (o->recipe) NPS_TRY(nps_file_put(folder, "nps-merge.yaml", o->recipe, strlen(o->recipe)));
  if (digest) NPS_TRY(put_provenance(w, digest));
  if (o->extra) NPS_TRY(put_findings(w));
  return s->count > 1 ? put_index(w, s) : NPS_OK;
}

static nps_err_t folder_finish(nps_writer_t *w, const nps_digest_t *digest) {
  state_t *s = w->state;
  nps_err_t err = sync_shards(s);
  if (err == NPS_OK && nps_comm_rank(w->comm) == 0) err = put_small_files(w, s, digest);
  NPS_TRY(nps_comm_agree(w->comm, err));
  return finish_kept(w, s);
}

static void folder_close(nps_writer_t *w) {
  state_t *s = w->state;
  if (!s) return;
  if (s->open) {
    nps_flush_end(s->flush, s->open->path);
    close(s->fd);
  }
  nps_state_close(w);
  nps_h5_abandon(s->kept);
  for (int k = 0; k < s->count; k++) {
    free(s->shards[k].name);
    free(s->shards[k].path);
  }
  free(s->shards);
  free(s->shard_of);
  free(s->offset);
  free(s);
}

const nps_writer_form_t nps_writer_folder = {
    .open = folder_open, .write = folder_write, .finish = folder_finish, .close = folder_close};
