/* Writing archives: models are coded block by block as their updates come, in whatever order; the bytes wait in a file without
 * a name until all sizes are known. */
#include "nps/archive.h"

#include "archive_triples.h"
#include "block_code.h"
#include "spill.h"
#include "writer_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct nps_archive {
  nps_writer_t *file;
  nps_archive_spec_t spec;
  const nps_target_t **coded; /* [count] targets of spec.expanded */
  int count;
};

/* A coded block of this rank. */
typedef struct {
  int64_t number; /* in the line of all blocks */
  nps_block_row_t row;
  int64_t position_at, value_at; /* in the spills */
  int64_t scale_at;              /* in this rank's */
  int64_t scale_count;
  double exact, wrong; /* sums of squares: of the values, of what rounding changed */
} block_t;

typedef struct {
  const nps_archive_t *archive;
  char *group, *heads;
  nps_block_coder_t *coder;
  int64_t *first_block;   /* [layout->count + 1] of the merged targets in the line */
  int64_t units;          /* scales of all blocks */
  float *exact, *entries; /* [NPS_BLOCK] of the block in work */
  int target;
  int64_t first, filled; /* its first element, and those that are there */
  block_t *blocks;
  int64_t block_count;
  float *scales;
  int64_t scale_count;
  nps_spill_t positions, values;
  nps_triples_t *triples;  /* matrices that are stored by their factors; NULL: none */
  nps_h5_dataset_t **head; /* [layout->count] */
} task_t;

/* ---- coding ---- */

static bool is_coded(const nps_target_t *target) { return target->action == NPS_ACTION_MERGE; }

static double sum_squares(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) {
    const double d = (double)x[i] - (y ? (double)y[i] : 0);
    sum += d * d;
  }
  return sum;
}

static nps_err_t code_block(nps_writer_t *w, task_t *t) {
  const int64_t units = nps_units_of(t->filled);
  if ((t->block_count & (t->block_count - 1)) == 0)
    t->blocks = nps_xrealloc(t->blocks, 2 * (size_t)t->block_count + 1, sizeof *t->blocks);
  t->scales = nps_xrealloc(t->scales, (size_t)(t->scale_count + units), sizeof *t->scales);
  block_t *b = &t->blocks[t->block_count++];
  *b = (block_t){.number = t->first_block[t->target] + t->first / NPS_BLOCK,
                 .position_at = nps_spill_end(&t->positions),
                 .value_at = nps_spill_end(&t->values),
                 .scale_at = t->scale_count,
                 .scale_count = units};
  memcpy(t->exact, t->entries, (size_t)t->filled * sizeof *t->exact);
  b->row = nps_block_encode(t->coder, t->entries, t->filled, &t->positions.tail, &t->values.tail,
                            t->scales + t->scale_count);
  b->exact = sum_squares(t->exact, NULL, t->filled);
  b->wrong = sum_squares(t->entries, t->exact, t->filled);
  t->scale_count += units;
  t->first += t->filled;
  t->filled = 0;
  if (!isfinite(b->exact))
    return nps_fail(NPS_ERR_RUNTIME, "tensor %s: the update holds a value that is not finite",
                    w->layout->targets[t->target].name);
  NPS_TRY(nps_spill_settle(&t->positions, NPS_SPILL_BYTES));
  return nps_spill_settle(&t->values, NPS_SPILL_BYTES);
}

static nps_err_t code(nps_writer_t *w, task_t *t, int i, int64_t first, int64_t count, const float *x) {
  if (t->filled == 0) {
    t->target = i;
    t->first = first;
  }
  assert(t->target == i && t->first + t->filled == first && t->first % NPS_BLOCK == 0);
  const int64_t end = w->layout->targets[i].count;
  while (count > 0) {
    const int64_t block = nps_min64(end - t->first, NPS_BLOCK), n = nps_min64(count, block - t->filled);
    memcpy(t->entries + t->filled, x, (size_t)n * sizeof *x);
    t->filled += n;
    x += n;
    count -= n;
    if (t->filled == block) NPS_TRY(code_block(w, t));
  }
  return NPS_OK;
}

static nps_err_t task_write(nps_writer_t *w, int i, int64_t first, int64_t count, const void *data) {
  task_t *t = w->state;
  const nps_target_t *target = &w->layout->targets[i];
  if (nps_triples_has(t->triples, i)) return nps_triples_write(t->triples, i, first, count, data);
  if (is_coded(target)) return code(w, t, i, first, count, data);
  return t->head[i] ? nps_h5_dataset_write(t->head[i], first, count, data) : NPS_OK;
}

static const nps_writer_form_t task_form = {.write = task_write};

/* ---- beginning and freeing a model ---- */

static nps_err_t create_heads(const nps_writer_t *w, task_t *t, nps_h5_t *file) {
  bool any = false;
  for (int i = 0; i < w->layout->count; i++) {
    const nps_target_t *target = &w->layout->targets[i];
    if (target->action != NPS_ACTION_HEAD) continue;
    if (!any) NPS_TRY(nps_h5_make_group(file, t->heads));
    any = true;
    NPS_TRY(
        nps_h5_dataset_create(file, t->heads, target->name, target->dtype, target->ndim, target->shape, &t->head[i]));
  }
  return any ? nps_h5_reserve(file) : NPS_OK;
}

static void count_blocks(const nps_layout_t *layout, task_t *t) {
  t->first_block = nps_xcalloc((size_t)layout->count + 1, sizeof *t->first_block);
  for (int i = 0; i < layout->count; i++) {
    const bool in_blocks = is_coded(&layout->targets[i]) && !nps_triples_has(t->triples, i);
    const int64_t count = in_blocks ? layout->targets[i].count : 0;
    t->first_block[i + 1] = t->first_block[i] + nps_blocks_of(count);
    t->units += nps_units_of(count);
  }
}

static void free_task(nps_writer_t *w) {
  task_t *t = w->state;
  for (int i = 0; i < w->layout->count; i++) nps_h5_dataset_close(t->head[i]);
  nps_spill_close(&t->positions);
  nps_spill_close(&t->values);
  nps_triples_free(t->triples);
  nps_block_coder_free(t->coder);
  free(t->head);
  free(t->first_block);
  free(t->exact);
  free(t->entries);
  free(t->blocks);
  free(t->scales);
  free(t->group);
  free(t->heads);
  free(t);
  free(w);
}

static nps_err_t check_name(const char *name) {
  if (*name && !strchr(name, '/') && strcmp(name, ".") != 0) return NPS_OK;
  return nps_fail(NPS_ERR_CONFIG, "'%s' cannot name a model in an archive: expected a name without '/'", name);
}

/* The models of an archive have the same tensors. */
static nps_err_t check_targets(const nps_archive_t *a, const nps_layout_t *updates) {
  int n = 0;
  for (int i = 0; i < updates->count; i++) {
    const nps_target_t *target = &updates->targets[i];
    if (!is_coded(target)) continue;
    if (n == a->count || strcmp(a->coded[n]->name, target->name) != 0 || a->coded[n]->count != target->count)
      return nps_fail(NPS_ERR_RUNTIME, "tensor %s: is not in all models of the archive", target->name);
    n++;
  }
  return NPS_OK;
}

nps_err_t nps_archive_begin(nps_archive_t *a, const char *name, const nps_layout_t *updates, nps_writer_t **out) {
  nps_writer_t *w = nps_xcalloc(1, sizeof *w);
  task_t *t = nps_xcalloc(1, sizeof *t);
  *w = (nps_writer_t){.comm = a->file->comm, .layout = updates, .form = &task_form, .state = t};
  *t = (task_t){.archive = a,
                .group = nps_xstrf("/models/%s", name),
                .heads = nps_xstrf("/heads/%s", name),
                .coder = nps_block_coder_new(a->spec.value_bits),
                .exact = nps_xcalloc(NPS_BLOCK, sizeof *t->exact),
                .entries = nps_xcalloc(NPS_BLOCK, sizeof *t->entries),
                .positions = {.fd = -1},
                .values = {.fd = -1},
                .head = nps_xcalloc((size_t)updates->count + 1, sizeof *t->head)};
  if (a->spec.factors) t->triples = nps_triples_new(updates, a->spec.factors, a->spec.value_bits);
  count_blocks(updates, t);
  nps_h5_t *file = nps_writer_file(a->file);
  nps_err_t err = check_name(name);
  if (err == NPS_OK) err = check_targets(a, updates);
  if (err == NPS_OK) err = nps_h5_make_group(file, t->group);
  if (err == NPS_OK) err = create_heads(w, t, file);
  err = nps_comm_agree(w->comm, err); /* so far all ranks have met the same */
  if (err == NPS_OK) err = nps_spill_open(a->file->place.partial, &t->positions);
  if (err == NPS_OK) err = nps_spill_open(a->file->place.partial, &t->values);
  if (err == NPS_OK && t->triples) err = nps_triples_open(t->triples, a->file->place.partial);
  err = nps_comm_agree(w->comm, err);
  *out = err == NPS_OK ? w : NULL;
  if (err != NPS_OK) free_task(w);
  return err;
}

/* ---- ending a model ---- */

static int by_number(const void *a, const void *b) {
  const int64_t x = ((const block_t *)a)->number, y = ((const block_t *)b)->number;
  return (x > y) - (x < y);
}

static nps_err_t settle(task_t *t) {
  if (t->block_count > 0) qsort(t->blocks, (size_t)t->block_count, sizeof *t->blocks, by_number);
  NPS_TRY(nps_spill_settle(&t->positions, 1));
  return nps_spill_settle(&t->values, 1);
}

/* Where the parts of all blocks lie in the datasets. */
typedef struct {
  int64_t blocks;
  int64_t *positions, *values, *scales; /* [blocks + 1] into one array, owned by the first */
} places_t;

static void add_up(int64_t *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i + 1] += x[i];
}

/* Whatever rank has which blocks. Collective. */
static places_t find_places(const nps_writer_t *w, const task_t *t) {
  const int64_t blocks = t->first_block[w->layout->count];
  int64_t *all = nps_xcalloc(3 * (size_t)(blocks + 1), sizeof *all);
  const places_t p = {blocks, all, all + (blocks + 1), all + 2 * (blocks + 1)};
  for (int64_t i = 0; i < t->block_count; i++) {
    const block_t *b = &t->blocks[i];
    p.positions[b->number + 1] = b->row.position_bytes;
    p.values[b->number + 1] = b->row.value_bytes;
    p.scales[b->number + 1] = b->scale_count;
  }
  nps_comm_sum_i64(w->comm, all, 3 * (blocks + 1)); /* all but one rank's are 0 */
  add_up(p.positions, blocks);
  add_up(p.values, blocks);
  add_up(p.scales, blocks);
  return p;
}

/* Sums over all blocks in order, whatever rank has which. Collective. */
static void tell(const nps_writer_t *w, const task_t *t, nps_archive_told_t *told) {
  const int64_t blocks = t->first_block[w->layout->count];
  double *sums = nps_xcalloc(2 * (size_t)blocks + 1, sizeof *sums), exact = 0, wrong = 0;
  *told = (nps_archive_told_t){0};
  for (int64_t i = 0; i < t->block_count; i++) {
    sums[2 * t->blocks[i].number] = t->blocks[i].exact;
    sums[2 * t->blocks[i].number + 1] = t->blocks[i].wrong;
    told->kept += t->blocks[i].row.kept;
  }
  nps_comm_sum_f64(w->comm, sums, 2 * blocks); /* all but one rank's are 0: exact */
  nps_comm_sum_i64(w->comm, &told->kept, 1);
  for (int64_t i = 0; i < blocks; i++) {
    exact += sums[2 * i];
    wrong += sums[2 * i + 1];
  }
  if (t->triples) nps_triples_tell(t->triples, w->comm, &told->kept, &exact, &wrong);
  told->error = exact > 0 ? sqrt(wrong / exact) : 0;
  for (int i = 0; i < w->layout->count; i++) {
    const nps_target_t *target = &w->layout->targets[i];
    if (is_coded(target)) told->entries += target->count;
    if (t->head[i]) told->bytes += target->count * (int64_t)nps_dtype_size(target->dtype);
  }
  free(sums);
}

/* What a model's datasets are written from. */
typedef struct {
  const task_t *task;
  const nps_spill_t *spill;
  const int64_t *at; /* [blocks + 1] */
  bool of_values;
  char *buffer; /* NPS_SPILL_BYTES, and what the largest block has */
} copy_t;

/* Whether the block after block i of this rank comes next in the line too. */
static bool goes_on(const task_t *t, int64_t i) {
  return i + 1 < t->block_count && t->blocks[i + 1].number == t->blocks[i].number + 1;
}

/* Copies this rank's bytes to their places. */
static nps_err_t copy_bytes(const copy_t *c, nps_h5_dataset_t *dataset) {
  size_t filled = 0;
  int64_t to = 0;
  for (int64_t i = 0; i < c->task->block_count; i++) {
    const block_t *b = &c->task->blocks[i];
    const size_t n = (size_t)(c->of_values ? b->row.value_bytes : b->row.position_bytes);
    if (filled == 0) to = c->at[b->number];
    NPS_TRY(nps_spill_read(c->spill, c->of_values ? b->value_at : b->position_at, n, c->buffer + filled));
    filled += n;
    if (filled < NPS_SPILL_BYTES && goes_on(c->task, i)) continue;
    if (filled > 0) NPS_TRY(nps_h5_dataset_write(dataset, to, (int64_t)filled, c->buffer));
    filled = 0;
  }
  return NPS_OK;
}

/* Creates a dataset of all ranks' bytes and writes this rank's. Collective. */
static nps_err_t put_bytes(const nps_writer_t *w, nps_h5_t *file, const copy_t *c, const char *name, int64_t total,
                           int64_t *bytes) {
  nps_h5_dataset_t *dataset = NULL;
  *bytes += total;
  nps_err_t err = nps_h5_dataset_create(file, c->task->group, name, NPS_U8, 1, &total, &dataset);
  err = nps_comm_agree(w->comm, err);
  if (err == NPS_OK) err = nps_comm_agree(w->comm, nps_h5_reserve(file));
  if (err == NPS_OK) err = nps_comm_agree(w->comm, copy_bytes(c, dataset));
  nps_h5_dataset_close(dataset);
  return err;
}

static nps_err_t write_rows(const task_t *t, nps_h5_dataset_t *dataset) {
  nps_block_row_t *rows = nps_xcalloc((size_t)t->block_count + 1, sizeof *rows);
  nps_err_t err = NPS_OK;
  int64_t first = 0;
  for (int64_t i = 0; i < t->block_count; i++) rows[i] = t->blocks[i].row;
  for (int64_t i = 0; i < t->block_count && err == NPS_OK; i++) {
    if (goes_on(t, i)) continue;
    err = nps_h5_dataset_write(dataset, 4 * t->blocks[first].number, 4 * (i + 1 - first), rows + first);
    first = i + 1;
  }
  free(rows);
  return err;
}

static nps_err_t put_rows(const nps_writer_t *w, const task_t *t, nps_h5_t *file, int64_t *bytes) {
  const int64_t shape[2] = {t->first_block[w->layout->count], 4};
  nps_h5_dataset_t *dataset = NULL;
  nps_err_t err = nps_h5_dataset_create(file, t->group, "blocks", NPS_I32, 2, shape, &dataset);
  err = nps_comm_agree(w->comm, err);
  if (err == NPS_OK) err = nps_comm_agree(w->comm, write_rows(t, dataset));
  nps_h5_dataset_close(dataset);
  *bytes += shape[0] * (int64_t)sizeof(nps_block_row_t);
  return err;
}

static nps_err_t write_scales(const task_t *t, const int64_t *at, nps_h5_dataset_t *dataset) {
  for (int64_t i = 0; i < t->block_count; i++) {
    const block_t *b = &t->blocks[i];
    NPS_TRY(nps_h5_dataset_write(dataset, at[b->number], b->scale_count, t->scales + b->scale_at));
  }
  return NPS_OK;
}

static nps_err_t put_scales(const nps_writer_t *w, const task_t *t, nps_h5_t *file, const int64_t *at, int64_t *bytes) {
  nps_h5_dataset_t *dataset = NULL;
  nps_err_t err = nps_h5_dataset_create(file, t->group, "scales", NPS_F32, 1, &t->units, &dataset);
  err = nps_comm_agree(w->comm, err);
  if (err == NPS_OK) err = nps_comm_agree(w->comm, write_scales(t, at, dataset));
  nps_h5_dataset_close(dataset);
  *bytes += t->units * (int64_t)sizeof(float);
  return err;
}

/* All datasets of the entries. */
static nps_err_t put_entries(const nps_writer_t *w, const task_t *t, nps_h5_t *file, const places_t *p,
                             int64_t *bytes) {
  copy_t positions = {.task = t, .spill = &t->positions, .at = p->positions};
  copy_t values = {.task = t, .spill = &t->values, .at = p->values, .of_values = true};
  /* No block has more bytes than its entries have in 16 bits, and a little. */
  positions.buffer = values.buffer = nps_xcalloc(NPS_SPILL_BYTES + 4 * NPS_BLOCK, 1);
  nps_err_t err = put_bytes(w, file, &positions, "positions", p->positions[p->blocks], bytes);
  if (err == NPS_OK) err = put_bytes(w, file, &values, "values", p->values[p->blocks], bytes);
  free(positions.buffer);
  if (err == NPS_OK) err = put_rows(w, t, file, bytes);
  return err == NPS_OK ? put_scales(w, t, file, p->scales, bytes) : err;
}

static nps_err_t put_all(nps_writer_t *w, task_t *t, nps_h5_t *file, nps_archive_told_t *told) {
  NPS_TRY(nps_comm_agree(w->comm, settle(t)));
  tell(w, t, told);
  const places_t places = find_places(w, t);
  const nps_err_t err = put_entries(w, t, file, &places, &told->bytes);
  free(places.positions);
  NPS_TRY(err);
  return t->triples ? nps_triples_put(t->triples, w->comm, file, t->group, &told->bytes) : NPS_OK;
}

static nps_err_t put_attributes(const task_t *t, nps_h5_t *file, const char *config_json,
                                const nps_archive_told_t *told) {
  if (config_json) NPS_TRY(nps_h5_put_attr_text(file, t->group, "config_json", config_json));
  NPS_TRY(nps_h5_put_attr_i64(file, t->group, "kept", told->kept));
  return nps_h5_put_attr_f64(file, t->group, "error", told->error);
}

nps_err_t nps_archive_end(nps_archive_t *a, nps_writer_t *w, nps_err_t err, const char *config_json,
                          nps_archive_told_t *told) {
  nps_h5_t *file = nps_writer_file(a->file);
  task_t *t = w->state;
  if (err == NPS_OK) err = put_all(w, t, file, told);
  if (err == NPS_OK) err = nps_comm_agree(w->comm, put_attributes(t, file, config_json, told));
  free_task(w);
  return err;
}

/* ---- the archive ---- */

static nps_err_t put_index(const nps_archive_t *a, nps_h5_t *file) {
  const nps_archive_factors_t *factors = a->spec.factors;
  const int64_t n = a->count;
  const char **names = nps_xcalloc((size_t)n + 1, sizeof *names), **types = nps_xcalloc((size_t)n + 1, sizeof *types);
  int64_t *counts = nps_xcalloc((size_t)n + 1, sizeof *counts);
  uint8_t *matrix = nps_xcalloc((size_t)n + 1, sizeof *matrix);
  int64_t matrices = 0;
  for (int64_t i = 0; i < n; i++) {
    matrix[i] = factors && factors->is_matrix(factors->ctx, a->coded[i]);
    matrices += matrix[i];
    names[i] = a->coded[i]->name;
    types[i] = nps_dtype_name(a->coded[i]->dtype);
    counts[i] = a->coded[i]->count;
  }
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_make_group(file, "/index"));
  NPS_GOTO(nps_h5_put_texts(file, "/index/name", names, n));
  NPS_GOTO(nps_h5_put_texts(file, "/index/dtype", types, n));
  NPS_GOTO(nps_h5_put(file, "/index/count", NPS_I64, counts, 1, &n));
  if (factors) NPS_GOTO(nps_h5_put(file, "/index/matrix", NPS_U8, matrix, 1, &n));
  if (factors) NPS_GOTO(nps_h5_put_attr_i64(file, "/index", "matrices", matrices));
  NPS_GOTO(nps_h5_put_attr_i64(file, "/index", "value_bits", a->spec.value_bits));
done:
  free(names);
  free(types);
  free(counts);
  free(matrix);
  return err;
}

nps_err_t nps_archive_new(nps_writer_t *file, const nps_archive_spec_t *spec, nps_archive_t **out) {
  nps_archive_t *a = nps_xcalloc(1, sizeof *a);
  *a = (nps_archive_t){.file = file, .spec = *spec};
  a->coded = nps_xcalloc((size_t)spec->expanded->count + 1, sizeof *a->coded);
  for (int i = 0; i < spec->expanded->count; i++)
    if (is_coded(&spec->expanded->targets[i])) a->coded[a->count++] = &spec->expanded->targets[i];
  const nps_err_t err = nps_comm_agree(file->comm, put_index(a, nps_writer_file(file)));
  *out = err == NPS_OK ? a : NULL;
  if (err != NPS_OK) nps_archive_free(a);
  return err;
}

void nps_archive_free(nps_archive_t *a) {
  if (!a) return;
  free(a->coded);
  free(a);
}

static const char *hash_of(const nps_digest_t *digest, const char *path) {
  for (int i = 0; i < nps_digest_count(digest); i++)
    if (strcmp(nps_digest_path(digest, i), path) == 0) return nps_digest_hex(digest, i);
  return "";
}

static nps_err_t put_files(const nps_model_t *base, nps_h5_t *file, const nps_digest_t *digest) {
  const int64_t n = base->file_count;
  const char **hashes = nps_xcalloc((size_t)n + 1, sizeof *hashes);
  int64_t *sizes = nps_xcalloc((size_t)n + 1, sizeof *sizes);
  for (int64_t i = 0; i < n; i++) {
    hashes[i] = hash_of(digest, base->files[i].path);
    sizes[i] = base->files[i].size;
  }
  nps_err_t err = nps_h5_put_texts(file, "/base/sha256", hashes, n);
  if (err == NPS_OK) err = nps_h5_put(file, "/base/size", NPS_I64, sizes, 1, &n);
  free(hashes);
  free(sizes);
  return err;
}

nps_err_t nps_archive_put_base(const nps_archive_t *a, nps_h5_t *file, const nps_digest_t *digest) {
  const nps_model_t *base = a->spec.base;
  NPS_TRY(nps_h5_make_group(file, "/base"));
  NPS_TRY(nps_h5_put_attr_text(file, "/base", "name", a->spec.base_name));
  if (a->spec.embedded) return NPS_OK;
  /* From anywhere the same model must be found. */
  char *path = nps_comm_rank(a->file->comm) == 0 ? realpath(base->path, NULL) : NULL;
  nps_comm_bcast_text(a->file->comm, &path);
  nps_err_t err = nps_h5_put_attr_text(file, "/base", "path", path ? path : base->path);
  free(path);
  return err == NPS_OK ? put_files(base, file, digest) : err;
}
