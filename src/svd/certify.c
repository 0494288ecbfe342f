/* Certificates of a decomposition: residual and orthogonality, estimated with random signs. */
#include "svd_internal.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PROBES = NPS_SVD_PROBES, LANES = 4 };

typedef double lanes_t __attribute__((vector_size(8 * LANES)));

/* ---- products of a large matrix with few vectors: one reading of the matrix, where dgemm copies it first ---- */

#define INLINE static inline __attribute__((always_inline))

INLINE void load(const double *from, lanes_t *x) { memcpy(x, from, sizeof *x); }

/* out[p][0] = row · x_p. @param x  [PROBES][n]; @param ldo  leading dimension of out */
INLINE void dot_row(const double *row, int64_t n, const double *x, double *out, int64_t ldo) {
  lanes_t sum[PROBES] = {{0}};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    lanes_t r, y;
    load(row + i, &r);
    for (int p = 0; p < PROBES; p++) {
      load(x + p * n + i, &y);
      sum[p] += r * y;
    }
  }
  for (int p = 0; p < PROBES; p++) {
    double total = (sum[p][0] + sum[p][1]) + (sum[p][2] + sum[p][3]);
    for (int64_t k = i; k < n; k++) total += row[k] * x[p * n + k];
    out[p * ldo] = total;
  }
}

/* out [PROBES][rows] = x·aᵀ. @param a  [rows][n]; @param x  [PROBES][n] */
NPS_VECTOR_CLONES
static void dots(const double *a, int64_t rows, int64_t n, const double *x, double *out) {
  for (int64_t r = 0; r < rows; r++) dot_row(a + r * n, n, x, out + r, rows);
}

/* y[p] += Σ_r w[p][r]·a[r] over `count` rows, at most LANES. @param w  [PROBES][ldw]; @param y  [PROBES][n] */
INLINE void add_rows(const double *a, const int count, int64_t n, const double *w, int64_t ldw, double *y) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    lanes_t row[LANES];
    for (int r = 0; r < count; r++) load(a + r * n + i, &row[r]);
    for (int p = 0; p < PROBES; p++) {
      lanes_t sum;
      load(y + p * n + i, &sum);
      for (int r = 0; r < count; r++) sum += w[p * ldw + r] * row[r];
      memcpy(y + p * n + i, &sum, sizeof sum);
    }
  }
  for (; i < n; i++)
    for (int p = 0; p < PROBES; p++)
      for (int r = 0; r < count; r++) y[p * n + i] += w[p * ldw + r] * a[r * n + i];
}

/* y [PROBES][n] += w·a. @param a  [rows][n]; @param w  [PROBES][rows] */
NPS_VECTOR_CLONES
static void add_combinations(const double *a, int64_t rows, int64_t n, const double *w, double *y) {
  int64_t r = 0;
  for (; r + LANES <= rows; r += LANES) add_rows(a + r * n, LANES, n, w + r, rows, y);
  for (; r < rows; r++) add_rows(a + r * n, 1, n, w + r, rows, y);
}

/* ---- estimates ---- */

/* ‖A − UᵀSV‖/‖A‖ by probes z: E‖(A − UᵀSV)z‖² = ‖A − UᵀSV‖². */
static nps_err_t probe_residual(const double *a, nps_svd_t *s) {
  double *z = NULL, *y = NULL, *c = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * s->columns) * sizeof *z, "probes", &z));
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * s->rows) * sizeof *y, "probes", &y));
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * s->count) * sizeof *c, "probes", &c));
  for (int p = 0; p < PROBES; p++)
    nps_svd_signs((uint32_t)(NPS_SVD_RESIDUAL_STREAM + p), 0, s->columns, z + p * s->columns);
  dots(a, s->rows, s->columns, z, y);
  dots(s->v, s->count, s->columns, z, c);
  for (int64_t i = 0; i < PROBES * s->count; i++) c[i] *= -s->sigma[i % s->count];
  add_combinations(s->u, s->count, s->rows, c, y);
  const double norm = s->norm * sqrt(PROBES);
  s->residual = norm > 0 ? sqrt(nps_svd_norm2(y, PROBES * s->rows)) / norm : 0;
done:
  free(z);
  free(y);
  free(c);
  return err;
}

/* ‖XXᵀ − I‖ over the first k rows of x [][n], by random signs w: wXXᵀ − w. */
static nps_err_t probe_orthogonality(const double *x, int64_t k, int64_t n, double *out) {
  double *w = NULL, *y = NULL, *back = NULL;
  nps_err_t err = NPS_OK;
  *out = 0;
  if (k == 0) return NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * k) * sizeof *w, "probes", &w));
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * k) * sizeof *w, "probes", &back));
  NPS_GOTO(nps_buffer_alloc((size_t)(PROBES * n) * sizeof *y, "probes", &y));
  for (int p = 0; p < PROBES; p++) nps_svd_signs((uint32_t)(NPS_SVD_ORTHOGONALITY_STREAM + p), 0, k, w + p * k);
  memset(y, 0, (size_t)(PROBES * n) * sizeof *y);
  add_combinations(x, k, n, w, y);
  dots(x, k, n, y, back);
  for (int64_t i = 0; i < PROBES * k; i++) back[i] -= w[i];
  *out = sqrt(nps_svd_norm2(back, PROBES * k) / PROBES);
done:
  free(w);
  free(y);
  free(back);
  return err;
}

nps_err_t nps_svd_certify(const double *a, nps_svd_t *s) {
  double v = 0;
  NPS_TRY(probe_residual(a, s));
  NPS_TRY(probe_orthogonality(s->u, s->present, s->rows, &s->orthogonality));
  NPS_TRY(probe_orthogonality(s->v, s->present, s->columns, &v));
  s->orthogonality = fmax(s->orthogonality, v);
  return NPS_OK;
}

/* ---- exactly ---- */

/* ‖A − UᵀSV‖. */
static nps_err_t find_residual(const double *a, const nps_svd_t *s, double *out) {
  double *left = NULL, *rest = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(s->count * s->rows) * sizeof *left, "singular vectors", &left));
  NPS_GOTO(nps_buffer_alloc((size_t)(s->rows * s->columns) * sizeof *rest, "a matrix", &rest));
  memcpy(rest, a, (size_t)(s->rows * s->columns) * sizeof *rest);
  for (int64_t k = 0; k < s->count; k++)
    for (int64_t i = 0; i < s->rows; i++) left[k * s->rows + i] = s->sigma[k] * s->u[k * s->rows + i];
  nps_dgemm(true, false, s->rows, s->columns, s->count, -1, left, s->rows, s->v, s->columns, 1, rest, s->columns);
  *out = sqrt(nps_svd_norm2(rest, s->rows * s->columns));
done:
  free(left);
  free(rest);
  return err;
}

static nps_err_t gram_defect(const double *x, int64_t k, int64_t n, double *out) {
  double *g = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(k * k) * sizeof *g, "a Gram matrix", &g));
  nps_dgram(k, n, x, g);
  for (int64_t i = 0; i < k; i++) g[i * k + i] -= 1;
  *out = sqrt(nps_svd_norm2(g, k * k));
  free(g);
  return NPS_OK;
}

nps_err_t nps_svd_verify(const double *a, const nps_svd_t *s, double *residual, double *orthogonality) {
  double v = 0;
  NPS_TRY(find_residual(a, s, residual));
  *residual = s->norm > 0 ? *residual / s->norm : 0;
  NPS_TRY(gram_defect(s->u, s->present, s->rows, orthogonality));
  NPS_TRY(gram_defect(s->v, s->present, s->columns, &v));
  *orthogonality = fmax(*orthogonality, v);
  return NPS_OK;
}
