/* pdgesvd: the last resort. */
#include "grid_internal.h"

#include <stdlib.h>
#include <string.h>

/* The first rows of all, without a copy where that is all of them. */
static nps_err_t keep_leading(int64_t count, nps_dmat_t *all, nps_dmat_t *out) {
  if (count == all->rows) {
    *out = *all;
    all->local = NULL;
    return NPS_OK;
  }
  NPS_TRY(nps_dmat_new(all->grid, count, all->columns, out));
  nps_dmat_copy(all, 0, 0, count, all->columns, out, 0, 0);
  return NPS_OK;
}

nps_err_t nps_svd_grid_lapack(nps_dtriples_t *t) {
  const nps_dmat_t *a = t->a;
  nps_dmat_t u = {0}, v = {0};
  double *sigma = nps_xcalloc((size_t)t->n, sizeof *sigma);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(a->grid, t->n, a->rows, &u));
  NPS_GOTO(nps_dmat_new(a->grid, t->n, a->columns, &v));
  NPS_GOTO(nps_dmat_triples(a, sigma, &u, &v));
  memcpy(t->sigma, sigma, (size_t)t->count * sizeof *sigma);
  NPS_GOTO(keep_leading(t->count, t->turned ? &v : &u, &t->left));
  NPS_GOTO(keep_leading(t->count, t->turned ? &u : &v, &t->right));
done:
  nps_dmat_free(&u);
  nps_dmat_free(&v);
  free(sigma);
  return err;
}
