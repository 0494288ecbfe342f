/** @file grids.h
 *  Grids of every shape for tests, and matrices on them: after nps_check_mpi.h. */
#ifndef NPS_TEST_GRIDS_H
#define NPS_TEST_GRIDS_H

#include "nps/dmat.h"
#include "nps_check_mpi.h"

#include <math.h>

enum { MOST_GRIDS = 8 };

static nps_grid_t *grids[MOST_GRIDS]; /* each rank's: all of one index are made together */
static int grid_count;
static nps_comm_t *part; /* with 4 ranks: the first three, and the last alone */

/** All shapes of all ranks; with 4 ranks also those of three, beside one alone. */
static inline void make_grids(int block) {
  for (int rows = 1; rows <= size; rows++)
    if (size % rows == 0) grids[grid_count++] = nps_grid_new_shaped(comm, rows, block);
  if (size < 4) return;
  nps_comm_split(comm, rank / 3, &part);
  grids[grid_count++] = nps_grid_new_shaped(part, 1, block);
  grids[grid_count++] = nps_grid_new_shaped(part, nps_comm_size(part), block);
}

static inline void free_grids(void) {
  for (int i = 0; i < grid_count; i++) nps_grid_free(grids[i]);
  nps_comm_free(part);
}

/** Random numbers around 0, the same on every rank. */
static inline double *random_values(int64_t n, uint64_t seed) {
  double *x = nps_xcalloc((size_t)n + 1, sizeof *x);
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int k = 0; k < 4; k++) sum += (double)next_random(&seed) / 2147483648.0 - 0.5;
    x[i] = sum;
  }
  return x;
}

/** Make a matrix on a grid from values [rows][columns] that every rank has. */
static inline nps_dmat_t spread(const nps_grid_t *grid, int64_t rows, int64_t columns, const double *values) {
  nps_dmat_t m;
  ck_assert(everywhere(nps_dmat_new(grid, rows, columns, &m) == NPS_OK));
  for (int64_t i = 0; i < m.local_rows; i++)
    for (int64_t j = 0; j < m.local_columns; j++)
      m.local[i * m.local_columns + j] = values ? values[nps_dmat_row(&m, i) * columns + nps_dmat_column(&m, j)] : NAN;
  return m;
}

/** Give the whole matrix to every rank. */
static inline double *collect(const nps_dmat_t *m) {
  double *all = nps_xcalloc((size_t)(m->rows * m->columns) + 1, sizeof *all);
  ck_assert(everywhere(nps_dmat_get_rows(m, sizeof *all, 0, m->rows, all, m->local) == NPS_OK));
  return all;
}

/** c ← alpha·op(a)·op(b) + beta·c, c [m][n], inner length k. */
static inline void multiply(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
                            const double *b, double beta, double *c) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      double sum = 0;
      for (int64_t l = 0; l < k; l++) sum += (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]);
      c[i * n + j] = alpha * sum + (beta == 0 ? 0 : beta * c[i * n + j]);
    }
}

/** The largest |a − b|; infinity where one is NaN. */
static inline double distance(const double *a, const double *b, int64_t n) {
  double most = 0;
  for (int64_t i = 0; i < n; i++) {
    const double d = fabs(a[i] - b[i]);
    if (!(d <= most)) most = isnan(d) ? INFINITY : d;
  }
  return most;
}

#endif
