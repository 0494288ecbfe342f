#include "nps/h5.h"
#include "writer_internal.h"

#include <stdlib.h>
#include <string.h>

#define FORMAT_VERSION 1

typedef struct state {
  nps_h5_t *file;
  nps_h5_dataset_t **datasets; /* [layout->count] */
  nps_h5_dataset_t **parts;    /* [part_count] */
} state_t;

nps_h5_t *nps_writer_file(const nps_writer_t *w) { return ((const state_t *)w->state)->file; }

static nps_err_t create_parts(const nps_writer_t *w, state_t *s) {
  const nps_part_t *last = NULL;
  for (int i = 0; i < w->output.part_count; i++) {
    const nps_part_t *p = &w->output.parts[i];
    if (!last || strcmp(last->group, p->group) != 0) NPS_TRY(nps_h5_make_group(s->file, p->group));
    NPS_TRY(nps_h5_dataset_create(s->file, p->group, p->name, p->dtype, p->ndim, p->shape, &s->parts[i]));
    last = p;
  }
  return NPS_OK;
}

static nps_err_t create_datasets(nps_writer_t *w, state_t *s) {
  NPS_TRY(nps_h5_create(w->comm, w->place.partial, &s->file));
  if (w->layout->count > 0) NPS_TRY(nps_h5_make_group(s->file, "/tensors"));
  for (int i = 0; i < w->layout->count; i++) {
    const nps_target_t *t = &w->layout->targets[i];
    NPS_TRY(nps_h5_dataset_create(s->file, "/tensors", t->name, t->dtype, t->ndim, t->shape, &s->datasets[i]));
  }
  NPS_TRY(nps_state_create(w, s->file));
  NPS_TRY(create_parts(w, s));
  return nps_h5_reserve(s->file);
}

static nps_err_t hdf5_open(nps_writer_t *w) {
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->datasets = nps_xcalloc((size_t)w->layout->count, sizeof(nps_h5_dataset_t *));
  s->parts = nps_xcalloc((size_t)w->output.part_count + 1, sizeof(nps_h5_dataset_t *));
  w->state = s;
  return nps_comm_agree(w->comm, create_datasets(w, s));
}

static nps_err_t hdf5_write(nps_writer_t *w, int i, int64_t first, int64_t count, const void *data) {
  state_t *s = w->state;
  return nps_h5_dataset_write(s->datasets[i], first, count, data);
}

static nps_err_t hdf5_write_part(nps_writer_t *w, int part, const void *data) {
  state_t *s = w->state;
  return nps_h5_dataset_write(s->parts[part], 0, w->output.parts[part].count, data);
}

static nps_err_t put_attributes(const nps_writer_t *w, nps_h5_t *file) {
  const nps_output_t *o = &w->output;
  char hex[65];
  nps_sha256_hex(o->recipe, strlen(o->recipe), hex);
  NPS_TRY(nps_h5_put_attr_text(file, "/", "format", o->format ? o->format : "nps-merged"));
  NPS_TRY(nps_h5_put_attr_i64(file, "/", "format_version", FORMAT_VERSION));
  NPS_TRY(nps_h5_put_attr_text(file, "/", "created_by", NPS_CREATED_BY));
  if (o->config_json) NPS_TRY(nps_h5_put_attr_text(file, "/", "config_json", o->config_json));
  NPS_TRY(nps_h5_put_attr_text(file, "/", "recipe", o->recipe));
  return nps_h5_put_attr_text(file, "/", "recipe_sha256", hex);
}

static nps_err_t put_provenance(nps_h5_t *file, const nps_digest_t *digest) {
  int64_t n = nps_digest_count(digest);
  const char **paths = nps_xcalloc((size_t)n, sizeof *paths);
  const char **hashes = nps_xcalloc((size_t)n, sizeof *hashes);
  int64_t *sizes = nps_xcalloc((size_t)n, sizeof *sizes);
  for (int i = 0; i < n; i++) {
    paths[i] = nps_digest_path(digest, i);
    hashes[i] = nps_digest_hex(digest, i);
    sizes[i] = nps_digest_size(digest, i);
  }
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_make_group(file, "/provenance"));
  NPS_GOTO(nps_h5_put_texts(file, "/provenance/path", paths, n));
  NPS_GOTO(nps_h5_put(file, "/provenance/size", NPS_I64, sizes, 1, &n));
  NPS_GOTO(nps_h5_put_texts(file, "/provenance/sha256", hashes, n));
done:
  free(paths);
  free(hashes);
  free(sizes);
  return err;
}

/* Only rank 0 has the files: it tells their names and sizes, all create the dataset, and a module's group, it writes. */
static nps_err_t put_sidecar(const nps_comm_t *comm, nps_h5_t *file, const nps_sidecar_t *sidecar) {
  char *name = sidecar ? sidecar->name : NULL;
  int64_t size = sidecar ? (int64_t)sidecar->size : 0;
  nps_comm_bcast_text(comm, &name);
  nps_comm_bcast(comm, &size, sizeof size);
  nps_h5_dataset_t *dataset = NULL;
  char *path = nps_xstrf("/tokenizer/%s", name), *file_name = strrchr(path, '/');
  *file_name++ = '\0';
  nps_err_t err = nps_comm_agree(comm, nps_h5_exists(file, path) ? NPS_OK : nps_h5_make_group(file, path));
  if (err == NPS_OK) err = nps_h5_dataset_create(file, path, file_name, NPS_U8, 1, &size, &dataset);
  if (err == NPS_OK && sidecar && size > 0) err = nps_h5_dataset_write(dataset, 0, size, sidecar->data);
  nps_h5_dataset_close(dataset);
  free(path);
  if (!sidecar) free(name);
  return nps_comm_agree(comm, err);
}

static nps_err_t put_sidecars(const nps_writer_t *w, nps_h5_t *file) {
  bool root = nps_comm_rank(w->comm) == 0;
  int count = w->output.sidecar_count;
  nps_comm_bcast(w->comm, &count, sizeof count);
  for (int i = 0; i < count; i++) NPS_TRY(put_sidecar(w->comm, file, root ? &w->output.sidecars[i] : NULL));
  return NPS_OK;
}

static nps_err_t put_all(const nps_writer_t *w, nps_h5_t *file, const nps_digest_t *digest) {
  NPS_TRY(put_attributes(w, file));
  if (digest) NPS_TRY(put_provenance(file, digest));
  return w->output.extra ? w->output.extra(w->output.extra_ctx, file) : NPS_OK;
}

static void close_datasets(const nps_writer_t *w, state_t *s) {
  for (int i = 0; i < w->layout->count; i++) {
    nps_h5_dataset_close(s->datasets[i]);
    s->datasets[i] = NULL;
  }
  for (int i = 0; i < w->output.part_count; i++) {
    nps_h5_dataset_close(s->parts[i]);
    s->parts[i] = NULL;
  }
}

static nps_err_t hdf5_finish(nps_writer_t *w, const nps_digest_t *digest) {
  state_t *s = w->state;
  NPS_TRY(nps_comm_agree(w->comm, put_all(w, s->file, digest)));
  NPS_TRY(put_sidecars(w, s->file));
  NPS_TRY(nps_comm_agree(w->comm, nps_state_finish(w, s->file)));
  close_datasets(w, s);
  nps_err_t err = nps_h5_close(s->file);
  s->file = NULL;
  return nps_comm_agree(w->comm, err);
}

static void hdf5_close(nps_writer_t *w) {
  state_t *s = w->state;
  if (!s) return;
  nps_state_close(w);
  close_datasets(w, s);
  nps_h5_abandon(s->file);
  free(s->datasets);
  free(s->parts);
  free(s);
}

const nps_writer_form_t nps_writer_hdf5 = {hdf5_open, hdf5_write, hdf5_write_part, hdf5_finish, hdf5_close};
