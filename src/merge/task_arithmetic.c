/* task_arithmetic (Ilharco et al., arXiv 2212.04089), ties (Yadav et al., 2306.01708), dare (Yu et al., 2311.03099). */
#include "combine.h"
#include "nps/rng.h"
#include "selection.h"
#include "task_family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DENSITY = NPS_FAMILY_DENSITY, SCOPE = NPS_FAMILY_OWN, RESCALE = NPS_FAMILY_OWN };
enum { SCOPE_TENSOR, SCOPE_MODEL };
enum { RESCALE_NO, RESCALE_L1, RESCALE_EXPECTATION };

static const char *const scope_choices[] = {"tensor", "model", NULL};
static const char *const rescale_choices[] = {"false", "true", "expectation", NULL};

/* ---- task_arithmetic ---- */

static void task_arithmetic_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                                  double *out, int64_t *kept) {
  (void)state;
  nps_family_keep_all(tensor, chunk, kept);
  nps_family_sum(tensor, chunk, NULL, out);
}

/* ---- ties: the entries of largest magnitude ---- */

static bool ties_whole_model(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    if (tensors[i].name) return tensors[i].param[SCOPE][0] == SCOPE_MODEL;
  return false;
}

static int ties_passes(const nps_merge_tensor_t *tensors, int count) {
  return nps_family_all_dense(tensors, count) ? 0 : NPS_SELECTION_PASSES(ties_whole_model(tensors, count));
}

static bool ties_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  if (tensor->param[SCOPE][0] != first->param[SCOPE][0]) {
    snprintf(why, 160, "scope must be the same for all tensors");
    return false;
  }
  if (tensor->param[SCOPE][0] == SCOPE_MODEL && tensor->models != first->models) {
    snprintf(why, 160, "with scope: model, every slice must have as many models");
    return false;
  }
  for (int m = 0; tensor->param[SCOPE][0] == SCOPE_MODEL && m < tensor->models; m++)
    if (tensor->param[DENSITY][m] != first->param[DENSITY][m]) {
      snprintf(why, 160, "with scope: model, density must be the same for all tensors");
      return false;
    }
  return true;
}

static void *ties_new(const nps_merge_spec_t *spec) { return nps_selection_new(spec->model_count); }

static void ties_free(void *state) { nps_selection_free(state); }

static size_t ties_bytes(const nps_merge_spec_t *spec) {
  return nps_selection_bytes(spec->model_count, spec->layout->count);
}

static void ties_start(void *state, const nps_merge_tensor_t *tensor) {
  const bool whole_model = tensor->param[SCOPE][0] == SCOPE_MODEL;
  const int64_t entries = whole_model ? tensor->model_elements : tensor->count;
  int64_t keep[tensor->models];
  for (int m = 0; m < tensor->models; m++) {
    keep[m] = (int64_t)floor(tensor->param[DENSITY][m] * (double)entries);
    if (keep[m] < 1) keep[m] = 1;
  }
  nps_selection_start(state, tensor, whole_model, tensor->models, keep);
}

static void ties_piece(void *state, const nps_merge_tensor_t *tensor, int pass) {
  if (state && pass == NPS_SELECTION_PASSES(true)) nps_selection_piece(state, tensor);
}

static int64_t ties_part(void *state, int pass, int64_t n, int64_t *from) {
  return nps_selection_part(state, pass, n, from);
}

static void ties_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  for (int m = 0; m < tensor->models; m++) nps_selection_scan(state, tensor, pass, m, chunk->tau[m], chunk->count);
}

static void ties_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  nps_selection_reduce(state, tensor, pass, comm);
}

static int ties_next(void *state, int pass) { return nps_selection_next(state, pass); }

static void ties_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                       int64_t *kept) {
  nps_selection_t *s = state;
  if (s)
    for (int m = 0; m < tensor->models; m++) kept[m] += nps_select_keep(s->select[m], chunk->tau[m], chunk->count);
  else
    nps_family_keep_all(tensor, chunk, kept);
  nps_family_consensus(tensor, chunk, NULL, out);
}

/* ---- dare: random entries, rescaled ---- */

/* Entries of a piece whose random choice is kept from the statistics pass for the merging pass; it is made again for those
 * that follow. */
#define REMEMBERED ((int64_t)1 << 25)

typedef struct {
  int models;
  nps_block_sums_t *all, *kept; /* [models] sums of magnitudes */
  double *scale;                /* [models] */
  uint8_t **choice;             /* [models] a bit an entry of this rank's piece, set where it stays */
  int64_t room;                 /* entries that `choice` has room for */
  int64_t first;                /* of the piece; -1: not known yet */
} dare_state_t;

static bool dare_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  for (int m = 0; tensor->param[RESCALE][0] == RESCALE_EXPECTATION && m < tensor->models; m++)
    if (tensor->param[DENSITY][m] == 0) {
      snprintf(why, 160, "rescale: expectation divides by the density, which is 0");
      return false;
    }
  return true;
}

/* L1 norms are needed only where entries are dropped and rescaled by them. A model that keeps all its entries has none. */
static int dare_passes(const nps_merge_tensor_t *tensors, int count) {
  for (int i = 0; i < count; i++)
    if (tensors[i].name && tensors[i].param[RESCALE][0] == RESCALE_L1)
      return nps_family_all_dense(tensors, count) ? 0 : 1;
  return 0;
}

static void *dare_new(const nps_merge_spec_t *spec) {
  const int models = spec->model_count;
  dare_state_t *s = nps_xcalloc(1, sizeof *s);
  s->models = models;
  s->all = nps_xcalloc((size_t)models, sizeof *s->all);
  s->kept = nps_xcalloc((size_t)models, sizeof *s->kept);
  s->scale = nps_xcalloc((size_t)models, sizeof *s->scale);
  s->choice = nps_xcalloc((size_t)models, sizeof *s->choice);
  return s;
}

static void dare_free(void *state) {
  dare_state_t *s = state;
  for (int m = 0; m < s->models; m++) {
    nps_block_sums_free(&s->all[m]);
    nps_block_sums_free(&s->kept[m]);
    free(s->choice[m]);
  }
  free(s->choice);
  free(s->all);
  free(s->kept);
  free(s->scale);
  free(s);
}

static size_t dare_bytes(const nps_merge_spec_t *spec) {
  int64_t most = 0;
  for (int t = 0; t < spec->layout->count; t++) most = nps_max64(most, spec->layout->targets[t].count);
  return (size_t)spec->model_count *
         (sizeof(nps_block_sums_t) * 2 + sizeof(double) + (size_t)nps_min64(most, REMEMBERED) / 8);
}

static void dare_start(void *state, const nps_merge_tensor_t *tensor) {
  dare_state_t *s = state;
  const int64_t wanted = nps_min64((tensor->count + 7) / 8 * 8, REMEMBERED);
  for (int m = 0; m < s->models && wanted > s->room; m++)
    s->choice[m] = nps_xrealloc(s->choice[m], (size_t)wanted / 8, 1);
  for (int m = 0; m < tensor->models; m++) {
    nps_block_sums_start(&s->all[m], tensor->count);
    nps_block_sums_start(&s->kept[m], tensor->count);
  }
  s->room = nps_max64(s->room, wanted);
  s->first = -1;
}

/* Chooses the entries of a chunk that stay: entry i of a tensor where word i of the stream (the tensor's key, model) is
 * below density × 2^32. */
static void choose(const nps_merge_tensor_t *tensor, int model, const nps_merge_chunk_t *chunk, uint8_t *stays) {
  const uint32_t limit = (uint32_t)(tensor->param[DENSITY][model] * 4294967296.0);
  nps_rng_below(tensor->key, (uint32_t)model, chunk->first, chunk->count, limit, stays);
}

/* Where the choice of a chunk is kept; NULL where it is not. */
static uint8_t *choice_of(const dare_state_t *s, int model, const nps_merge_chunk_t *chunk) {
  const int64_t at = s && s->first >= 0 ? chunk->first - s->first : REMEMBERED;
  return at + chunk->count <= (s ? s->room : 0) ? s->choice[model] + at / 8 : NULL;
}

static void dare_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  (void)pass;
  dare_state_t *s = state;
  uint8_t scratch[NPS_CHUNK / 8];
  if (s->first < 0) s->first = chunk->first;
  for (int m = 0; m < tensor->models; m++) {
    if (tensor->param[DENSITY][m] >= 1) continue;
    uint8_t *choice = choice_of(s, m, chunk), *stays = choice ? choice : scratch;
    choose(tensor, m, chunk, stays);
    nps_add_magnitudes(&s->all[m].lanes, &s->kept[m].lanes, chunk->tau[m], stays, chunk->count);
    nps_block_sums_advance(&s->all[m], chunk->first, chunk->count, chunk->piece_ends);
    nps_block_sums_advance(&s->kept[m], chunk->first, chunk->count, chunk->piece_ends);
  }
}

static void dare_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)pass;
  dare_state_t *s = state;
  for (int m = 0; m < tensor->models; m++) {
    double all = nps_block_sums_total(&s->all[m], comm), kept = nps_block_sums_total(&s->kept[m], comm);
    s->scale[m] = nps_family_l1_factor(all, kept);
  }
}

/* The factor of each model, [models]. */
static void dare_scale(const dare_state_t *s, const nps_merge_tensor_t *tensor, double *scale) {
  const int rescale = (int)tensor->param[RESCALE][0];
  for (int m = 0; m < tensor->models; m++) {
    double density = tensor->param[DENSITY][m];
    scale[m] = rescale == RESCALE_EXPECTATION ? 1 / density : rescale == RESCALE_L1 && s ? s->scale[m] : 1;
  }
}

static void dare_drop(const dare_state_t *s, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                      int64_t *kept) {
  uint8_t scratch[NPS_CHUNK / 8];
  for (int m = 0; m < tensor->models; m++) {
    if (tensor->param[DENSITY][m] >= 1) {
      kept[m] += chunk->count;
      continue;
    }
    const uint8_t *stays = choice_of(s, m, chunk);
    if (!stays) choose(tensor, m, chunk, scratch);
    kept[m] += nps_drop(chunk->tau[m], stays ? stays : scratch, chunk->count);
  }
}

static void dare_linear_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                              double *out, int64_t *kept) {
  double scale[tensor->models];
  dare_scale(state, tensor, scale);
  dare_drop(state, tensor, chunk, kept);
  nps_family_sum(tensor, chunk, scale, out);
}

static void dare_ties_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                            int64_t *kept) {
  double scale[tensor->models];
  dare_scale(state, tensor, scale);
  dare_drop(state, tensor, chunk, kept);
  nps_family_consensus(tensor, chunk, scale, out);
}

/* ---- the table entries ---- */

const nps_merge_method_t nps_method_task_arithmetic = {
    .name = "task_arithmetic",
    .summary = "base + lambda × weighted sum of the task vectors",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params = {NPS_FAMILY_PARAMS(0)},
    .param_count = 3,
    .element_seconds = 0.45e-9,
    .merge = task_arithmetic_merge,
};

const nps_merge_method_t nps_method_ties = {
    .name = "ties",
    .summary = "largest entries of the task vectors, sign elected by their sum, agreeing entries averaged",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 1,
    .params =
        {NPS_FAMILY_PARAMS(1),
         NPS_FAMILY_PARAM_DENSITY, [SCOPE] = {.name = "scope", .kind = NPS_PARAM_CHOICE, .choices = scope_choices}},
    .param_count = 5,
    .element_seconds = 1.7e-9,
    .check = ties_check,
    .passes = ties_passes,
    .whole_model = ties_whole_model,
    .state_new = ties_new,
    .state_free = ties_free,
    .state_bytes = ties_bytes,
    .start = ties_start,
    .piece = ties_piece,
    .part = ties_part,
    .scan = ties_scan,
    .reduce = ties_reduce,
    .next = ties_next,
    .merge = ties_merge,
};

#define DARE_METHOD                                                                                                    \
  .base = NPS_BASE_TASK_VECTORS, .min_models = 1,                                                                      \
  .params =                                                                                                            \
      {NPS_FAMILY_PARAMS(0), NPS_FAMILY_PARAM_DENSITY,                                                                 \
       [RESCALE] = {.name = "rescale", .kind = NPS_PARAM_CHOICE, .fallback = RESCALE_L1, .choices = rescale_choices}}, \
  .param_count = 5, .element_seconds = 1.6e-9, .check = dare_check, .passes = dare_passes, .state_new = dare_new,      \
  .state_free = dare_free, .state_bytes = dare_bytes, .start = dare_start, .scan = dare_scan, .reduce = dare_reduce

const nps_merge_method_t nps_method_dare_linear = {
    .name = "dare_linear",
    .summary = "random entries of the task vectors, rescaled, summed",
    DARE_METHOD,
    .merge = dare_linear_merge,
};

const nps_merge_method_t nps_method_dare_ties = {
    .name = "dare_ties",
    .summary = "random entries of the task vectors, rescaled, with the elected sign",
    DARE_METHOD,
    .merge = dare_ties_merge,
};
