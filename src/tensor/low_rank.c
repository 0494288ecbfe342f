#include "nps/tensor.h"

/* Columns at a time: their sums stay in the first cache, and so many of all v in the second. */
enum { TILE = 512 };

/* A product of two float32 is exact in float64, so that fused and separate operations give the same. */
NPS_VECTOR_CLONES
static void add_one(double u, const float *v, int64_t n, double *sum) {
  for (int64_t j = 0; j < n; j++) sum[j] = sum[j] + u * (double)v[j];
}

/* Four terms, one after the other, with one pass over the sums. */
NPS_VECTOR_CLONES
static void add_four(const double u[4], const float *v, int64_t stride, int64_t n, double *sum) {
  const float *a = v, *b = v + stride, *c = v + 2 * stride, *d = v + 3 * stride;
  for (int64_t j = 0; j < n; j++)
    sum[j] = (((sum[j] + u[0] * (double)a[j]) + u[1] * (double)b[j]) + u[2] * (double)c[j]) + u[3] * (double)d[j];
}

NPS_VECTOR_CLONES
static void narrow(const double *sum, int64_t n, float *out) {
  for (int64_t j = 0; j < n; j++) out[j] = (float)sum[j];
}

/* Entries [column, column + n) of a row, n at most TILE. */
static void fill_tile(const nps_low_rank_t *m, int64_t row, int64_t column, int64_t n, float *out) {
  double sum[TILE] = {0};
  const float *u = m->u + row, *v = m->v + column;
  int64_t k = 0;
  for (; k + 4 <= m->rank; k += 4) {
    const double four[4] = {u[k * m->rows], u[(k + 1) * m->rows], u[(k + 2) * m->rows], u[(k + 3) * m->rows]};
    add_four(four, v + k * m->columns, m->columns, n, sum);
  }
  for (; k < m->rank; k++) add_one((double)u[k * m->rows], v + k * m->columns, n, sum);
  narrow(sum, n, out);
}

/* The same columns of several rows. @param out  begins with the first of them */
static void fill(const nps_low_rank_t *m, int64_t row, int64_t rows, int64_t column, int64_t n, float *out) {
  for (int64_t at = 0; at < n; at += TILE)
    for (int64_t r = 0; r < rows; r++)
      fill_tile(m, row + r, column + at, n - at < TILE ? n - at : TILE, out + r * m->columns + at);
}

void nps_low_rank_entries(const nps_low_rank_t *m, int64_t first, int64_t n, float *out) {
  while (n > 0) {
    const int64_t row = first / m->columns, column = first % m->columns, left = m->columns - column;
    const int64_t rows = column == 0 && n >= m->columns ? n / m->columns : 1;
    const int64_t width = n < left ? n : left;
    fill(m, row, rows, column, width, out);
    first += rows * width;
    out += rows * width;
    n -= rows * width;
  }
}
