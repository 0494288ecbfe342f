/* Eigenvectors of Gram matrices. */
#include "dmat_internal.h"
#include "nps/blas.h"
#include "scalapack.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const int one = 1;

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* ---- one rank ---- */

static void reverse_rows(const nps_dmat_t *m, double *values) {
  const int64_t n = m->columns, count = m->rows;
  for (int64_t i = 0; i < count / 2; i++) {
    double *a = m->local + i * n, *b = m->local + (count - 1 - i) * n, keep = values[i];
    values[i] = values[count - 1 - i];
    values[count - 1 - i] = keep;
    for (int64_t j = 0; j < n; j++) {
      keep = a[j];
      a[j] = b[j];
      b[j] = keep;
    }
  }
}

static nps_err_t solve_here(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors) {
  const int64_t n = vectors->columns, count = vectors->rows;
  double *g = NULL, *all = nps_xcalloc((size_t)n + 1, sizeof *all);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(n * n) * sizeof *g, "a Gram matrix", &g));
  nps_dgemm(by_columns, !by_columns, n, n, by_columns ? a->rows : a->columns, 1, a->local, a->columns, a->local,
            a->columns, 0, g, n);
  NPS_GOTO(nps_dsyevr_largest(n, count, g, all, vectors->local));
  memcpy(values, all, (size_t)count * sizeof *values);
  reverse_rows(vectors, values);
done:
  free(g);
  free(all);
  return err;
}

/* ---- several ranks ---- */

/* One triangle of −A·Aᵀ (−Aᵀ·A): eigenvalues come in ascending order, which for it is from the largest down. */
static void negative_gram(const nps_dmat_t *a, bool by_columns, nps_dmat_t *g) {
  int of_a[9], of_g[9];
  const int n = (int)g->rows, k = (int)(by_columns ? a->rows : a->columns);
  const double minus = -1, zero = 0;
  nps_dmat_describe(a, of_a);
  nps_dmat_describe(g, of_g);
  pdsyrk_("L", by_columns ? "N" : "T", &n, &k, &minus, a->local, &one, &one, of_a, &zero, g->local, &one, &one, of_g);
}

typedef struct {
  double *work;
  int *iwork, lwork, liwork;
} room_t;

static nps_err_t make_room(const nps_grid_t *grid, int64_t work, int64_t iwork, room_t *room) {
  nps_err_t err = NPS_OK;
  if (work > INT_MAX || iwork > INT_MAX)
    NPS_GOTO(nps_fail(NPS_ERR_RUNTIME, "ScaLAPACK cannot count its working memory on %d ranks: more are needed",
                      grid->ranks));
  room->lwork = (int)work;
  room->liwork = (int)iwork;
  NPS_GOTO(nps_buffer_alloc((size_t)work * sizeof(double), "ScaLAPACK", &room->work));
  NPS_GOTO(nps_buffer_alloc((size_t)iwork * sizeof(int), "ScaLAPACK", &room->iwork));
done:
  return nps_grid_agree(grid, err);
}

static void free_room(room_t *room) {
  free(room->work);
  free(room->iwork);
}

static nps_err_t check_info(const nps_grid_t *grid, const char *routine, int64_t n, int info) {
  nps_err_t err = NPS_OK;
  if (info != 0)
    err = nps_fail(NPS_ERR_RUNTIME, "%s failed on a matrix of order %lld (%d)", routine, (long long)n, info);
  return nps_grid_agree(grid, err);
}

/* What pdsyevd asks for is too little where a rank has few blocks; this is enough. */
static int64_t all_work(const nps_dmat_t *g, double query) {
  const int64_t n = g->rows, nb = g->grid->block, np = g->local_columns, nq = g->local_rows;
  const int64_t needed = max64(6 * n + 2 * np * nq, max64((np + nq + 2 * nb) * nb + nb * nb, n + np * (nb + nq)));
  return max64((int64_t)query + 1, 3 * n + needed);
}

static nps_err_t solve_all(nps_dmat_t *g, double *values, nps_dmat_t *vectors) {
  int of_g[9], of_z[9], info = 0, integers = 0;
  const int n = (int)g->rows, query = -1;
  double best = 0;
  room_t room = {0};
  nps_dmat_describe(g, of_g);
  nps_dmat_describe(vectors, of_z);
  pdsyevd_("V", "L", &n, g->local, &one, &one, of_g, values, vectors->local, &one, &one, of_z, &best, &query, &integers,
           &query, &info);
  nps_err_t err =
      make_room(g->grid, all_work(g, best), max64(integers, 7 * (int64_t)n + 8 * g->grid->ranks + 2), &room);
  if (err == NPS_OK) {
    pdsyevd_("V", "L", &n, g->local, &one, &one, of_g, values, vectors->local, &one, &one, of_z, room.work, &room.lwork,
             room.iwork, &room.liwork, &info);
    err = check_info(g->grid, "pdsyevd", n, info);
  }
  free_room(&room);
  return err;
}

/* pdsyevr takes the vectors' matrix as square; it touches the columns that it finds vectors for. */
static nps_err_t solve_some(nps_dmat_t *g, double *values, nps_dmat_t *vectors) {
  int of_g[9], info = 0, integers = 0, found = 0, made = 0;
  const int n = (int)g->rows, last = (int)vectors->rows, query = -1;
  const double unused = 0;
  double best[3] = {0};
  room_t room = {0};
  nps_dmat_describe(g, of_g);
  pdsyevr_("V", "I", "L", &n, g->local, &one, &one, of_g, &unused, &unused, &one, &last, &found, &made, values,
           vectors->local, &one, &one, of_g, best, &query, &integers, &query, &info);
  nps_err_t err = make_room(g->grid, (int64_t)best[0] + 1, max64(1, integers), &room);
  if (err == NPS_OK) {
    pdsyevr_("V", "I", "L", &n, g->local, &one, &one, of_g, &unused, &unused, &one, &last, &found, &made, values,
             vectors->local, &one, &one, of_g, room.work, &room.lwork, room.iwork, &room.liwork, &info);
    err = check_info(g->grid, "pdsyevr", n, info == 0 && made != last ? 1 : info);
  }
  free_room(&room);
  return err;
}

/* pdsyevd leaves the values on one rank where the matrix is a single block. */
static nps_err_t solve_there(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors) {
  const nps_grid_t *grid = a->grid;
  const int64_t n = vectors->columns, count = vectors->rows;
  double *all = nps_xcalloc((size_t)n + 1, sizeof *all);
  nps_dmat_t g = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(grid, n, n, &g));
  negative_gram(a, by_columns, &g);
  if (count == n && n > grid->block)
    NPS_GOTO(solve_all(&g, all, vectors));
  else
    NPS_GOTO(solve_some(&g, all, vectors));
  for (int64_t k = 0; k < count; k++) values[k] = -all[k];
  nps_comm_bcast(grid->comm, values, (size_t)count * sizeof *values);
done:
  nps_dmat_free(&g);
  free(all);
  return err;
}

nps_err_t nps_dmat_gram_vectors(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors) {
  if (vectors->rows == 0) return NPS_OK;
  return a->grid->ranks > 1 ? solve_there(a, by_columns, values, vectors) : solve_here(a, by_columns, values, vectors);
}
