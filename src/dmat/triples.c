/* Singular triples by pdgesvd: slow, and the most accurate. */
#include "dmat_internal.h"
#include "nps/blas.h"
#include "scalapack.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const int one = 1;

/* a [rows][columns] destroyed; columns of u [rows][r], rows of v. To ScaLAPACK they are right and left ones. */
static void decompose(nps_dmat_t *a, double *sigma, nps_dmat_t *u, nps_dmat_t *v, double *work, int lwork, int *info) {
  int of_a[9], of_u[9], of_v[9];
  const int m = (int)a->columns, n = (int)a->rows;
  nps_dmat_describe(a, of_a);
  nps_dmat_describe(u, of_u);
  nps_dmat_describe(v, of_v);
  pdgesvd_("V", "V", &m, &n, a->local, &one, &one, of_a, sigma, v->local, &one, &one, of_v, u->local, &one, &one, of_u,
           work, &lwork, info);
}

static nps_err_t decompose_there(nps_dmat_t *a, double *sigma, nps_dmat_t *u, nps_dmat_t *v) {
  const nps_grid_t *grid = a->grid;
  double best = 0, *work = NULL;
  int info = 0;
  nps_err_t err = NPS_OK;
  decompose(a, sigma, u, v, &best, -1, &info);
  const int64_t room = (int64_t)best + 1;
  if (room > INT_MAX)
    err = nps_fail(NPS_ERR_RUNTIME, "ScaLAPACK cannot count its working memory on %d ranks: more are needed",
                   grid->ranks);
  else
    err = nps_buffer_alloc((size_t)room * sizeof *work, "ScaLAPACK", &work);
  err = nps_grid_agree(grid, err);
  if (err == NPS_OK) {
    decompose(a, sigma, u, v, work, (int)room, &info);
    if (info != 0)
      err = nps_fail(NPS_ERR_RUNTIME, "pdgesvd failed on a matrix of %lld × %lld (%d)", (long long)a->rows,
                     (long long)a->columns, info);
    err = nps_grid_agree(grid, err);
  }
  free(work);
  return err;
}

/* to ← fromᵀ */
static void transpose(const nps_dmat_t *from, nps_dmat_t *to) {
  if (from->grid->ranks == 1) {
    for (int64_t i = 0; i < to->rows; i++)
      for (int64_t j = 0; j < to->columns; j++) to->local[i * to->columns + j] = from->local[j * from->columns + i];
    return;
  }
  int of_from[9], of_to[9];
  const int m = (int)to->columns, n = (int)to->rows;
  const double unit = 1, zero = 0;
  nps_dmat_describe(from, of_from);
  nps_dmat_describe(to, of_to);
  pdtran_(&m, &n, &unit, from->local, &one, &one, of_from, &zero, to->local, &one, &one, of_to);
}

nps_err_t nps_dmat_triples(const nps_dmat_t *a, double *sigma, nps_dmat_t *u, nps_dmat_t *v) {
  nps_dmat_t copy = {0}, columns = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(a->grid, a->rows, a->columns, &copy));
  NPS_GOTO(nps_dmat_new(a->grid, a->rows, u->rows, &columns));
  nps_dmat_copy(a, 0, 0, a->rows, a->columns, &copy, 0, 0);
  if (a->grid->ranks > 1)
    NPS_GOTO(decompose_there(&copy, sigma, &columns, v));
  else
    NPS_GOTO(nps_dgesdd(a->rows, a->columns, copy.local, sigma, columns.local, v->local));
  transpose(&columns, u);
  if (a->grid->ranks > 1) nps_comm_bcast(a->grid->comm, sigma, (size_t)u->rows * sizeof *sigma);
done:
  nps_dmat_free(&copy);
  nps_dmat_free(&columns);
  return err;
}
