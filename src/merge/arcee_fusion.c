/* arcee_fusion, in mergekit's conventions: of one model the entries that matter most, all others from the base. An entry
 * matters by |θ − θ0| × KL(softmax(θ) ‖ softmax(θ0)), the divergence being that of its row; taken are those at or above
 * median + 1.5 × (third − first quartile) of the tensor.
 *
 * The divergence of a row needs the row whole: a rank's piece has whole rows. A first pass finds the divergences, two more
 * find the quartiles, exactly. */
#include "merge_internal.h"

#include <stdlib.h>
#include <string.h>

enum { BASE, MODEL, MODELS };
enum { QUARTILES = 3 };

/* Added to probabilities, so that their ratio and its logarithm exist. */
#define EPS 1e-8

typedef struct {
  double *row[MODELS];               /* [longest row] the row in work */
  double *divergence;                /* [rows] those of this rank's piece are known */
  nps_select_t *quartile[QUARTILES]; /* of importances */
  double threshold;
} state_t;

static int passes(const nps_merge_tensor_t *tensors, int count) {
  (void)tensors;
  (void)count;
  return 3;
}

static void *state_new(const nps_merge_spec_t *spec) {
  const nps_extent_t most = nps_merge_extent(spec->layout);
  state_t *s = nps_xcalloc(1, sizeof *s);
  for (int m = 0; m < MODELS; m++) s->row[m] = nps_xcalloc((size_t)most.row, sizeof **s->row);
  for (int q = 0; q < QUARTILES; q++) s->quartile[q] = nps_select_new();
  s->divergence = nps_xcalloc((size_t)most.rows, sizeof *s->divergence);
  return s;
}

static void state_free(void *state) {
  state_t *s = state;
  for (int m = 0; m < MODELS; m++) free(s->row[m]);
  for (int q = 0; q < QUARTILES; q++) nps_select_free(s->quartile[q]);
  free(s->divergence);
  free(s);
}

static size_t state_bytes(const nps_merge_spec_t *spec) {
  const nps_extent_t most = nps_merge_extent(spec->layout);
  return sizeof(double) * (size_t)(MODELS * most.row + most.rows) + QUARTILES * nps_select_bytes();
}

/* Quartile q is the ⌊q(n − 1)/4⌋-th smallest, from 0. */
static void start(void *state, const nps_merge_tensor_t *tensor) {
  state_t *s = state;
  const int64_t last = nps_max64(tensor->count - 1, 0);
  for (int q = 0; q < QUARTILES; q++)
    nps_select_start(s->quartile[q], tensor->count - (last / 4 * (q + 1) + last % 4 * (q + 1) / 4));
}

/* ---- divergences ---- */

static void make_softmax(double *x, int64_t n) {
  double most = x[0], sum = 0;
  for (int64_t i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
  for (int64_t i = 0; i < n; i++) {
    x[i] = exp(x[i] - most);
    sum += x[i];
  }
  for (int64_t i = 0; i < n; i++) x[i] /= sum;
}

/* Of the row in work, which is overwritten; never below 0, as rounding may have it. */
static double find_divergence(const state_t *s, int64_t n) {
  double sum = 0;
  for (int m = 0; m < MODELS; m++) make_softmax(s->row[m], n);
  for (int64_t i = 0; i < n; i++) {
    const double p = s->row[MODEL][i] + EPS, q = s->row[BASE][i] + EPS;
    sum += p * log(p / q);
  }
  return sum > 0 ? sum : 0;
}

static void gather_rows(state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  const int64_t length = tensor->row_length;
  for (int64_t at = 0, n; at < chunk->count; at += n) {
    const int64_t place = (chunk->first + at) % length;
    n = nps_merge_within_row(tensor, chunk, at);
    for (int m = 0; m < MODELS; m++) memcpy(s->row[m] + place, chunk->theta[m] + at, (size_t)n * sizeof(double));
    if (place + n == length) s->divergence[(chunk->first + at) / length] = find_divergence(s, length);
  }
}

/* ---- importances ---- */

/* [chunk->count] */
static void weigh(const state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                  float *importance) {
  const double *base = chunk->theta[BASE], *theta = chunk->theta[MODEL];
  for (int64_t at = 0, end; at < chunk->count; at = end) {
    const int64_t row = (chunk->first + at) / tensor->row_length;
    end = at + nps_merge_within_row(tensor, chunk, at);
    for (int64_t i = at; i < end; i++) importance[i] = (float)(fabs(theta[i] - base[i]) * s->divergence[row]);
  }
}

static void scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  state_t *s = state;
  float importance[NPS_CHUNK];
  if (pass == 0) {
    gather_rows(s, tensor, chunk);
    return;
  }
  weigh(s, tensor, chunk, importance);
  for (int q = 0; q < QUARTILES; q++) nps_select_count(s->quartile[q], pass - 1, importance, chunk->count);
}

static double value_of(const nps_select_t *quartile) {
  const uint32_t bits = nps_select_threshold(quartile);
  float value;
  memcpy(&value, &bits, sizeof value);
  return (double)value;
}

static void reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)tensor;
  state_t *s = state;
  for (int q = 0; q < QUARTILES && pass > 0; q++) nps_select_reduce(s->quartile[q], pass - 1, comm);
  if (pass == 2) s->threshold = value_of(s->quartile[1]) + 1.5 * (value_of(s->quartile[2]) - value_of(s->quartile[0]));
}

static void merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                  int64_t *kept) {
  (void)kept;
  const state_t *s = state;
  float importance[NPS_CHUNK];
  weigh(s, tensor, chunk, importance);
  for (int64_t i = 0; i < chunk->count; i++)
    out[i] = chunk->theta[(double)importance[i] >= s->threshold ? MODEL : BASE][i];
}

const nps_merge_method_t nps_method_arcee_fusion = {
    .name = "arcee_fusion",
    .summary = "the base with one model's entries of outstanding importance",
    .base = NPS_BASE_FIRST,
    .min_models = 2,
    .max_models = 2,
    .element_seconds = 15e-9,
    .whole_rows = nps_merge_always_rows,
    .passes = passes,
    .state_new = state_new,
    .state_free = state_free,
    .state_bytes = state_bytes,
    .start = start,
    .scan = scan,
    .reduce = reduce,
    .merge = merge,
};
