#include "dmat_internal.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

nps_dmat_t nps_dmat_shape(const nps_grid_t *grid, int64_t rows, int64_t columns) {
  return (nps_dmat_t){.grid = grid,
                      .rows = rows,
                      .columns = columns,
                      .local_rows = nps_cyclic_count(rows, grid->block, grid->row, grid->row_ranks),
                      .local_columns = nps_cyclic_count(columns, grid->block, grid->column, grid->column_ranks)};
}

/* ScaLAPACK counts sizes and the elements of local arrays in 32 bits. */
static nps_err_t check_counts(const nps_grid_t *grid, int64_t rows, int64_t columns) {
  const int64_t most = INT_MAX - 2 * grid->block;
  const int64_t high = nps_cyclic_count(rows, grid->block, 0, grid->row_ranks);
  const int64_t wide = nps_cyclic_count(columns, grid->block, 0, grid->column_ranks);
  if (rows <= most && columns <= most && (grid->ranks == 1 || wide == 0 || high <= most / wide)) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "a matrix of %lld × %lld is too large for ScaLAPACK on %d ranks: more are needed",
                  (long long)rows, (long long)columns, grid->ranks);
}

nps_err_t nps_dmat_new(const nps_grid_t *grid, int64_t rows, int64_t columns, nps_dmat_t *out) {
  *out = nps_dmat_shape(grid, rows, columns);
  nps_err_t err = check_counts(grid, rows, columns);
  if (err == NPS_OK)
    err = nps_buffer_alloc((size_t)(out->local_rows * out->local_columns) * sizeof(double), "a matrix", &out->local);
  return nps_grid_agree(grid, err);
}

void nps_dmat_free(nps_dmat_t *m) {
  free(m->local);
  m->local = NULL;
}

nps_dmat_t nps_dmat_leading_rows(const nps_dmat_t *m, int64_t rows) {
  nps_dmat_t view = nps_dmat_shape(m->grid, rows, m->columns);
  view.local = m->local;
  return view;
}

static int64_t global(int64_t i, int block, int at, int ranks) { return (i / block * ranks + at) * block + i % block; }

int64_t nps_dmat_row(const nps_dmat_t *m, int64_t i) {
  return global(i, m->grid->block, m->grid->row, m->grid->row_ranks);
}

int64_t nps_dmat_column(const nps_dmat_t *m, int64_t j) {
  return global(j, m->grid->block, m->grid->column, m->grid->column_ranks);
}

void nps_dmat_clear(nps_dmat_t *m) {
  memset(m->local, 0, (size_t)(m->local_rows * m->local_columns) * sizeof *m->local);
}

void nps_dmat_scale_rows(nps_dmat_t *m, const double *by) {
  for (int64_t i = 0; i < m->local_rows; i++) {
    const double factor = by[nps_dmat_row(m, i)];
    for (int64_t j = 0; j < m->local_columns; j++) m->local[i * m->local_columns + j] *= factor;
  }
}

/* ---- sums and checks ---- */

/* Σ x² in 8 interleaved lanes. */
NPS_VECTOR_CLONES
static double squares(const double *x, int64_t n) {
  double lane[8] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; k++) lane[k] += x[i + k] * x[i + k];
  for (; i < n; i++) lane[i % 8] += x[i] * x[i];
  for (int k = 0; k < 8; k++) sum += lane[k];
  return sum;
}

/* The ranks that share rows put their parts beside each other, and every rank adds these up in order. */
void nps_dmat_row_norms2(const nps_dmat_t *m, double *out) {
  const int parts = m->grid->column_ranks;
  double *part = nps_xcalloc((size_t)(m->rows * parts) + 1, sizeof *part);
  for (int64_t i = 0; i < m->local_rows; i++)
    part[nps_dmat_row(m, i) * parts + m->grid->column] = squares(m->local + i * m->local_columns, m->local_columns);
  if (m->grid->ranks > 1) nps_comm_sum_f64(m->grid->comm, part, m->rows * parts);
  for (int64_t i = 0; i < m->rows; i++) {
    out[i] = 0;
    for (int k = 0; k < parts; k++) out[i] += part[i * parts + k];
  }
  free(part);
}

double nps_dmat_norm2(const nps_dmat_t *m) {
  double sum = 0, *row = nps_xcalloc((size_t)m->rows + 1, sizeof *row);
  nps_dmat_row_norms2(m, row);
  for (int64_t i = 0; i < m->rows; i++) sum += row[i];
  free(row);
  return sum;
}

static nps_err_t check_local(const nps_dmat_t *m, const char *name) {
  for (int64_t i = 0; i < m->local_rows; i++)
    for (int64_t j = 0; j < m->local_columns; j++) {
      const double x = m->local[i * m->local_columns + j];
      if (isfinite(x)) continue;
      return nps_fail(NPS_ERR_INPUT, "%s: %s at row %lld, column %lld", name ? name : "a matrix",
                      isnan(x) ? "NaN" : "infinity", (long long)nps_dmat_row(m, i), (long long)nps_dmat_column(m, j));
    }
  return NPS_OK;
}

nps_err_t nps_dmat_check_finite(const nps_dmat_t *m, const char *name) {
  return nps_grid_agree(m->grid, check_local(m, name));
}
