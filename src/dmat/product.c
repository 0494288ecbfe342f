#include "dmat_internal.h"
#include "nps/blas.h"
#include "scalapack.h"

#include <assert.h>
#include <string.h>

static const int one = 1;

void nps_dmat_describe(const nps_dmat_t *m, int description[9]) {
  const nps_grid_t *grid = m->grid;
  const int64_t width = m->local_columns > 0 ? m->local_columns : 1;
  const int all[9] = {1, grid->context, (int)m->columns, (int)m->rows, grid->block, grid->block, 0, 0, (int)width};
  memcpy(description, all, sizeof all);
}

static void scale_all(double by, nps_dmat_t *m) {
  const int64_t n = m->local_rows * m->local_columns;
  for (int64_t i = 0; i < n; i++) m->local[i] = by == 0 ? 0 : by * m->local[i];
}

/* Cᵀ = op(B)ᵀ·op(A)ᵀ */
static void multiply(bool transpose_a, bool transpose_b, int64_t inner, double alpha, const nps_dmat_t *a,
                     const nps_dmat_t *b, double beta, nps_dmat_t *c) {
  int of_a[9], of_b[9], of_c[9];
  const int m = (int)c->rows, n = (int)c->columns, k = (int)inner;
  nps_dmat_describe(a, of_a);
  nps_dmat_describe(b, of_b);
  nps_dmat_describe(c, of_c);
  pdgemm_(transpose_b ? "T" : "N", transpose_a ? "T" : "N", &n, &m, &k, &alpha, b->local, &one, &one, of_b, a->local,
          &one, &one, of_a, &beta, c->local, &one, &one, of_c);
}

void nps_dmat_gemm(bool transpose_a, bool transpose_b, double alpha, const nps_dmat_t *a, const nps_dmat_t *b,
                   double beta, nps_dmat_t *c) {
  const int64_t inner = transpose_a ? a->rows : a->columns;
  assert(inner == (transpose_b ? b->columns : b->rows) && c->rows == (transpose_a ? a->columns : a->rows));
  assert(c->columns == (transpose_b ? b->rows : b->columns));
  if (c->rows == 0 || c->columns == 0) return;
  if (inner == 0)
    scale_all(beta, c);
  else if (c->grid->ranks > 1)
    multiply(transpose_a, transpose_b, inner, alpha, a, b, beta, c);
  else
    nps_dgemm(transpose_a, transpose_b, c->rows, c->columns, inner, alpha, a->local, a->columns, b->local, b->columns,
              beta, c->local, c->columns);
}

void nps_dmat_copy(const nps_dmat_t *from, int64_t row, int64_t column, int64_t rows, int64_t columns, nps_dmat_t *to,
                   int64_t to_row, int64_t to_column) {
  if (rows == 0 || columns == 0) return;
  if (from->grid->ranks == 1) {
    for (int64_t i = 0; i < rows; i++)
      memcpy(to->local + (to_row + i) * to->columns + to_column, from->local + (row + i) * from->columns + column,
             (size_t)columns * sizeof(double));
    return;
  }
  int of_from[9], of_to[9];
  const int m = (int)columns, n = (int)rows, i = (int)column + 1, j = (int)row + 1;
  const int to_i = (int)to_column + 1, to_j = (int)to_row + 1;
  const double unit = 1, zero = 0;
  nps_dmat_describe(from, of_from);
  nps_dmat_describe(to, of_to);
  pdgeadd_("N", &m, &n, &unit, from->local, &i, &j, of_from, &zero, to->local, &to_i, &to_j, of_to);
}
