/* A matrix on a grid of ranks: as svd.c, and on one rank the same. */
#include "grid_internal.h"

#include "nps/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void nps_dsvd_free(nps_dsvd_t *svd) {
  nps_svd_free(&svd->svd);
  nps_dmat_free(&svd->u);
  nps_dmat_free(&svd->v);
}

/* ---- one rank ---- */

static nps_dmat_t take(const nps_grid_t *grid, int64_t rows, int64_t columns, double **values) {
  nps_dmat_t m = nps_dmat_shape(grid, rows, columns);
  m.local = *values;
  *values = NULL;
  return m;
}

static nps_err_t compute_here(const nps_dmat_t *a, const nps_svd_options_t *options, nps_dsvd_t *out) {
  nps_svd_t *s = &out->svd;
  const nps_err_t err = nps_svd_compute(a->local, a->rows, a->columns, options, s);
  out->u = take(a->grid, s->count, s->rows, &s->u);
  out->v = take(a->grid, s->count, s->columns, &s->v);
  return err;
}

/* ---- certificates ---- */

void nps_svd_grid_signs(uint32_t first, nps_dmat_t *m) {
  double *row = nps_xcalloc((size_t)m->columns + 1, sizeof *row);
  for (int64_t i = 0; i < m->local_rows; i++) {
    nps_svd_signs(first + (uint32_t)nps_dmat_row(m, i), 0, m->columns, row);
    for (int64_t j = 0; j < m->local_columns; j++) m->local[i * m->local_columns + j] = row[nps_dmat_column(m, j)];
  }
  free(row);
}

/* ‖(A − UᵀSV)z‖ for random signs z. */
static nps_err_t probe_residual(const nps_dmat_t *a, const nps_dsvd_t *s, double *out) {
  nps_dmat_t z = {0}, y = {0}, c = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(a->grid, NPS_SVD_PROBES, a->columns, &z));
  NPS_GOTO(nps_dmat_new(a->grid, NPS_SVD_PROBES, a->rows, &y));
  NPS_GOTO(nps_dmat_new(a->grid, s->svd.count, NPS_SVD_PROBES, &c));
  nps_svd_grid_signs(NPS_SVD_RESIDUAL_STREAM, &z);
  nps_dmat_gemm(false, true, 1, &z, a, 0, &y);
  nps_dmat_gemm(false, true, 1, &s->v, &z, 0, &c);
  nps_dmat_scale_rows(&c, s->svd.sigma);
  nps_dmat_gemm(true, false, -1, &c, &s->u, 1, &y);
  *out = sqrt(nps_dmat_norm2(&y) / NPS_SVD_PROBES);
done:
  nps_dmat_free(&z);
  nps_dmat_free(&y);
  nps_dmat_free(&c);
  return err;
}

/* ‖XXᵀ − I‖ over the first k rows, by random signs. */
static nps_err_t probe_orthogonality(const nps_dmat_t *x, int64_t k, double *out) {
  const nps_dmat_t present = nps_dmat_leading_rows(x, k);
  nps_dmat_t w = {0}, y = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(x->grid, NPS_SVD_PROBES, k, &w));
  NPS_GOTO(nps_dmat_new(x->grid, NPS_SVD_PROBES, x->columns, &y));
  nps_svd_grid_signs(NPS_SVD_ORTHOGONALITY_STREAM, &w);
  nps_dmat_gemm(false, false, 1, &w, &present, 0, &y);
  nps_dmat_gemm(false, true, -1, &y, &present, 1, &w);
  *out = sqrt(nps_dmat_norm2(&w) / NPS_SVD_PROBES);
done:
  nps_dmat_free(&w);
  nps_dmat_free(&y);
  return err;
}

static nps_err_t certify(const nps_dmat_t *a, nps_dsvd_t *s) {
  double u = 0, v = 0;
  NPS_TRY(probe_residual(a, s, &s->svd.residual));
  if (s->svd.norm > 0) s->svd.residual /= s->svd.norm;
  NPS_TRY(probe_orthogonality(&s->u, s->svd.present, &u));
  NPS_TRY(probe_orthogonality(&s->v, s->svd.present, &v));
  s->svd.orthogonality = fmax(u, v);
  return NPS_OK;
}

/* ‖A − UᵀSV‖ */
static nps_err_t measure_residual(const nps_dmat_t *a, const nps_dsvd_t *s, double *out) {
  nps_dmat_t rest = {0}, scaled = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(a->grid, a->rows, a->columns, &rest));
  NPS_GOTO(nps_dmat_new(a->grid, s->v.rows, s->v.columns, &scaled));
  nps_dmat_copy(a, 0, 0, a->rows, a->columns, &rest, 0, 0);
  nps_dmat_copy(&s->v, 0, 0, s->v.rows, s->v.columns, &scaled, 0, 0);
  nps_dmat_scale_rows(&scaled, s->svd.sigma);
  nps_dmat_gemm(true, false, -1, &s->u, &scaled, 1, &rest);
  *out = sqrt(nps_dmat_norm2(&rest));
done:
  nps_dmat_free(&rest);
  nps_dmat_free(&scaled);
  return err;
}

static nps_err_t measure_orthogonality(const nps_dmat_t *x, int64_t k, double *out) {
  const nps_dmat_t present = nps_dmat_leading_rows(x, k);
  nps_dmat_t g = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(x->grid, k, k, &g));
  nps_dmat_gemm(false, true, 1, &present, &present, 0, &g);
  for (int64_t i = 0; i < g.local_rows; i++)
    for (int64_t j = 0; j < g.local_columns; j++)
      if (nps_dmat_row(&g, i) == nps_dmat_column(&g, j)) g.local[i * g.local_columns + j] -= 1;
  *out = sqrt(nps_dmat_norm2(&g));
done:
  nps_dmat_free(&g);
  return err;
}

nps_err_t nps_svd_verify_on_grid(const nps_dmat_t *a, const nps_dsvd_t *s, double *residual, double *orthogonality) {
  double v = 0;
  NPS_TRY(measure_residual(a, s, residual));
  if (s->svd.norm > 0) *residual /= s->svd.norm;
  NPS_TRY(measure_orthogonality(&s->u, s->svd.present, orthogonality));
  NPS_TRY(measure_orthogonality(&s->v, s->svd.present, &v));
  *orthogonality = fmax(*orthogonality, v);
  return NPS_OK;
}

/* ---- several ranks ---- */

static nps_svd_method_t choose(int64_t rows, int64_t columns, const nps_svd_options_t *options) {
  const nps_svd_method_t method = nps_svd_choose(rows, columns, options);
  return options->method == NPS_SVD_AUTO && method == NPS_SVD_LAPACK ? NPS_SVD_GRAM : method;
}

static nps_err_t run(nps_svd_method_t method, double energy, nps_dtriples_t *t) {
  t->energy = 1;
  if (method == NPS_SVD_RANDOMISED) return nps_svd_grid_randomised(energy, t);
  return method == NPS_SVD_GRAM ? nps_svd_grid_gram(t) : nps_svd_grid_lapack(t);
}

/* One method. The vectors of one tried before are freed. */
static nps_err_t attempt(const nps_dmat_t *a, nps_svd_method_t method, const nps_svd_options_t *o, nps_dsvd_t *out) {
  nps_dtriples_t t = {.a = a,
                      .turned = a->rows > a->columns,
                      .n = nps_min64(a->rows, a->columns),
                      .m = nps_max64(a->rows, a->columns),
                      .count = out->svd.count,
                      .sigma = out->svd.sigma};
  nps_dmat_free(&out->u);
  nps_dmat_free(&out->v);
  const nps_err_t err = run(method, nps_svd_least_energy(o), &t);
  out->u = t.turned ? t.right : t.left;
  out->v = t.turned ? t.left : t.right;
  if (err != NPS_OK) return err;
  nps_svd_describe(&out->svd, method, t.energy);
  return certify(a, out);
}

static nps_err_t compute_there(const nps_dmat_t *a, const nps_svd_options_t *o, nps_dsvd_t *out) {
  NPS_TRY(nps_dmat_check_finite(a, o->name));
  out->svd.norm = sqrt(nps_dmat_norm2(a));
  if (out->svd.count == 0) return NPS_OK;
  for (nps_svd_method_t method = choose(a->rows, a->columns, o); method <= NPS_SVD_LAPACK; method++) {
    NPS_TRY(attempt(a, method, o, out));
    if (nps_svd_holds(&out->svd, o)) return NPS_OK;
    nps_svd_tell_miss(&out->svd, o);
    out->svd.failed = method;
  }
  return nps_comm_agree(nps_grid_comm(a->grid), nps_svd_fail_tolerance(&out->svd, o));
}

nps_err_t nps_svd_on_grid(const nps_dmat_t *a, const nps_svd_options_t *options, nps_dsvd_t *out) {
  const int64_t all = nps_min64(a->rows, a->columns);
  memset(out, 0, sizeof *out);
  if (nps_grid_ranks(a->grid) == 1) return compute_here(a, options, out);
  nps_watch_begin("factorising, together with other ranks,", options->name);
  out->svd = (nps_svd_t){.rows = a->rows, .columns = a->columns, .energy = 1};
  out->svd.count = options->leading > 0 ? nps_min64(options->leading, all) : all;
  out->svd.sigma = nps_xcalloc((size_t)out->svd.count + 1, sizeof *out->svd.sigma);
  out->u = nps_dmat_shape(a->grid, out->svd.count, a->rows);
  out->v = nps_dmat_shape(a->grid, out->svd.count, a->columns);
  const nps_err_t err = compute_there(a, options, out);
  nps_watch_end();
  return err;
}

/* ---- polar factors ---- */

nps_err_t nps_svd_polar_on_grid(nps_dmat_t *x) {
  nps_dsvd_t s = {0};
  if (nps_grid_ranks(x->grid) == 1) return nps_svd_polar(x->rows, x->columns, x->local);
  const nps_err_t err = nps_svd_on_grid(x, &(nps_svd_options_t){.name = "a polar factor", .orthogonality = 1e-9}, &s);
  if (err == NPS_OK) {
    const nps_dmat_t u = nps_dmat_leading_rows(&s.u, s.svd.present), v = nps_dmat_leading_rows(&s.v, s.svd.present);
    nps_dmat_gemm(true, false, 1, &u, &v, 0, x);
  }
  nps_dsvd_free(&s);
  return err;
}
