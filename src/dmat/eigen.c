/* Eigenvectors of Gram matrices. */
#include "dmat_internal.h"
#include "nps/blas.h"
#include "scalapack.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const int one = 1;

/* ---- a Gram matrix on one rank ---- */

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

/* Of the rank that has all of g. */
static nps_err_t solve_here(const nps_dmat_t *g, double *values, nps_dmat_t *vectors) {
  double *all = nps_xcalloc((size_t)g->rows + 1, sizeof *all);
  const nps_err_t err = nps_dsyevr_largest(g->rows, vectors->rows, g->local, all, vectors->local);
  if (err == NPS_OK) {
    memcpy(values, all, (size_t)vectors->rows * sizeof *values);
    reverse_rows(vectors, values);
  }
  free(all);
  return err;
}

static nps_err_t solve_block(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors) {
  const nps_grid_t *grid = a->grid;
  nps_dmat_t g = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(grid, vectors->columns, vectors->columns, &g));
  nps_dmat_gemm(by_columns, !by_columns, 1, a, a, 0, &g);
  if (g.local_rows > 0 && g.local_columns > 0) err = solve_here(&g, values, vectors);
  NPS_GOTO(nps_grid_agree(grid, err));
  if (grid->ranks > 1) nps_comm_bcast(grid->comm, values, (size_t)vectors->rows * sizeof *values);
done:
  nps_dmat_free(&g);
  return err;
}

/* ---- on several ranks ---- */

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

/* A symmetric matrix on its way through ScaLAPACK's steps, as pdsyevd takes them; that routine holds the reflectors square while
 * it needs most memory, and asks for too little where a rank has few blocks. */
typedef struct {
  nps_dmat_t *g;
  int of_g[9], n;
  double *d, *e, *tau; /* [n] each: the tridiagonal matrix, factors of the reflectors */
  int64_t packed;      /* elements of g.local while it is packed */
} tridiagonal_t;

static nps_err_t reduce(tridiagonal_t *t, double *d, double *e) {
  int info = 0, query = -1;
  double best = 0;
  room_t room = {0};
  pdsytrd_("L", &t->n, t->g->local, &one, &one, t->of_g, d, e, t->tau, &best, &query, &info);
  NPS_TRY(make_room(t->g->grid, (int64_t)best + 1, 1, &room));
  pdsytrd_("L", &t->n, t->g->local, &one, &one, t->of_g, d, e, t->tau, room.work, &room.lwork, &info);
  free_room(&room);
  return check_info(t->g->grid, "pdsytrd", t->n, info);
}

/* Numbers [local_rows] of this rank's rows → [n] on every rank. */
static void share_rows(const nps_dmat_t *g, const double *local, double *all) {
  for (int64_t i = 0; i < g->local_rows && g->grid->column == 0; i++) all[nps_dmat_row(g, i)] = local[i];
  nps_comm_sum_f64(g->grid->comm, all, g->rows);
}

/* The part of a local row that reflectors lie in: from its diagonal on. */
static int64_t first_kept(const nps_dmat_t *g, int64_t i) {
  return nps_cyclic_count(nps_dmat_row(g, i), g->grid->block, g->grid->column, g->grid->column_ranks);
}

/* Lets go of the half of g that holds nothing. */
static void pack(tridiagonal_t *t) {
  nps_dmat_t *g = t->g;
  for (int64_t i = 0; i < g->local_rows; i++) {
    const int64_t first = first_kept(g, i), n = g->local_columns - first;
    memmove(g->local + t->packed, g->local + i * g->local_columns + first, (size_t)n * sizeof *g->local);
    t->packed += n;
  }
  double *less = realloc(g->local, (size_t)(t->packed + 1) * sizeof *less);
  if (less) g->local = less;
}

static nps_err_t unpack(tridiagonal_t *t) {
  nps_dmat_t *g = t->g;
  double *more = realloc(g->local, (size_t)(g->local_rows * g->local_columns + 1) * sizeof *more);
  if (more) g->local = more;
  NPS_TRY(nps_grid_agree(g->grid, more ? NPS_OK : nps_fail(NPS_ERR_MEMORY, "out of memory: a matrix")));
  for (int64_t i = g->local_rows - 1; i >= 0; i--) {
    const int64_t first = first_kept(g, i), n = g->local_columns - first;
    t->packed -= n;
    memmove(g->local + i * g->local_columns + first, g->local + t->packed, (size_t)n * sizeof *g->local);
  }
  return NPS_OK;
}

/* Eigenvectors of the tridiagonal matrix; ascending values are left in d. */
static nps_err_t divide_and_conquer(tridiagonal_t *t, nps_dmat_t *vectors) {
  const nps_grid_t *grid = vectors->grid;
  const int64_t n = t->n, nb = grid->block, np = vectors->local_columns, nq = vectors->local_rows;
  const int64_t needed =
      nps_max64(6 * n + 2 * np * nq, nps_max64((np + nq + 2 * nb) * nb + nb * nb, n + np * (nb + nq)));
  int info = 0;
  room_t room = {0};
  nps_err_t err = make_room(grid, needed + 3 * n, 2 + 7 * n + 8 * grid->ranks, &room);
  nps_dmat_clear(vectors);
  for (int64_t i = 0; i < nq; i++)
    for (int64_t j = 0; j < np; j++)
      if (nps_dmat_row(vectors, i) == nps_dmat_column(vectors, j)) vectors->local[i * np + j] = 1;
  if (err == NPS_OK) {
    pdstedc_("I", &t->n, t->d, t->e, vectors->local, &one, &one, t->of_g, room.work, &room.lwork, room.iwork,
             &room.liwork, &info);
    err = check_info(grid, "pdstedc", n, info);
  }
  free_room(&room);
  return err;
}

static nps_err_t apply_reflectors(const tridiagonal_t *t, nps_dmat_t *vectors) {
  int info = 0, query = -1;
  double best = 0;
  room_t room = {0};
  pdormtr_("L", "L", "N", &t->n, &t->n, t->g->local, &one, &one, t->of_g, t->tau, vectors->local, &one, &one, t->of_g,
           &best, &query, &info);
  NPS_TRY(make_room(vectors->grid, (int64_t)best + 1, 1, &room));
  pdormtr_("L", "L", "N", &t->n, &t->n, t->g->local, &one, &one, t->of_g, t->tau, vectors->local, &one, &one, t->of_g,
           room.work, &room.lwork, &info);
  free_room(&room);
  return check_info(vectors->grid, "pdormtr", t->n, info);
}

static nps_err_t solve_all(nps_dmat_t *g, double *values, nps_dmat_t *vectors) {
  double *parts = nps_xcalloc(4 * (size_t)g->rows, sizeof *parts), *local = parts + 2 * g->rows;
  tridiagonal_t t = {.g = g, .n = (int)g->rows, .d = values, .e = parts, .tau = parts + g->rows};
  nps_err_t err = NPS_OK;
  nps_dmat_describe(g, t.of_g);
  NPS_GOTO(reduce(&t, local, local + g->rows));
  share_rows(g, local, t.d);
  share_rows(g, local + g->rows, t.e);
  pack(&t);
  NPS_GOTO(divide_and_conquer(&t, vectors));
  NPS_GOTO(unpack(&t));
  NPS_GOTO(apply_reflectors(&t, vectors));
done:
  free(parts);
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
  nps_err_t err = make_room(g->grid, (int64_t)best[0] + 1, nps_max64(1, integers), &room);
  if (err == NPS_OK) {
    pdsyevr_("V", "I", "L", &n, g->local, &one, &one, of_g, &unused, &unused, &one, &last, &found, &made, values,
             vectors->local, &one, &one, of_g, room.work, &room.lwork, room.iwork, &room.liwork, &info);
    err = check_info(g->grid, "pdsyevr", n, info == 0 && made != last ? 1 : info);
  }
  free_room(&room);
  return err;
}

/* Every rank gets the values of one rank: pdsyevr's may differ in rounding. */
static nps_err_t solve_there(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors) {
  const nps_grid_t *grid = a->grid;
  const int64_t n = vectors->columns, count = vectors->rows;
  double *all = nps_xcalloc((size_t)n + 1, sizeof *all);
  nps_dmat_t g = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(grid, n, n, &g));
  negative_gram(a, by_columns, &g);
  if (count == n)
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
  const bool whole = a->grid->ranks == 1 || vectors->columns <= a->grid->block;
  if (vectors->rows == 0) return NPS_OK;
  return whole ? solve_block(a, by_columns, values, vectors) : solve_there(a, by_columns, values, vectors);
}
