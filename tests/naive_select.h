/** @file naive_select.h
 *  The selection of the largest magnitudes by its definition: sorting. */
#ifndef NPS_NAIVE_SELECT_H
#define NPS_NAIVE_SELECT_H

#include "nps/base.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
  float magnitude;
  int64_t index;
} entry_t;

static inline int by_magnitude_then_index(const void *a, const void *b) {
  const entry_t *x = a, *y = b;
  if (x->magnitude != y->magnitude) return x->magnitude > y->magnitude ? -1 : 1;
  return x->index < y->index ? -1 : 1;
}

/** Set to zero all but the k that come first. */
static inline void keep_slowly(float *x, int64_t n, int64_t k) {
  entry_t *entries = nps_xcalloc((size_t)n, sizeof *entries);
  for (int64_t i = 0; i < n; i++) entries[i] = (entry_t){fabsf(x[i]), i};
  qsort(entries, (size_t)n, sizeof *entries, by_magnitude_then_index);
  for (int64_t i = k; i < n; i++) x[entries[i].index] = 0;
  free(entries);
}

#endif
