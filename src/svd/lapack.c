/* dgesdd: the most accurate, and the slowest. */
#include "svd_internal.h"

#include "nps/blas.h"

#include <stdlib.h>
#include <string.h>

static void take(const nps_triples_t *t, const double *sigma, const double *u, const double *v) {
  memcpy(t->sigma, sigma, (size_t)t->count * sizeof *sigma);
  memcpy(t->right, v, (size_t)(t->count * t->m) * sizeof *v);
  for (int64_t k = 0; k < t->count; k++)
    for (int64_t i = 0; i < t->n; i++) t->left[k * t->n + i] = u[i * t->n + k];
}

nps_err_t nps_svd_lapack(const double *a, nps_triples_t *t) {
  const size_t elements = (size_t)(t->n * t->m) * sizeof(double);
  double *copy = NULL, *u = NULL, *v = NULL, *sigma = nps_xcalloc((size_t)t->n, sizeof *sigma);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc(elements, "a matrix", &copy));
  NPS_GOTO(nps_buffer_alloc(elements, "singular vectors", &v));
  NPS_GOTO(nps_buffer_alloc((size_t)(t->n * t->n) * sizeof *u, "singular vectors", &u));
  memcpy(copy, a, elements);
  NPS_GOTO(nps_dgesdd(t->n, t->m, copy, sigma, u, v));
  take(t, sigma, u, v);
done:
  free(copy);
  free(u);
  free(v);
  free(sigma);
  return err;
}
