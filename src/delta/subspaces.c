/* The subspaces of every model in a store. */
#include "radix.h"
#include "store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef void chunk_fn(void *ctx, const float *tau, int64_t n);

/* Calls a function for this rank's share of the chunks of the tensors [first, end): copies take chunks in turn. */
static void walk(const nps_store_t *store, int model, int first, int end, chunk_fn *each, void *ctx) {
  int64_t chunk = 0;
  float tau[NPS_CHUNK];
  for (int t = first; t < end; t++) {
    const int64_t count = nps_store_count(store, t);
    for (int64_t at = 0; at < count; at += NPS_CHUNK) {
      if (chunk++ % store->copies != store->copy || !nps_store_counts(store, t)) continue;
      const int64_t n = nps_min64(count - at, NPS_CHUNK);
      nps_store_tau(store, model, t, at, n, tau);
      each(ctx, tau, n);
    }
  }
}

typedef struct {
  nps_partition_t *partition;
  int pass;
} counting_t;

static void count_chunk(void *ctx, const float *tau, int64_t n) {
  const counting_t *c = ctx;
  nps_partition_count(c->partition, c->pass, tau, n);
}

/* Finds the thresholds of the tensors [first, end) of a model together. */
static void split(nps_subspaces_t *s, nps_partition_t *p, const nps_comm_t *comm, int model, int first, int end,
                  float *thresholds) {
  int64_t entries = 0;
  for (int t = first; t < end; t++) entries += nps_store_count(s->store, t);
  nps_partition_start(p, entries);
  for (int pass = 0; pass < 2; pass++) {
    walk(s->store, model, first, end, count_chunk, &(counting_t){p, pass});
    nps_partition_reduce(p, pass, comm);
  }
  if (s->subspaces > 1)
    memcpy(thresholds, nps_partition_thresholds(p), (size_t)(s->subspaces - 1) * sizeof *thresholds);
}

typedef struct {
  const float *thresholds;
  int subspaces;
  int64_t *counts;
} below_t;

static void count_subspaces(void *ctx, const float *tau, int64_t n) {
  const below_t *b = ctx;
  nps_subspace_count(b->thresholds, b->subspaces, tau, NULL, n, b->counts);
}

/* Entries below each threshold: another look at the data, as a threshold may lie amid equal ones. */
static void count_below(nps_subspaces_t *s, const nps_comm_t *comm, int model) {
  int64_t *counts = s->below + (int64_t)model * s->subspaces, before = 0;
  below_t b = {nps_subspaces_thresholds(s, model, 0), s->subspaces, counts};
  walk(s->store, model, 0, nps_store_tensors(s->store), count_subspaces, &b);
  if (nps_comm_size(comm) > 1) nps_comm_sum_i64(comm, counts, s->subspaces);
  for (int m = 0; m < s->subspaces; m++) {
    const int64_t own = counts[m];
    counts[m] = before;
    before += own;
  }
}

static void keep_histogram(nps_subspaces_t *s, const nps_partition_t *p, int model) {
  const int64_t *histogram = nps_partition_histogram(p);
  int64_t *cumulative = s->cumulative + (int64_t)model * (NPS_HIGH_BINS + 1);
  for (int i = 0; i < NPS_HIGH_BINS; i++) cumulative[i + 1] = cumulative[i] + histogram[i];
}

nps_err_t nps_subspaces_new(const nps_comm_t *comm, const nps_store_t *store, int subspaces, nps_scope_t scope,
                            nps_subspaces_t **out) {
  const int models = nps_store_models(store), tensors = nps_store_tensors(store);
  nps_subspaces_t *s = nps_xcalloc(1, sizeof *s);
  nps_partition_t *p = nps_partition_new(subspaces);
  s->store = store;
  s->subspaces = subspaces;
  s->scope = scope;
  s->rows = scope == NPS_SCOPE_TENSOR ? tensors : 1;
  s->thresholds = nps_xcalloc((size_t)models * (size_t)s->rows, (size_t)subspaces * sizeof *s->thresholds);
  if (scope == NPS_SCOPE_MODEL) {
    s->below = nps_xcalloc((size_t)models * (size_t)subspaces, sizeof *s->below);
    s->cumulative = nps_xcalloc((size_t)models, (NPS_HIGH_BINS + 1) * sizeof *s->cumulative);
  }
  for (int model = 0; model < models; model++) {
    for (int row = 0; row < s->rows; row++)
      split(s, p, comm, model, scope == NPS_SCOPE_TENSOR ? row : 0, scope == NPS_SCOPE_TENSOR ? row + 1 : tensors,
            s->thresholds + ((int64_t)model * s->rows + row) * (subspaces - 1));
    if (scope == NPS_SCOPE_TENSOR) continue;
    keep_histogram(s, p, model);
    count_below(s, comm, model);
  }
  nps_partition_free(p);
  *out = s;
  return NPS_OK;
}

void nps_subspaces_free(nps_subspaces_t *s) {
  if (!s) return;
  free(s->thresholds);
  free(s->below);
  free(s->cumulative);
  free(s);
}

const float *nps_subspaces_thresholds(const nps_subspaces_t *s, int model, int tensor) {
  const int row = s->scope == NPS_SCOPE_TENSOR ? tensor : 0;
  return s->thresholds + ((int64_t)model * s->rows + row) * (s->subspaces - 1);
}
