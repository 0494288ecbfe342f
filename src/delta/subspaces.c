/* The subspaces of every model in a store. */
#include "radix.h"
#include "store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Counts this rank's share of a tensor's chunks. @param chunk  number of chunks seen so far, by all ranks */
static void count_share(nps_partition_t *p, int pass, const nps_store_t *store, int model, int tensor,
                        const nps_comm_t *comm, int64_t *chunk) {
  const int rank = nps_comm_rank(comm), size = nps_comm_size(comm);
  const int64_t count = nps_store_count(store, tensor);
  float tau[NPS_CHUNK];
  for (int64_t first = 0; first < count; first += NPS_CHUNK) {
    if ((*chunk)++ % size != rank) continue;
    const int64_t n = count - first < NPS_CHUNK ? count - first : NPS_CHUNK;
    nps_store_tau(store, model, tensor, first, n, tau);
    nps_partition_count(p, pass, tau, n);
  }
}

/* Finds the thresholds of the tensors [first, end) of a model together. */
static void split(nps_subspaces_t *s, nps_partition_t *p, const nps_comm_t *comm, int model, int first, int end,
                  float *thresholds) {
  int64_t entries = 0;
  for (int t = first; t < end; t++) entries += nps_store_count(s->store, t);
  nps_partition_start(p, entries);
  for (int pass = 0; pass < 2; pass++) {
    int64_t chunk = 0;
    for (int t = first; t < end; t++) count_share(p, pass, s->store, model, t, comm, &chunk);
    nps_partition_reduce(p, pass, comm);
  }
  if (s->subspaces > 1)
    memcpy(thresholds, nps_partition_thresholds(p), (size_t)(s->subspaces - 1) * sizeof *thresholds);
}

/* Entries below each threshold: another look at the data, as a threshold may lie amid equal ones. */
static void count_below(nps_subspaces_t *s, const nps_comm_t *comm, int model) {
  const float *thresholds = nps_subspaces_thresholds(s, model, 0);
  const int rank = nps_comm_rank(comm), size = nps_comm_size(comm);
  int64_t *counts = s->below + (int64_t)model * s->subspaces, chunk = 0, before = 0;
  float tau[NPS_CHUNK];
  for (int t = 0; t < nps_store_tensors(s->store); t++)
    for (int64_t first = 0; first < nps_store_count(s->store, t); first += NPS_CHUNK) {
      if (chunk++ % size != rank) continue;
      const int64_t left = nps_store_count(s->store, t) - first, n = left < NPS_CHUNK ? left : NPS_CHUNK;
      nps_store_tau(s->store, model, t, first, n, tau);
      nps_subspace_count(thresholds, s->subspaces, tau, NULL, n, counts);
    }
  if (size > 1) nps_comm_sum_i64(comm, counts, s->subspaces);
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
