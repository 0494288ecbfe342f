#include "nps/delta.h"
#include "nps/inspect.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Elements read at a time: at most 16 MiB. */
#define PART ((int64_t)32 * NPS_BLOCK)

typedef struct {
  const nps_model_t *model, *base;
  nps_reader_t *reader, *base_reader;
  nps_inspect_tensor_t *tensors;
  int64_t *first_block;                         /* [tensors + 1] in the line of all tensors' blocks */
  double *squares, *base_squares, *differences; /* [blocks] */
  void *part, *base_part;                       /* [PART] elements as they are stored */
  nps_pulse_t *pulse;
  nps_report_t *report;
  int64_t done; /* bytes */
} scan_t;

static bool is_numeric(nps_dtype_t dtype) { return nps_dtype_kind(dtype) != NPS_KIND_OPAQUE; }

static bool same_shape(const nps_tensor_info_t *a, const nps_tensor_info_t *b) {
  return a->ndim == b->ndim && (a->ndim == 0 || memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0);
}

#define WIDEN(type)                                                                                                    \
  for (int64_t i = 0; i < n; i++) {                                                                                    \
    type value;                                                                                                        \
    memcpy(&value, bytes + (size_t)i * sizeof value, sizeof value);                                                    \
    dst[i] = (double)value;                                                                                            \
  }                                                                                                                    \
  break

static void widen(nps_dtype_t dtype, const void *src, int64_t n, double *dst) {
  const char *bytes = src;
  switch (dtype) {
  case NPS_I64:
    WIDEN(int64_t);
  case NPS_I32:
    WIDEN(int32_t);
  case NPS_I16:
    WIDEN(int16_t);
  case NPS_I8:
    WIDEN(int8_t);
  case NPS_U64:
    WIDEN(uint64_t);
  case NPS_U32:
    WIDEN(uint32_t);
  case NPS_U16:
    WIDEN(uint16_t);
  case NPS_U8:
  case NPS_BOOL:
    WIDEN(uint8_t);
  default:
    nps_tensor_widen(dtype, src, n, dst);
  }
}

static int64_t count_nonfinite(nps_dtype_t dtype, const void *src, int64_t n) {
  const char *bytes = src;
  size_t size = nps_dtype_size(dtype);
  int64_t count = 0, at = 0;
  for (int64_t i = 0; (at = nps_tensor_find_nonfinite(dtype, bytes + (size_t)i * size, n - i)) >= 0; i += at + 1)
    count++;
  return count;
}

/* Integers are compared as they are stored: float64 cannot hold all of 64 bits. */
static int64_t count_changed(nps_dtype_t dtype, const void *src, nps_dtype_t base_dtype, const void *base,
                             const double *x, const double *y, int64_t n) {
  int64_t changed = 0;
  if (dtype == base_dtype && nps_dtype_kind(dtype) == NPS_KIND_EXACT) {
    size_t size = nps_dtype_size(dtype);
    for (size_t i = 0; i < (size_t)n; i++)
      changed += memcmp((const char *)src + i * size, (const char *)base + i * size, size) != 0;
    return changed;
  }
  for (int64_t i = 0; i < n; i++) changed += x[i] != y[i] && !(isnan(x[i]) && isnan(y[i]));
  return changed;
}

NPS_VECTOR_CLONES
static double subtract(const double *x, const double *y, int64_t n, double *difference) {
  double max = 0;
  for (int64_t i = 0; i < n; i++) {
    difference[i] = x[i] - y[i];
    double magnitude = __builtin_fabs(difference[i]);
    max = magnitude > max ? magnitude : max;
  }
  return max;
}

/* One block: `src` and, where the tensor is compared, `base` hold its n elements as stored. */
static void scan_block(scan_t *s, int t, int64_t block, const void *src, const void *base, int64_t n) {
  nps_inspect_tensor_t *found = &s->tensors[t];
  nps_dtype_t dtype = s->model->tensors[t].dtype;
  nps_dtype_t base_dtype = base ? s->base->tensors[found->base].dtype : dtype;
  nps_lanes_t lanes = {{0}}, base_lanes = {{0}}, difference_lanes = {{0}};
  double x[NPS_CHUNK], y[NPS_CHUNK], d[NPS_CHUNK];
  for (int64_t i = 0; i < n; i += NPS_CHUNK) {
    int64_t m = n - i < NPS_CHUNK ? n - i : NPS_CHUNK;
    const char *src_chunk = (const char *)src + (size_t)i * nps_dtype_size(dtype);
    widen(dtype, src_chunk, m, x);
    nps_lanes_add_products(&lanes, x, x, m);
    if (!base) continue;
    const char *base_chunk = (const char *)base + (size_t)i * nps_dtype_size(base_dtype);
    widen(base_dtype, base_chunk, m, y);
    nps_lanes_add_products(&base_lanes, y, y, m);
    double max = subtract(x, y, m, d);
    nps_lanes_add_products(&difference_lanes, d, d, m);
    found->changed += count_changed(dtype, src_chunk, base_dtype, base_chunk, x, y, m);
    found->max = fmax(found->max, max);
  }
  s->squares[block] = nps_lanes_sum(&lanes);
  if (!isfinite(s->squares[block])) found->nonfinite += count_nonfinite(dtype, src, n);
  if (!base) return;
  s->base_squares[block] = nps_lanes_sum(&base_lanes);
  s->differences[block] = nps_lanes_sum(&difference_lanes);
}

/* Reads and scans elements [first, first + count) of tensor t, at most PART, from a block's start. */
static nps_err_t scan_part(scan_t *s, int t, int64_t first, int64_t count) {
  const nps_inspect_tensor_t *found = &s->tensors[t];
  size_t size = nps_dtype_size(s->model->tensors[t].dtype), base_size = 0;
  NPS_TRY(nps_reader_read(s->reader, t, first, count, s->part));
  if (found->compared) {
    base_size = nps_dtype_size(s->base->tensors[found->base].dtype);
    NPS_TRY(nps_reader_read(s->base_reader, found->base, first, count, s->base_part));
  }
  for (int64_t i = 0; i < count; i += NPS_BLOCK) {
    int64_t n = count - i < NPS_BLOCK ? count - i : NPS_BLOCK;
    const char *base = found->compared ? (const char *)s->base_part + (size_t)i * base_size : NULL;
    scan_block(s, t, s->first_block[t] + (first + i) / NPS_BLOCK, (const char *)s->part + (size_t)i * size, base, n);
  }
  s->done += count * (int64_t)(size + base_size);
  return NPS_OK;
}

/* Scans what tensor t has in blocks [low, high) of the line. *go_on becomes false when another rank has failed. */
static nps_err_t scan_tensor(scan_t *s, int t, int64_t low, int64_t high, bool *go_on) {
  if (low < s->first_block[t]) low = s->first_block[t];
  if (high > s->first_block[t + 1]) high = s->first_block[t + 1];
  int64_t end = (high - s->first_block[t]) * NPS_BLOCK, total = 0;
  if (end > s->model->tensors[t].count) end = s->model->tensors[t].count;
  for (int64_t first = (low - s->first_block[t]) * NPS_BLOCK; first < end && *go_on; first += PART) {
    NPS_TRY(scan_part(s, t, first, end - first < PART ? end - first : PART));
    *go_on = nps_pulse_beat(s->pulse, s->done, &total);
    nps_report_progress(s->report, total);
  }
  return NPS_OK;
}

static void show_total(void *report, int64_t total) { nps_report_progress(report, total); }

/* The line of blocks is cut into one stretch a rank. */
static nps_err_t scan_all(scan_t *s, const nps_comm_t *comm) {
  nps_err_t err = NPS_OK;
  bool go_on = true;
  int tensors = s->model->tensor_count;
  int64_t rank = nps_comm_rank(comm), ranks = nps_comm_size(comm), blocks = s->first_block[tensors];
  int64_t low = blocks / ranks * rank + blocks % ranks * rank / ranks;
  int64_t high = blocks / ranks * (rank + 1) + blocks % ranks * (rank + 1) / ranks;
  for (int t = 0; t < tensors && err == NPS_OK && go_on; t++)
    if (s->tensors[t].has_norm && low < s->first_block[t + 1] && high > s->first_block[t])
      err = scan_tensor(s, t, low, high, &go_on);
  return nps_pulse_end(s->pulse, s->done, err, show_total, s->report);
}

/* Brings together counts and maxima; a tensor's norm is then summed in block order on every rank. */
static void put_together(scan_t *s, const nps_comm_t *comm, nps_inspect_tensor_t *total) {
  int tensors = s->model->tensor_count;
  int64_t blocks = s->first_block[tensors];
  int64_t *counts = nps_xcalloc(2 * (size_t)tensors + 1, sizeof *counts);
  double *max = nps_xcalloc((size_t)tensors + 1, sizeof *max);
  for (int t = 0; t < tensors; t++) {
    counts[2 * t] = s->tensors[t].nonfinite;
    counts[2 * t + 1] = s->tensors[t].changed;
    max[t] = s->tensors[t].max;
  }
  nps_comm_sum_i64(comm, counts, 2 * (int64_t)tensors);
  nps_comm_max_f64(comm, max, tensors);
  nps_comm_sum_f64(comm, s->squares, blocks); /* one rank's is not zero: exact */
  nps_comm_sum_f64(comm, s->base_squares, blocks);
  nps_comm_sum_f64(comm, s->differences, blocks);
  double all = 0, all_base = 0, all_differences = 0;
  for (int t = 0; t < tensors; t++) {
    nps_inspect_tensor_t *found = &s->tensors[t];
    double squares = 0, base_squares = 0, differences = 0;
    for (int64_t b = s->first_block[t]; b < s->first_block[t + 1]; b++) {
      squares += s->squares[b];
      base_squares += s->base_squares[b];
      differences += s->differences[b];
    }
    found->norm = sqrt(squares);
    found->base_norm = sqrt(base_squares);
    found->difference = sqrt(differences);
    found->nonfinite = counts[2 * t];
    found->changed = counts[2 * t + 1];
    found->max = isfinite(found->difference) ? max[t] : NAN;
    all += squares;
    all_base += base_squares;
    all_differences += differences;
    total->nonfinite += found->nonfinite;
    total->changed += found->changed;
    total->max = isnan(found->max) || isnan(total->max) ? NAN : fmax(total->max, found->max);
    total->has_norm |= found->has_norm;
    total->compared |= found->compared;
  }
  total->norm = sqrt(all);
  total->base_norm = sqrt(all_base);
  total->difference = sqrt(all_differences);
  free(counts);
  free(max);
}

/* Decides what is compared and gives the bytes to be read. */
static int64_t prepare(scan_t *s) {
  int64_t bytes = 0;
  int tensors = s->model->tensor_count;
  s->first_block = nps_xcalloc((size_t)tensors + 1, sizeof *s->first_block);
  for (int t = 0; t < tensors; t++) {
    const nps_tensor_info_t *info = &s->model->tensors[t];
    nps_inspect_tensor_t *found = &s->tensors[t];
    found->has_norm = is_numeric(info->dtype);
    found->base = s->base ? nps_model_find(s->base, info->name) : -1;
    const nps_tensor_info_t *other = found->base >= 0 ? &s->base->tensors[found->base] : NULL;
    found->compared = other && found->has_norm && is_numeric(other->dtype) && same_shape(info, other);
    s->first_block[t + 1] = s->first_block[t] + (info->count + NPS_BLOCK - 1) / NPS_BLOCK;
    if (found->has_norm) bytes += info->count * (int64_t)nps_dtype_size(info->dtype);
    if (found->compared) bytes += info->count * (int64_t)nps_dtype_size(other->dtype);
  }
  int64_t blocks = s->first_block[tensors];
  s->squares = nps_xcalloc((size_t)blocks + 1, sizeof(double));
  s->base_squares = nps_xcalloc((size_t)blocks + 1, sizeof(double));
  s->differences = nps_xcalloc((size_t)blocks + 1, sizeof(double));
  s->reader = nps_reader_new(s->model, NULL);
  if (s->base) s->base_reader = nps_reader_new(s->base, NULL);
  return bytes;
}

static nps_err_t allocate_parts(scan_t *s) {
  NPS_TRY(nps_buffer_alloc((size_t)PART * sizeof(double), "parts of tensors", &s->part));
  return s->base ? nps_buffer_alloc((size_t)PART * sizeof(double), "parts of tensors", &s->base_part) : NPS_OK;
}

static void free_scan(scan_t *s) {
  nps_reader_free(s->reader);
  nps_reader_free(s->base_reader);
  free(s->first_block);
  free(s->squares);
  free(s->base_squares);
  free(s->differences);
  free(s->part);
  free(s->base_part);
}

static nps_err_t scan_model(const nps_comm_t *comm, const nps_model_t *model, const nps_model_t *base,
                            nps_report_t *report, nps_inspect_t **out) {
  nps_err_t err = NPS_OK;
  nps_inspect_t *inspect = nps_xcalloc(1, sizeof *inspect);
  *inspect = (nps_inspect_t){.model = model, .base = base};
  inspect->tensors = nps_xcalloc((size_t)model->tensor_count + 1, sizeof *inspect->tensors);
  scan_t s = {.model = model, .base = base, .tensors = inspect->tensors, .report = report};
  int64_t bytes = prepare(&s);
  NPS_GOTO(nps_comm_agree(comm, allocate_parts(&s)));
  nps_report_phase(report, "reading", bytes);
  s.pulse = nps_pulse_start(comm);
  err = scan_all(&s, comm);
  if (err == NPS_OK) nps_report_progress(report, bytes);
  nps_report_phase_end(report);
  if (err != NPS_OK) goto done;
  put_together(&s, comm, &inspect->total);
  *out = inspect;
  inspect = NULL;
done:
  nps_inspect_free(inspect);
  free_scan(&s);
  return err;
}

nps_err_t nps_inspect_scan(const nps_comm_t *comm, const nps_model_t *model, const nps_model_t *base,
                           nps_report_t *report, nps_inspect_t **out) {
  NPS_TRY(scan_model(comm, model, base, report, out));
  if (!model->experts) return NPS_OK;
  nps_err_t err = scan_model(comm, model->experts->parts, NULL, report, &(*out)->experts);
  if (err == NPS_OK) return NPS_OK;
  nps_inspect_free(*out);
  *out = NULL;
  return err;
}

void nps_inspect_free(nps_inspect_t *inspect) {
  if (!inspect) return;
  for (int i = 0; i < inspect->sidecar_count; i++) free(inspect->sidecars[i]);
  free(inspect->sidecars);
  for (int i = 0; i < inspect->spectrum_count; i++) free(inspect->spectra[i].sigma);
  free(inspect->spectra);
  nps_inspect_free(inspect->experts);
  json_decref(inspect->origin);
  json_decref(inspect->archive);
  free(inspect->tensors);
  free(inspect);
}
