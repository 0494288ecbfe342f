/* ARCHIVE#NAME: a model whose tensors are the base's with a decoded update, as a derivation. */
#include "nps/archive.h"

#include "archive_read.h"
#include "archive_read_triples.h"
#include "block_code.h"

#include <stdlib.h>
#include <string.h>

/* What a coder takes besides the arrays of a block: zlib's windows and tables. */
#define CODER_BYTES ((int64_t)1 << 20)

/* How the coded tensors of a model are laid out in its datasets: made from index and table of blocks. */
typedef struct {
  int bits;
  int count;                            /* coded tensors */
  int *base_of;                         /* [base tensors], by rule: tensor of the base */
  int *coded;                           /* [base tensors], by rule: which of the coded tensors, or -1 */
  int64_t *first_block, *first_unit;    /* [count + 1] */
  nps_block_row_t *rows;                /* [blocks] */
  int64_t *position_at, *value_at;      /* [blocks + 1] */
  int positions, values, scales, table; /* tensors of the parts */
  int *matrix;                          /* [count] number among those stored by their factors, or -1 */
  nps_triple_rules_t *triples;          /* NULL: there are none */
} rules_t;

static void free_rules(void *rules) {
  rules_t *r = rules;
  free(r->base_of);
  free(r->coded);
  free(r->first_block);
  free(r->first_unit);
  free(r->rows);
  free(r->position_at);
  free(r->value_at);
  free(r->matrix);
  nps_triple_rules_free(r->triples);
  free(r);
}

/* ---- the index ---- */

static const char *text_at(const json_t *object, const char *key, int i) {
  const char *text = json_string_value(json_array_get(json_object_get(object, key), (size_t)i));
  return text ? text : "";
}

static int64_t number_at(const json_t *object, const char *key, int i) {
  return json_integer_value(json_array_get(json_object_get(object, key), (size_t)i));
}

/* Finds the tensor of the base that coded tensor i is a change of. @return -1: there is none that fits */
static int find_coded(const nps_model_t *base, const json_t *index, int i, nps_checks_t *checks) {
  const char *name = text_at(index, "name", i);
  const int w = nps_model_find(base, name);
  nps_dtype_t dtype;
  if (w < 0)
    nps_checks_fail(checks, "/index: tensor %s is not in the base %s", name, base->path);
  else if (nps_dtype_kind(base->tensors[w].dtype) != NPS_KIND_FLOAT ||
           base->tensors[w].count != number_at(index, "count", i))
    nps_checks_fail(checks, "/index: tensor %s has %lld elements, but %lld of type %s in the base %s", name,
                    (long long)number_at(index, "count", i), (long long)base->tensors[w].count,
                    nps_dtype_name(base->tensors[w].dtype), base->path);
  else if (!nps_dtype_from_name(text_at(index, "dtype", i), &dtype) || nps_dtype_kind(dtype) != NPS_KIND_FLOAT)
    nps_checks_fail(checks, "/index: tensor %s: expected a floating-point type, found '%s'", name,
                    text_at(index, "dtype", i));
  else
    return w;
  return -1;
}

/* ---- the table of blocks ---- */

int nps_archive_find_part(const nps_model_t *parts, const char *name, nps_dtype_t dtype, int64_t rows, int64_t columns,
                          nps_checks_t *checks) {
  const int i = nps_model_find(parts, name);
  const nps_tensor_info_t *t = i >= 0 ? &parts->tensors[i] : NULL;
  char shape[192];
  if (!t)
    nps_checks_fail(checks, "%s: there is no dataset %s", parts->name, name);
  else if (t->dtype != dtype || t->ndim != 1 + (columns > 1) || (rows >= 0 && t->shape[0] != rows) ||
           (columns > 1 && t->shape[1] != columns))
    nps_checks_fail(checks, "%s: dataset %s is %s %s, expected %s of %lld", parts->name, name, nps_dtype_name(t->dtype),
                    nps_shape_format(t->ndim, t->shape, shape), nps_dtype_name(dtype), (long long)rows);
  else
    return i;
  return -1;
}

static int64_t entries_of_block(const nps_model_t *base, const rules_t *r, int w, int i, int64_t block) {
  return nps_min64(base->tensors[w].count - (block - r->first_block[i]) * NPS_BLOCK, NPS_BLOCK);
}

/* Checks the rows of a tensor and finds where its blocks' bytes lie. */
static void place_blocks(const nps_model_t *base, rules_t *r, int i, int w, nps_checks_t *checks) {
  for (int64_t b = r->first_block[i]; b < r->first_block[i + 1]; b++) {
    nps_block_row_t *row = &r->rows[b];
    if (row->kept < 0 || row->kept > entries_of_block(base, r, w, i, b) || row->position_bytes < 0 ||
        row->value_bytes < 0) {
      nps_checks_fail(checks, "tensor %s: block %lld keeps %d of %lld entries in %d and %d bytes",
                      base->tensors[w].name, (long long)(b - r->first_block[i]), row->kept,
                      (long long)entries_of_block(base, r, w, i, b), row->position_bytes, row->value_bytes);
      *row = (nps_block_row_t){0};
    }
    r->position_at[b + 1] = r->position_at[b] + row->position_bytes;
    r->value_at[b + 1] = r->value_at[b] + row->value_bytes;
  }
}

void nps_archive_check_total(const nps_model_t *parts, int part, const char *of, int64_t total, nps_checks_t *checks) {
  if (parts->tensors[part].count != total)
    nps_checks_fail(checks, "%s: dataset %s has %lld entries, but its %s %lld", parts->name, parts->tensors[part].name,
                    (long long)parts->tensors[part].count, of, (long long)total);
}

static nps_err_t read_rows(const nps_model_t *parts, rules_t *r, int64_t blocks) {
  nps_reader_t *reader = nps_reader_new(parts, NULL);
  r->rows = nps_xcalloc((size_t)blocks + 1, sizeof *r->rows);
  r->position_at = nps_xcalloc((size_t)blocks + 1, sizeof *r->position_at);
  r->value_at = nps_xcalloc((size_t)blocks + 1, sizeof *r->value_at);
  const nps_err_t err = nps_reader_read(reader, r->table, 0, 4 * blocks, r->rows);
  nps_reader_free(reader);
  return err;
}

/* Numbers the matrices that are stored by their factors. */
static nps_err_t read_triples(const nps_model_t *model, rules_t *r, const json_t *index, const int *w_of,
                              nps_checks_t *checks) {
  const nps_model_t *base = model->derivation->base;
  const nps_tensor_info_t **tensors = nps_xcalloc((size_t)r->count + 1, sizeof *tensors);
  int count = 0;
  for (int i = 0; i < r->count; i++) {
    const nps_tensor_info_t *t = &base->tensors[w_of[i]];
    r->matrix[i] = -1;
    if (!number_at(index, "matrix", i)) continue;
    if (t->ndim != 2) nps_checks_fail(checks, "/index/matrix: tensor %s of the base is no matrix", t->name);
    r->matrix[i] = count;
    tensors[count++] = t;
  }
  if (checks->count == 0 && json_object_get(index, "matrix"))
    return nps_triple_rules_new(model->derivation->parts, r->bits, tensors, count, checks, &r->triples);
  free(tensors);
  return NPS_OK;
}

/* @param w_of  [count] tensor of the base */
static nps_err_t read_table(const nps_model_t *model, rules_t *r, const int *w_of, nps_checks_t *checks) {
  const nps_model_t *base = model->derivation->base, *parts = model->derivation->parts;
  r->first_block = nps_xcalloc((size_t)r->count + 1, sizeof *r->first_block);
  r->first_unit = nps_xcalloc((size_t)r->count + 1, sizeof *r->first_unit);
  for (int i = 0; i < r->count; i++) {
    const int64_t count = r->matrix[i] < 0 ? base->tensors[w_of[i]].count : 0;
    r->first_block[i + 1] = r->first_block[i] + nps_blocks_of(count);
    r->first_unit[i + 1] = r->first_unit[i] + nps_units_of(count);
  }
  const int64_t blocks = r->first_block[r->count];
  r->table = nps_archive_find_part(parts, "blocks", NPS_I32, blocks, 4, checks);
  r->scales = nps_archive_find_part(parts, "scales", NPS_F32, r->first_unit[r->count], 1, checks);
  r->positions = nps_archive_find_part(parts, "positions", NPS_U8, -1, 1, checks);
  r->values = nps_archive_find_part(parts, "values", NPS_U8, -1, 1, checks);
  if (checks->count > 0) return NPS_OK;
  NPS_TRY(read_rows(parts, r, blocks));
  for (int i = 0; i < r->count; i++) place_blocks(base, r, i, w_of[i], checks);
  nps_archive_check_total(parts, r->positions, "blocks", r->position_at[blocks], checks);
  nps_archive_check_total(parts, r->values, "blocks", r->value_at[blocks], checks);
  return NPS_OK;
}

/* ---- the catalogue ---- */

/* Coded tensors are computed, and so are those that the base computes. */
static void add_base_tensors(nps_model_t *model, rules_t *r, const json_t *index, const int *coded_of) {
  const nps_model_t *base = model->derivation->base;
  const int first = nps_model_add_files(model, base);
  int rules = 0;
  for (int w = 0; w < base->tensor_count; w++) {
    nps_tensor_info_t info = base->tensors[w];
    const int i = coded_of[w];
    const bool computed = i >= 0 || info.rule;
    if (i >= 0 && nps_dtype_from_name(text_at(index, "dtype", i), &info.dtype)) info.written = info.dtype;
    info.name = nps_xstrdup(info.name);
    info.file += first;
    info.rule = 0;
    if (computed) {
      r->base_of[rules] = w;
      r->coded[rules++] = i;
      info.rule = rules;
    }
    nps_model_add_tensor(model, &info);
  }
}

static void add_heads(nps_model_t *model, nps_checks_t *checks) {
  const nps_model_t *parts = model->derivation->parts;
  const int first = nps_model_add_files(model, parts);
  const size_t n = strlen(NPS_ARCHIVE_HEADS);
  for (int i = 0; i < parts->tensor_count; i++) {
    nps_tensor_info_t info = parts->tensors[i];
    if (strncmp(info.name, NPS_ARCHIVE_HEADS, n) != 0) continue;
    if (nps_model_find(model->derivation->base, info.name + n) >= 0) {
      nps_checks_fail(checks, "%s: tensor %s of the head is in the base too", parts->name, info.name + n);
      continue;
    }
    info.name = nps_xstrdup(info.name + n);
    info.file += first;
    nps_model_add_tensor(model, &info);
  }
}

static nps_err_t plan_index(nps_model_t *model, const json_t *index) {
  const nps_model_t *base = model->derivation->base;
  nps_checks_t checks = {model->derivation->parts->path, 0};
  rules_t *r = model->derivation->rules = nps_xcalloc(1, sizeof *r);
  r->bits = (int)json_integer_value(json_object_get(index, "value_bits"));
  r->count = (int)json_array_size(json_object_get(index, "name"));
  r->base_of = nps_xcalloc((size_t)base->tensor_count + 1, sizeof *r->base_of);
  r->coded = nps_xcalloc((size_t)base->tensor_count + 1, sizeof *r->coded);
  int *w_of = nps_xcalloc((size_t)r->count + 1, sizeof *w_of);
  int *coded_of = nps_xcalloc((size_t)base->tensor_count + 1, sizeof *coded_of);
  for (int w = 0; w < base->tensor_count; w++) coded_of[w] = -1;
  const json_t *hashes = json_object_get(index, "sha256"); /* none where the base is embedded */
  if (hashes && (int64_t)json_array_size(hashes) != base->file_count)
    nps_checks_fail(&checks, "/base/sha256: has %zu entries, but the base %s %d files", json_array_size(hashes),
                    base->path, (int)base->file_count);
  for (int i = 0; i < r->count; i++) {
    w_of[i] = find_coded(base, index, i, &checks);
    if (w_of[i] >= 0 && coded_of[w_of[i]] >= 0)
      nps_checks_fail(&checks, "/index: tensor %s is listed twice", text_at(index, "name", i));
    if (w_of[i] >= 0) coded_of[w_of[i]] = i;
  }
  r->matrix = nps_xcalloc((size_t)r->count + 1, sizeof *r->matrix);
  nps_err_t err = checks.count == 0 ? read_triples(model, r, index, w_of, &checks) : NPS_OK;
  if (err == NPS_OK && checks.count == 0) err = read_table(model, r, w_of, &checks);
  if (err == NPS_OK && checks.count == 0) {
    add_base_tensors(model, r, index, coded_of);
    add_heads(model, &checks);
  }
  free(w_of);
  free(coded_of);
  return err == NPS_OK ? nps_checks_end(&checks) : err;
}

static nps_err_t plan(nps_model_t *model) {
  const nps_derivation_t *d = model->derivation;
  json_t *index = NULL;
  NPS_TRY(nps_json_parse(d->text, strlen(d->text), model->path, &index));
  const char *config = json_string_value(json_object_get(index, "config_json"));
  if (config) {
    free(model->config_json);
    model->config_json = nps_xstrdup(config);
  }
  const nps_err_t err = plan_index(model, index);
  json_decref(index);
  return err;
}

/* ---- reading ---- */

typedef struct {
  const nps_model_t *model;
  nps_reader_t *base, *parts;
  nps_block_coder_t *coder;
  int64_t block;                         /* whose update is there; -1: none */
  float *update;                         /* [NPS_BLOCK] */
  double *values, *wide;                 /* [NPS_BLOCK] of the base, of the update */
  void *raw;                             /* [NPS_BLOCK] of the base as stored */
  uint8_t *position_bytes, *value_bytes; /* of the largest block */
  float scales[NPS_BLOCK / NPS_UNIT];
  nps_triple_state_t triples;
} state_t;

static void end(void *state) {
  state_t *s = state;
  nps_reader_free(s->base);
  nps_reader_free(s->parts);
  nps_block_coder_free(s->coder);
  nps_triple_state_free(&s->triples);
  free(s->update);
  free(s->values);
  free(s->wide);
  free(s->raw);
  free(s->position_bytes);
  free(s->value_bytes);
  free(s);
}

static nps_err_t make_room(state_t *s, const rules_t *r) {
  int32_t positions = 1, values = 1;
  for (int64_t b = 0; b < r->first_block[r->count]; b++) {
    if (r->rows[b].position_bytes > positions) positions = r->rows[b].position_bytes;
    if (r->rows[b].value_bytes > values) values = r->rows[b].value_bytes;
  }
  NPS_TRY(nps_buffer_alloc((size_t)positions, "a block of an archive", &s->position_bytes));
  NPS_TRY(nps_buffer_alloc((size_t)values, "a block of an archive", &s->value_bytes));
  NPS_TRY(nps_buffer_alloc(NPS_BLOCK * sizeof(float), "a block of an archive", &s->update));
  NPS_TRY(nps_buffer_alloc(NPS_BLOCK * sizeof(double), "a block of an archive", &s->values));
  NPS_TRY(nps_buffer_alloc(NPS_BLOCK * sizeof(double), "a block of an archive", &s->wide));
  return nps_buffer_alloc(NPS_BLOCK * sizeof(double), "a block of an archive", &s->raw);
}

static nps_err_t begin(const nps_model_t *model, nps_digest_t *digest, void **state) {
  const rules_t *r = model->derivation->rules;
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->model = model;
  s->block = -1;
  s->triples.number = -1;
  s->base = nps_reader_new(model->derivation->base, digest);
  s->parts = nps_reader_new(model->derivation->parts, digest);
  s->coder = nps_block_coder_new(r->bits);
  const nps_err_t err = make_room(s, r);
  *state = err == NPS_OK ? s : NULL;
  if (err != NPS_OK) end(s);
  return err;
}

/* Makes the update of a block of n entries; its scales begin with number `unit`. */
static nps_err_t decode(state_t *s, const char *name, int64_t block, int64_t unit, int64_t n) {
  const rules_t *r = s->model->derivation->rules;
  const nps_model_t *parts = s->model->derivation->parts;
  if (s->block == block) return NPS_OK;
  s->block = -1;
  NPS_TRY(nps_reader_read(s->parts, r->scales, unit, nps_units_of(n), s->scales));
  NPS_TRY(
      nps_reader_read(s->parts, r->positions, r->position_at[block], r->rows[block].position_bytes, s->position_bytes));
  NPS_TRY(nps_reader_read(s->parts, r->values, r->value_at[block], r->rows[block].value_bytes, s->value_bytes));
  const char *wrong =
      nps_block_decode(s->coder, r->rows[block], s->position_bytes, s->value_bytes, s->scales, n, s->update);
  if (wrong)
    return nps_fail(NPS_ERR_INPUT, "%s: is damaged: %s: tensor %s has a block with %s", parts->path, parts->name, name,
                    wrong);
  s->block = block;
  return NPS_OK;
}

/* The update of elements [first, first + n) of a coded tensor, all of one block. */
static nps_err_t make_update(state_t *s, const nps_tensor_info_t *t, int i, int64_t first, int64_t n,
                             const float **update) {
  const rules_t *r = s->model->derivation->rules;
  const int64_t block = first / NPS_BLOCK, start = block * NPS_BLOCK;
  if (r->matrix[i] >= 0) {
    s->block = -1;
    *update = s->update;
    return nps_triples_read(r->triples, s->model->derivation->parts, s->parts, r->matrix[i], first, n, &s->triples,
                            s->update);
  }
  *update = s->update + (first - start);
  return decode(s, t->name, r->first_block[i] + block, r->first_unit[i] + start / NPS_UNIT,
                nps_min64(t->count - start, NPS_BLOCK));
}

/* Elements [first, first + n) of a coded tensor, all of one block. */
static nps_err_t read_coded(state_t *s, const nps_tensor_info_t *t, int w, int i, int64_t first, int64_t n, void *dst) {
  const float *update = NULL;
  NPS_TRY(make_update(s, t, i, first, n, &update));
  NPS_TRY(nps_reader_read(s->base, w, first, n, s->raw));
  nps_tensor_widen(s->model->derivation->base->tensors[w].dtype, s->raw, n, s->values);
  nps_tensor_widen(NPS_F32, update, n, s->wide);
  for (int64_t k = 0; k < n; k++) s->values[k] = s->values[k] + s->wide[k];
  nps_tensor_narrow(s->values, n, t->dtype, dst);
  return NPS_OK;
}

static nps_err_t read_values(void *state, int index, int64_t first, int64_t count, void *dst) {
  state_t *s = state;
  const nps_tensor_info_t *t = &s->model->tensors[index];
  const rules_t *r = s->model->derivation->rules;
  const int w = r->base_of[t->rule - 1], i = r->coded[t->rule - 1];
  char *to = dst;
  if (i < 0) return nps_reader_read(s->base, w, first, count, dst);
  for (int64_t end_ = first + count; first < end_;) {
    const int64_t n = nps_min64(end_, (first / NPS_BLOCK + 1) * NPS_BLOCK) - first;
    NPS_TRY(read_coded(s, t, w, i, first, n, to));
    first += n;
    to += (size_t)n * nps_dtype_size(t->dtype);
  }
  return NPS_OK;
}

static int64_t reader_bytes(const nps_model_t *model) {
  const rules_t *r = model->derivation->rules;
  return (3 * (int64_t)sizeof(double) + 2 * (int64_t)sizeof(float) + 4) * NPS_BLOCK + CODER_BYTES +
         nps_triple_rules_bytes(r->triples);
}

const nps_derivation_form_t nps_archive_form = {.name = "archive",
                                                .plan = plan,
                                                .free_rules = free_rules,
                                                .bytes = reader_bytes,
                                                .begin = begin,
                                                .read = read_values,
                                                .end = end};

/* ---- checking bases ---- */

typedef struct {
  const nps_model_t **models; /* [count] models of archives */
  const nps_model_t **bases;  /* [count] theirs */
  int count;
} archives_t;

static void add_archive(archives_t *found, const nps_model_t *model) {
  found->models = nps_xrealloc(found->models, (size_t)found->count + 1, sizeof *found->models);
  found->bases = nps_xrealloc(found->bases, (size_t)found->count + 1, sizeof *found->bases);
  found->models[found->count] = model;
  found->bases[found->count++] = model->derivation->base;
}

/* Finds the archives that a model's tensors come from: its own, those of what it is a change of or made of. */
static void find_archives(archives_t *found, const nps_model_t *model) {
  if (model->derivation && model->derivation->form == &nps_archive_form) add_archive(found, model);
  if (model->derivation) find_archives(found, model->derivation->base);
  for (int p = 0; p < model->parent_count; p++) find_archives(found, model->parents[p]);
}

static const char *hash_of(const nps_digest_t *digest, const char *path) {
  for (int i = 0; i < nps_digest_count(digest); i++)
    if (strcmp(nps_digest_path(digest, i), path) == 0) return nps_digest_hex(digest, i);
  return "";
}

static nps_err_t compare(const nps_model_t *model, const nps_digest_t *digest) {
  const nps_derivation_t *d = model->derivation;
  json_t *index = NULL;
  NPS_TRY(nps_json_parse(d->text, strlen(d->text), model->path, &index));
  const int n = (int)json_array_size(json_object_get(index, "sha256"));
  nps_err_t err = NPS_OK;
  for (int i = 0; i < n && err == NPS_OK; i++)
    if (strcmp(text_at(index, "sha256", i), hash_of(digest, d->base->files[i].path)) != 0)
      err = nps_fail(NPS_ERR_INPUT,
                     "%s: has another content than the base that %s was made from: content hash %.64s, expected %.64s",
                     d->base->files[i].path, d->parts->path, hash_of(digest, d->base->files[i].path),
                     text_at(index, "sha256", i));
  json_decref(index);
  return err;
}

nps_err_t nps_archive_verify(const nps_comm_t *comm, const nps_model_t *const *models, int n) {
  archives_t found = {0};
  for (int i = 0; i < n; i++) find_archives(&found, models[i]);
  nps_err_t err = NPS_OK;
  nps_digest_t *digest = found.count > 0 ? nps_digest_start(found.bases, found.count) : NULL;
  if (digest) err = nps_digest_finish(comm, digest);
  for (int i = 0; i < found.count && err == NPS_OK && nps_comm_rank(comm) == 0; i++)
    err = compare(found.models[i], digest);
  nps_digest_free(digest);
  free(found.models);
  free(found.bases);
  return nps_comm_agree(comm, err);
}
