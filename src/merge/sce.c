/* sce: the entries of task vectors that differ most between the models, averaged with weights by their squares where signs
 * agree (Select, Calculate, Erase: Wan et al., FuseChat, arXiv 2408.07990), in mergekit's conventions. */
#include "combine.h"
#include "merge_internal.h"
#include "selection.h"

#include <math.h>
#include <stdlib.h>

enum { SELECT_TOPK };

/* Passes: variances that are not 0 are counted; the largest are found; the squares of what is kept are added up. A tensor
 * of which all is kept has its squares added up in the first pass, and needs no other. */
enum { FIRST, SELECTION, SQUARES = SELECTION + NPS_SELECTION_PASSES(false), PASSES };

/* A sum of mean squares below it is taken as nothing: the models weigh the same. Weights that add up to less are taken as
 * that sum. */
#define TINY 1e-6

typedef struct {
  int models;
  bool all;                   /* of the tensor in work is kept */
  int64_t varying;            /* entries whose variance is not 0 */
  nps_selection_t *selection; /* of variances: one list */
  nps_block_sums_t *squares;  /* [models] of what is kept */
  double *weight;             /* [models] */
} sce_state_t;

static bool keeps_all(const nps_merge_tensor_t *tensor) { return tensor->param[SELECT_TOPK][0] >= 1; }

static int sce_passes(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    if (tensors[i].name && !keeps_all(&tensors[i])) return PASSES;
  return 1;
}

static void *sce_new(const nps_merge_spec_t *spec) {
  sce_state_t *s = nps_xcalloc(1, sizeof *s);
  s->models = spec->model_count;
  s->selection = nps_selection_new(1);
  s->squares = nps_xcalloc((size_t)s->models, sizeof *s->squares);
  s->weight = nps_xcalloc((size_t)s->models, sizeof *s->weight);
  return s;
}

static void sce_free(void *state) {
  sce_state_t *s = state;
  for (int m = 0; m < s->models; m++) nps_block_sums_free(&s->squares[m]);
  nps_selection_free(s->selection);
  free(s->squares);
  free(s->weight);
  free(s);
}

static size_t sce_bytes(const nps_merge_spec_t *spec) {
  return nps_selection_bytes(1, 0) + (size_t)spec->model_count * (sizeof(nps_block_sums_t) + sizeof(double));
}

static void sce_start(void *state, const nps_merge_tensor_t *tensor) {
  sce_state_t *s = state;
  s->all = keeps_all(tensor);
  s->varying = 0;
  for (int m = 0; m < tensor->models; m++) nps_block_sums_start(&s->squares[m], tensor->count);
}

/* Ties are counted off anew in every pass over the piece. */
static void sce_piece(void *state, const nps_merge_tensor_t *tensor, int pass) {
  (void)tensor;
  sce_state_t *s = state;
  if (pass >= SQUARES && !s->all) nps_select_rewind(s->selection->select[0]);
}

static int64_t sce_part(void *state, int pass, int64_t n, int64_t *from) {
  sce_state_t *s = state;
  *from = 0;
  return pass == SELECTION ? nps_selection_part(s->selection, 0, n, from) : n;
}

/* ---- select ---- */

NPS_VECTOR_CLONES
static void add_squares(const float *restrict x, const double *restrict mean, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += ((double)x[i] - mean[i]) * ((double)x[i] - mean[i]);
}

NPS_VECTOR_CLONES
static void divide(double divisor, int64_t n, double *restrict x) {
  for (int64_t i = 0; i < n; i++) x[i] /= divisor;
}

NPS_VECTOR_CLONES
static void round_all(const double *restrict x, double divisor, int64_t n, float *restrict out) {
  for (int64_t i = 0; i < n; i++) out[i] = (float)(x[i] / divisor);
}

/* Population variances over the models: float64, rounded once. */
static void find_variances(const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, float *variance) {
  double mean[NPS_CHUNK] = {0}, sum[NPS_CHUNK] = {0};
  const int64_t n = chunk->count;
  for (int m = 0; m < tensor->models; m++) nps_add_task_vector(chunk->tau[m], n, mean);
  divide(tensor->models, n, mean);
  for (int m = 0; m < tensor->models; m++) add_squares(chunk->tau[m], mean, n, sum);
  round_all(sum, tensor->models, n, variance);
}

NPS_VECTOR_CLONES
static int64_t count_varying(const float *variance, int64_t n) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; i++) count += variance[i] != 0;
  return count;
}

/* Sets to zero what is not kept of a chunk. @return how many entries are kept */
static int64_t select_entries(sce_state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  float variance[NPS_CHUNK], keep[NPS_CHUNK];
  if (s->all) return chunk->count;
  find_variances(tensor, chunk, variance);
  const int64_t kept = nps_select_mark(s->selection->select[0], variance, chunk->count, keep);
  for (int m = 0; m < tensor->models; m++) nps_selection_drop(keep, chunk->count, chunk->tau[m]);
  return kept;
}

/* ---- calculate ---- */

static void add_up_squares(sce_state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  select_entries(s, tensor, chunk);
  for (int m = 0; m < tensor->models; m++) {
    nps_lanes_add_squares(&s->squares[m].lanes, chunk->tau[m], chunk->count);
    nps_block_sums_advance(&s->squares[m], chunk->first, chunk->count, chunk->piece_ends);
  }
}

static void sce_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  sce_state_t *s = state;
  float variance[NPS_CHUNK];
  if (pass == SQUARES || s->all) {
    add_up_squares(s, tensor, chunk);
    return;
  }
  find_variances(tensor, chunk, variance);
  if (pass == FIRST)
    s->varying += count_varying(variance, chunk->count);
  else
    nps_selection_scan(s->selection, tensor, pass - SELECTION, 0, variance, chunk->count);
}

static void find_weights(sce_state_t *s, const nps_merge_tensor_t *tensor, const nps_comm_t *comm) {
  double sum = 0;
  for (int m = 0; m < tensor->models; m++) {
    s->weight[m] = nps_block_sums_total(&s->squares[m], comm) / (double)tensor->count;
    sum += s->weight[m];
  }
  for (int m = 0; m < tensor->models; m++) s->weight[m] = sum < TINY ? 1.0 / tensor->models : s->weight[m] / sum;
}

static void sce_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  sce_state_t *s = state;
  if (pass == SQUARES || s->all) {
    find_weights(s, tensor, comm);
  } else if (pass == FIRST) {
    nps_comm_sum_i64(comm, &s->varying, 1);
    const int64_t keep = (int64_t)floor(tensor->param[SELECT_TOPK][0] * (double)s->varying);
    nps_selection_start(s->selection, tensor, false, 1, &keep);
  } else {
    nps_selection_reduce(s->selection, tensor, pass - SELECTION, comm);
  }
}

static int sce_next(void *state, int pass) {
  sce_state_t *s = state;
  if (s->all) return PASSES;
  return pass == FIRST || pass == SQUARES ? pass + 1 : SELECTION + nps_selection_next(s->selection, pass - SELECTION);
}

/* ---- erase ---- */

/* Adds w·x to the sum and w to the divisor where x has the sign of the votes, + where they are 0. */
NPS_VECTOR_CLONES
static void add_agreeing(const float *restrict x, double weight, const double *restrict votes, int64_t n,
                         double *restrict sum, double *restrict divisor) {
  for (int64_t i = 0; i < n; i++) {
    const double value = (double)x[i], agreement = votes[i] >= 0 ? value : -value;
    sum[i] += agreement > 0 ? weight * value : 0;
    divisor[i] += agreement > 0 ? weight : 0;
  }
}

NPS_VECTOR_CLONES
static void divide_each(const double *restrict divisor, int64_t n, double *restrict sum) {
  for (int64_t i = 0; i < n; i++) sum[i] /= divisor[i] > TINY ? divisor[i] : TINY;
}

static void sce_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                      int64_t *kept) {
  sce_state_t *s = state;
  double votes[NPS_CHUNK] = {0}, divisor[NPS_CHUNK] = {0};
  const int64_t n = chunk->count, selected = select_entries(s, tensor, chunk);
  for (int64_t i = 0; i < n; i++) out[i] = 0;
  for (int m = 0; m < tensor->models; m++) nps_add_task_vector(chunk->tau[m], n, votes);
  for (int m = 0; m < tensor->models; m++) {
    add_agreeing(chunk->tau[m], s->weight[m], votes, n, out, divisor);
    kept[m] += selected;
  }
  divide_each(divisor, n, out);
}

const nps_merge_method_t nps_method_sce = {
    .name = "sce",
    .summary = "entries that differ most between the models, averaged by their squares where signs agree",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {[SELECT_TOPK] = {.name = "select_topk", .fallback = 1, .least = 0, .most = 1}},
    .param_count = 1,
    .element_seconds = 7e-9,
    .passes = sce_passes,
    .state_new = sce_new,
    .state_free = sce_free,
    .state_bytes = sce_bytes,
    .start = sce_start,
    .piece = sce_piece,
    .part = sce_part,
    .scan = sce_scan,
    .reduce = sce_reduce,
    .next = sce_next,
    .merge = sce_merge,
};
