/* breadcrumbs, breadcrumbs_ties: task vectors without their smallest entries and without the largest, the outliers (Model
 * Breadcrumbs: Davari and Belilovsky, ECCV 2024, arXiv 2312.06795). Two exact selections a model. */
#include "selection.h"
#include "task_family.h"

#include <math.h>

enum { DENSITY = NPS_FAMILY_DENSITY, GAMMA = NPS_FAMILY_OWN };

/* Of the entries of a tensor, by falling magnitude: `above` are dropped as too large, then some are kept, then `below` are
 * dropped as too small. */
typedef struct {
  int64_t above, below;
} band_t;

static band_t band_of(const nps_merge_tensor_t *tensor, int model) {
  const double n = (double)tensor->count, density = tensor->param[DENSITY][model];
  if (density >= 1) return (band_t){0};
  const int64_t kept = (int64_t)floor(density * n), top = (int64_t)floor(tensor->param[GAMMA][model] * n);
  const int64_t below = nps_max64(0, tensor->count - kept - top);
  return (band_t){.above = tensor->count - kept - below, .below = below};
}

static int breadcrumbs_passes(const nps_merge_tensor_t *tensors, int count) {
  return nps_family_all_dense(tensors, count) ? 0 : NPS_SELECTION_PASSES(false);
}

/* The selections of a model: those that are not too small, and those that are too large. */
static int not_small(int model) { return 2 * model; }

static int too_large(int model) { return 2 * model + 1; }

static void *breadcrumbs_new(const nps_merge_spec_t *spec) { return nps_selection_new(2 * spec->model_count); }

static void breadcrumbs_free(void *state) { nps_selection_free(state); }

static size_t breadcrumbs_bytes(const nps_merge_spec_t *spec) { return nps_selection_bytes(2 * spec->model_count, 0); }

static void breadcrumbs_start(void *state, const nps_merge_tensor_t *tensor) {
  int64_t keep[2 * tensor->models];
  for (int m = 0; m < tensor->models; m++) {
    const band_t band = band_of(tensor, m);
    keep[not_small(m)] = band.below > 0 ? tensor->count - band.below : 0;
    keep[too_large(m)] = band.above;
  }
  nps_selection_start(state, tensor, false, 2 * tensor->models, keep);
}

static int64_t breadcrumbs_part(void *state, int pass, int64_t n, int64_t *from) {
  return nps_selection_part(state, pass, n, from);
}

static void breadcrumbs_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  for (int m = 0; m < tensor->models; m++) {
    nps_selection_scan(state, tensor, pass, not_small(m), chunk->tau[m], chunk->count);
    nps_selection_scan(state, tensor, pass, too_large(m), chunk->tau[m], chunk->count);
  }
}

static void breadcrumbs_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  nps_selection_reduce(state, tensor, pass, comm);
}

static int breadcrumbs_next(void *state, int pass) { return nps_selection_next(state, pass); }

NPS_VECTOR_CLONES
static void drop(const float *restrict large, int64_t n, float *restrict x) {
  for (int64_t i = 0; i < n; i++) x[i] = large[i] != 0 ? 0.0f : x[i];
}

/* Sets to zero what is not kept of a chunk of one model. @return how many entries are kept */
static int64_t sparsify(nps_selection_t *s, const nps_merge_tensor_t *tensor, int model, float *x, int64_t n) {
  const band_t band = band_of(tensor, model);
  float large[NPS_CHUNK];
  int64_t kept = n;
  if (band.above > 0) kept -= nps_select_mark(s->select[too_large(model)], x, n, large);
  if (band.below > 0) kept -= n - nps_select_keep(s->select[not_small(model)], x, n);
  if (band.above > 0) drop(large, n, x);
  return kept;
}

static void breadcrumbs_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                              double *out, int64_t *kept) {
  for (int m = 0; m < tensor->models; m++) kept[m] += sparsify(state, tensor, m, chunk->tau[m], chunk->count);
  nps_family_sum(tensor, chunk, NULL, out);
}

static void breadcrumbs_ties_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk,
                                   double *out, int64_t *kept) {
  for (int m = 0; m < tensor->models; m++) kept[m] += sparsify(state, tensor, m, chunk->tau[m], chunk->count);
  nps_family_consensus(tensor, chunk, NULL, out);
}

#define BREADCRUMBS_METHOD                                                                                             \
  .base = NPS_BASE_TASK_VECTORS, .min_models = 1,                                                                      \
  .params = {NPS_FAMILY_PARAMS(0), NPS_FAMILY_PARAM_DENSITY,                                                           \
             [GAMMA] = {.name = "gamma", .per_model = true, .fallback = 0.01, .least = 0, .most = 1}},                 \
  .param_count = 5, .element_seconds = 3e-9, .passes = breadcrumbs_passes, .state_new = breadcrumbs_new,               \
  .state_free = breadcrumbs_free, .state_bytes = breadcrumbs_bytes, .start = breadcrumbs_start,                        \
  .part = breadcrumbs_part, .scan = breadcrumbs_scan, .reduce = breadcrumbs_reduce, .next = breadcrumbs_next

const nps_merge_method_t nps_method_breadcrumbs = {
    .name = "breadcrumbs",
    .summary = "task vectors without their smallest and their largest entries, summed",
    BREADCRUMBS_METHOD,
    .merge = breadcrumbs_merge,
};

const nps_merge_method_t nps_method_breadcrumbs_ties = {
    .name = "breadcrumbs_ties",
    .summary = "task vectors without their smallest and their largest entries, with the elected sign",
    BREADCRUMBS_METHOD,
    .merge = breadcrumbs_ties_merge,
};
