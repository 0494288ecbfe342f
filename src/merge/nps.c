/* nps: task vectors split into subspaces by magnitude, each weighed by its own weight, pruned by score and put together
 * (NPS-Pruning: Du et al., ACL 2025, arXiv 2505.18713).
 *
 * Two statistics passes find the thresholds of the subspaces; where entries are dropped, those of a selection find the
 * scores that are kept. */
#include "merge_internal.h"
#include "selection.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHT = NPS_PARAM_WEIGHT, LAMBDA, NORMALIZE, DENSITY };

enum { PARTITION_PASSES = 2 };

const char *const nps_choices_normalize[] = {"none", "sum", "coordinate", NULL};

typedef struct {
  int models, subspaces;
  bool whole_model;
  nps_partition_t **partition; /* [models] */
  nps_selection_t *selection;  /* of scores */
  int64_t *entries, *kept;     /* [models][subspaces] of this rank's pieces */
} nps_state_t;

/* ---- what is to be done ---- */

static bool is_whole_model(const nps_merge_tensor_t *tensor) {
  return tensor->nps->weighting->scope == NPS_SCOPE_MODEL;
}

static bool keeps_all(const nps_merge_tensor_t *tensor) {
  for (int m = 0; m < tensor->models; m++)
    if (tensor->param[DENSITY][m] < 1) return false;
  return true;
}

static bool nps_whole_model(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    if (tensors[i].name) return is_whole_model(&tensors[i]);
  return false;
}

static int nps_passes(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    if (tensors[i].name && !keeps_all(&tensors[i]))
      return PARTITION_PASSES + NPS_SELECTION_PASSES(is_whole_model(&tensors[i]));
  return PARTITION_PASSES;
}

void nps_merge_find_lambda(const nps_merge_tensor_t *tensor, double *lambda) {
  for (int m = 0; m < tensor->models; m++)
    lambda[m] = tensor->nps->has_lambda ? tensor->nps->weighting->lambda[m]
                                        : tensor->param[LAMBDA][0] * tensor->param[WEIGHT][m];
}

static bool nps_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  double lambda[tensor->models], sum = 0;
  nps_merge_find_lambda(tensor, lambda);
  for (int m = 0; m < tensor->models; m++) {
    sum += lambda[m];
    if (!is_whole_model(tensor) || tensor->param[DENSITY][m] == first->param[DENSITY][m]) continue;
    snprintf(why, 160, "with nps.scope: model, density must be the same for all tensors");
    return false;
  }
  if ((int)tensor->param[NORMALIZE][0] != NPS_NORMALIZE_SUM || fabs(sum) >= NPS_TINY_LAMBDA) return true;
  snprintf(why, 160, "lambda × weight add up to %g, and normalize: sum divides by their sum", sum);
  return false;
}

/* ---- statistics ---- */

static void *nps_new(const nps_merge_spec_t *spec) {
  nps_state_t *s = nps_xcalloc(1, sizeof *s);
  s->models = spec->model_count;
  s->subspaces = spec->nps->weighting->subspaces;
  s->partition = nps_xcalloc((size_t)s->models, sizeof(nps_partition_t *));
  for (int m = 0; m < s->models; m++) s->partition[m] = nps_partition_new(s->subspaces);
  s->selection = nps_selection_new(s->models);
  s->entries = nps_xcalloc((size_t)(s->models * s->subspaces), sizeof *s->entries);
  s->kept = nps_xcalloc((size_t)(s->models * s->subspaces), sizeof *s->kept);
  return s;
}

static void nps_free(void *state) {
  nps_state_t *s = state;
  for (int m = 0; m < s->models; m++) nps_partition_free(s->partition[m]);
  nps_selection_free(s->selection);
  free(s->partition);
  free(s->entries);
  free(s->kept);
  free(s);
}

static size_t nps_bytes(const nps_merge_spec_t *spec) {
  const size_t subspaces = (size_t)spec->nps->weighting->subspaces;
  return nps_selection_bytes(spec->model_count, spec->layout->count) +
         (size_t)spec->model_count * (nps_partition_bytes((int)subspaces) + subspaces * 2 * sizeof(int64_t));
}

static void nps_start(void *state, const nps_merge_tensor_t *tensor) {
  nps_state_t *s = state;
  int64_t keep[tensor->models];
  s->whole_model = is_whole_model(tensor);
  const int64_t entries = s->whole_model ? tensor->model_elements : tensor->count;
  for (int m = 0; m < s->models; m++) {
    keep[m] = (int64_t)floor(tensor->param[DENSITY][m] * (double)entries);
    nps_partition_start(s->partition[m], entries);
  }
  nps_selection_start(s->selection, tensor, s->whole_model, tensor->models, keep);
}

static void nps_piece(void *state, const nps_merge_tensor_t *tensor, int pass) {
  nps_state_t *s = state;
  if (pass == PARTITION_PASSES + NPS_SELECTION_PASSES(true)) nps_selection_piece(s->selection, tensor);
}

static int64_t nps_part(void *state, int pass, int64_t n, int64_t *from) {
  nps_state_t *s = state;
  *from = 0;
  return pass < PARTITION_PASSES ? n : nps_selection_part(s->selection, pass - PARTITION_PASSES, n, from);
}

/* Values and scores of a chunk of one model; either may be NULL. */
static void weigh(const nps_state_t *s, const nps_merge_tensor_t *tensor, int model, const nps_merge_chunk_t *chunk,
                  float *value, float *score) {
  const nps_weighting_t *w = tensor->nps->weighting;
  const int64_t row = (int64_t)model * s->subspaces;
  nps_subspace_apply(nps_partition_thresholds(s->partition[model]), s->subspaces, w->weight + row, w->priority + row,
                     chunk->tau[model], chunk->count, value, score);
}

static void nps_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  nps_state_t *s = state;
  float score[NPS_CHUNK];
  for (int m = 0; m < s->models; m++) {
    if (pass < PARTITION_PASSES) {
      nps_partition_count(s->partition[m], pass, chunk->tau[m], chunk->count);
      continue;
    }
    weigh(s, tensor, m, chunk, NULL, score);
    nps_selection_scan(s->selection, tensor, pass - PARTITION_PASSES, m, score, chunk->count);
  }
}

static void nps_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  nps_state_t *s = state;
  if (pass >= PARTITION_PASSES)
    nps_selection_reduce(s->selection, tensor, pass - PARTITION_PASSES, comm);
  else
    for (int m = 0; m < s->models; m++) nps_partition_reduce(s->partition[m], pass, comm);
}

static int nps_next(void *state, int pass) {
  nps_state_t *s = state;
  return pass < PARTITION_PASSES ? pass + 1
                                 : PARTITION_PASSES + nps_selection_next(s->selection, pass - PARTITION_PASSES);
}

/* ---- merging ---- */

/* Turns the chunk of one model into what is kept of it, weighed. @return how many entries are kept */
static int64_t prune(nps_state_t *s, const nps_merge_tensor_t *tensor, int model, const nps_merge_chunk_t *chunk,
                     bool all) {
  const float *thresholds = nps_partition_thresholds(s->partition[model]);
  const int64_t n = chunk->count, row = (int64_t)model * s->subspaces;
  float *tau = chunk->tau[model], score[NPS_CHUNK], keep[NPS_CHUNK];
  int64_t kept = n;
  nps_subspace_count(thresholds, s->subspaces, tau, NULL, n, s->entries + row);
  if (!all) {
    weigh(s, tensor, model, chunk, NULL, score);
    kept = nps_select_mark(s->selection->select[model], score, n, keep);
  }
  nps_subspace_count(thresholds, s->subspaces, tau, all ? NULL : keep, n, s->kept + row);
  weigh(s, tensor, model, chunk, tau, NULL);
  if (!all) nps_selection_drop(keep, n, tau);
  return kept;
}

static void nps_fuse_chunk(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                           int64_t *kept) {
  nps_state_t *s = state;
  double lambda[tensor->models];
  const bool all = keeps_all(tensor);
  nps_merge_find_lambda(tensor, lambda);
  for (int m = 0; m < s->models; m++) kept[m] += prune(s, tensor, m, chunk, all);
  nps_fuse(s->models, (const float *const *)chunk->tau, lambda, (nps_normalize_t)tensor->param[NORMALIZE][0],
           chunk->count, out);
}

static void nps_collect(void *state, const nps_comm_t *comm, nps_merge_subspaces_t *out) {
  nps_state_t *s = state;
  const int64_t cells = (int64_t)s->models * s->subspaces, inner = s->subspaces - 1;
  *out =
      (nps_merge_subspaces_t){.models = s->models, .subspaces = s->subspaces, .entries = s->entries, .kept = s->kept};
  s->entries = s->kept = NULL;
  nps_comm_sum_i64(comm, out->entries, cells);
  nps_comm_sum_i64(comm, out->kept, cells);
  if (!s->whole_model) return;
  out->thresholds = nps_xcalloc((size_t)(s->models * inner), sizeof *out->thresholds);
  for (int m = 0; m < s->models; m++)
    memcpy(out->thresholds + m * inner, nps_partition_thresholds(s->partition[m]),
           (size_t)inner * sizeof *out->thresholds);
}

const nps_merge_method_t nps_method_nps = {
    .name = "nps",
    .summary = "subspaces of the task vectors, weighed, pruned by score and summed",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = NPS_PARAMS,
    .param_count = 4,
    .element_seconds = 9e-9,
    .check = nps_check,
    .passes = nps_passes,
    .whole_model = nps_whole_model,
    .state_new = nps_new,
    .state_free = nps_free,
    .state_bytes = nps_bytes,
    .start = nps_start,
    .piece = nps_piece,
    .part = nps_part,
    .scan = nps_scan,
    .reduce = nps_reduce,
    .next = nps_next,
    .merge = nps_fuse_chunk,
    .subspaces = nps_collect,
};
