/* One matrix on one rank: the choice of the algorithm, its certificate, and the next one where that does not hold. */
#include "svd_internal.h"

#include "nps/watch.h"

#include "nps/blas.h"
#include "nps/rng.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1024 };

/* From this part of σ1 on, the values of a Gram matrix are sure. */
#define SURE 1e-6

/* Where all triples are few, LAPACK takes no longer. */
#define FEW 48

const char *nps_svd_method_name(nps_svd_method_t method) {
  static const char *const names[] = {"auto", "randomised", "gram", "lapack"};
  return names[method];
}

void nps_svd_free(nps_svd_t *svd) {
  free(svd->sigma);
  free(svd->u);
  free(svd->v);
  *svd = (nps_svd_t){0};
}

/* ---- small tools ---- */

void nps_svd_signs(uint32_t stream, int64_t first, int64_t n, double *out) {
  uint32_t words[BLOCK];
  for (int64_t at = 0; at < n; at += BLOCK) {
    const int64_t count = nps_min64(n - at, BLOCK);
    nps_rng_words(0x5d5fd, stream, first + at, count, words);
    for (int64_t i = 0; i < count; i++) out[at + i] = words[i] >> 31 ? 1 : -1;
  }
}

NPS_VECTOR_CLONES
double nps_svd_norm2(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t at = 0; at < n; at += BLOCK) {
    double part[8] = {0};
    const int64_t end = nps_min64(n, at + BLOCK);
    int64_t i = at;
    for (; i + 8 <= end; i += 8)
      for (int k = 0; k < 8; k++) part[k] += x[i + k] * x[i + k];
    for (; i < end; i++) part[0] += x[i] * x[i];
    sum += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
  }
  return sum;
}

/* ‖A‖ is finite where A is, unless it overflows. */
static nps_err_t check_finite(const double *a, int64_t rows, int64_t columns, double norm, const char *name) {
  int64_t i = 0;
  if (isfinite(norm)) return NPS_OK;
  while (i < rows * columns && isfinite(a[i])) i++;
  if (i == rows * columns) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: %s at row %lld, column %lld", name ? name : "a matrix",
                  isnan(a[i]) ? "NaN" : "infinity", (long long)(i / columns), (long long)(i % columns));
}

/* LAPACK counts its workspace, up to 4n² + 7n numbers, in 32 bits. */
#define MOST_SHORT_SIDE 23000

static nps_err_t check_size(int64_t rows, int64_t columns, const char *name) {
  const int64_t n = nps_min64(rows, columns), m = nps_max64(rows, columns);
  if (n <= MOST_SHORT_SIDE && m <= INT32_MAX) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "%s is %lld × %lld: one rank can factorise matrices with a short side of up to %d",
                  name ? name : "a matrix", (long long)rows, (long long)columns, MOST_SHORT_SIDE);
}

/* Copies in tiles: b = aᵀ. */
static void transpose(const double *a, int64_t rows, int64_t columns, double *b) {
  enum { TILE = 32 };
  for (int64_t i0 = 0; i0 < rows; i0 += TILE)
    for (int64_t j0 = 0; j0 < columns; j0 += TILE)
      for (int64_t i = i0; i < nps_min64(rows, i0 + TILE); i++)
        for (int64_t j = j0; j < nps_min64(columns, j0 + TILE); j++) b[j * rows + i] = a[i * columns + j];
}

/* A power of two that brings a number near 1. */
static double scale_of(double x) {
  const int exponent = x > 0 ? ilogb(x) : 0;
  return ldexp(1, exponent < -1000 ? 1000 : -exponent);
}

static double largest_of(const double *a, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs(a[i]));
  return largest;
}

/* Whether squares of a matrix' elements are far from over- and underflow. */
static bool is_tame(double norm) { return norm >= 1e-60 && norm <= 1e60; }

static nps_err_t copy_scaled(const double *a, int64_t count, double *scale, double **copy) {
  NPS_TRY(nps_buffer_alloc((size_t)count * sizeof *a, "a matrix", copy));
  *scale = scale_of(largest_of(a, count));
  for (int64_t i = 0; i < count; i++) (*copy)[i] = *scale * a[i];
  return NPS_OK;
}

/* ---- the choice ---- */

static int64_t wanted_count(int64_t rows, int64_t columns, int64_t leading) {
  const int64_t all = nps_min64(rows, columns);
  return leading > 0 ? nps_min64(leading, all) : all;
}

nps_svd_method_t nps_svd_choose(int64_t rows, int64_t columns, const nps_svd_options_t *options) {
  const int64_t n = nps_min64(rows, columns), k = wanted_count(rows, columns, options->leading);
  if (options->method != NPS_SVD_AUTO) return options->method;
  if (n <= FEW) return NPS_SVD_LAPACK;
  return options->approximate && 4 * (k + 16) <= n ? NPS_SVD_RANDOMISED : NPS_SVD_GRAM;
}

/* Rates of one core in float64: of products, and of what the eigensolver and dgesdd do besides; docs/svd.md has the times
 * that they were fitted to. */
#define PRODUCT_RATE 4e10
#define EIGEN_RATE 1.6e10
#define DGESDD_RATE 8e9

double nps_svd_seconds(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method) {
  const double n = (double)nps_min64(rows, columns), m = (double)nps_max64(rows, columns);
  const double k = (double)wanted_count(rows, columns, leading);
  if (method == NPS_SVD_RANDOMISED) return (14 * (k + 16) * n * m + 12 * (k + 16) * (k + 16) * m) / PRODUCT_RATE;
  if (method == NPS_SVD_LAPACK) return 2 * n * n * m / PRODUCT_RATE + 4 * n * n * m / DGESDD_RATE;
  return (n * n * m + 2 * k * n * m) / PRODUCT_RATE + (4.0 / 3 * n * n * n + 2 * k * n * n) / EIGEN_RATE;
}

int64_t nps_svd_bytes(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method) {
  const int64_t n = nps_min64(rows, columns), m = nps_max64(rows, columns), k = wanted_count(rows, columns, leading);
  const int64_t turned = rows > columns ? 8 * n * m : 0;
  if (method == NPS_SVD_RANDOMISED) return turned + 4 * n * m + (k + 16) * (20 * m + 12 * n);
  if (method == NPS_SVD_LAPACK) return turned + 16 * n * m + 40 * n * n;
  return turned + 16 * n * n + 8 * n * m + 2200 * n;
}

/* ---- certificates ---- */

static double or_default(double value, double standard) { return value > 0 ? value : standard; }

double nps_svd_least_energy(const nps_svd_options_t *options) { return or_default(options->energy, NPS_SVD_ENERGY); }

bool nps_svd_holds(const nps_svd_t *s, const nps_svd_options_t *o) {
  const bool all = s->count == nps_min64(s->rows, s->columns);
  const double residual = or_default(o->residual, NPS_SVD_RESIDUAL);
  const double energy = s->method == NPS_SVD_RANDOMISED ? nps_svd_least_energy(o) : 1 - residual;
  return s->orthogonality <= or_default(o->orthogonality, NPS_SVD_ORTHOGONALITY) &&
         (all ? s->residual <= residual : s->energy >= energy);
}

nps_err_t nps_svd_fail_tolerance(const nps_svd_t *s, const nps_svd_options_t *options) {
  return nps_fail(NPS_ERR_RUNTIME,
                  "%s: no singular value decomposition within its tolerance: residual %.1e, orthogonality %.1e",
                  options->name ? options->name : "a matrix", s->residual, s->orthogonality);
}

/* ---- one matrix ---- */

static nps_err_t run(nps_svd_method_t method, const double *a, double energy, nps_triples_t *t) {
  if (method == NPS_SVD_RANDOMISED) return nps_svd_randomised(a, energy, t);
  return method == NPS_SVD_GRAM ? nps_svd_gram(a, t) : nps_svd_lapack(a, t);
}

void nps_svd_describe(nps_svd_t *s, nps_svd_method_t method, double energy) {
  const double largest = s->sigma[0];
  s->method = method;
  s->energy = energy;
  s->present = 0;
  while (s->present < s->count && s->sigma[s->present] > NPS_SVD_ABSENT * largest) s->present++;
  s->unsure = s->present;
  while (s->unsure < s->count && (method == NPS_SVD_LAPACK || s->sigma[s->unsure] >= SURE * largest)) s->unsure++;
}

void nps_svd_tell_miss(const nps_svd_t *s, const nps_svd_options_t *o) {
  if (s->method == NPS_SVD_LAPACK) return;
  nps_note("%s: %s decomposition outside of its tolerance (residual %.1e, orthogonality %.1e, energy %.6f); %s is next",
           o->name ? o->name : "a matrix", nps_svd_method_name(s->method), s->residual, s->orthogonality, s->energy,
           nps_svd_method_name(s->method + 1));
}

/* From the first method on to the most accurate, until the certificate holds. @param t  works on `flat`, whose short side is
 * its rows; its arrays are those of out */
static nps_err_t compute(const double *a, const double *flat, const nps_svd_options_t *o, nps_triples_t *t,
                         nps_svd_t *out) {
  for (nps_svd_method_t method = nps_svd_choose(out->rows, out->columns, o); method <= NPS_SVD_LAPACK; method++) {
    t->energy = 1;
    NPS_TRY(run(method, flat, nps_svd_least_energy(o), t));
    nps_svd_describe(out, method, t->energy);
    NPS_TRY(nps_svd_certify(a, out));
    if (nps_svd_holds(out, o)) return NPS_OK;
    nps_svd_tell_miss(out, o);
    out->failed = method;
  }
  return nps_svd_fail_tolerance(out, o);
}

static nps_err_t make_room(int64_t count, nps_svd_t *out) {
  out->count = count;
  out->sigma = nps_xcalloc((size_t)count + 1, sizeof *out->sigma);
  NPS_TRY(nps_buffer_alloc((size_t)(count * out->rows) * sizeof *out->u, "singular vectors", &out->u));
  return nps_buffer_alloc((size_t)(count * out->columns) * sizeof *out->v, "singular vectors", &out->v);
}

/* @param flat  a copy of a, or its transpose, whose short side is its rows */
static nps_err_t compute_flat(const double *a, const double *flat, const nps_svd_options_t *options, nps_svd_t *out) {
  const bool turned = out->rows > out->columns;
  nps_triples_t t = {.n = nps_min64(out->rows, out->columns),
                     .m = nps_max64(out->rows, out->columns),
                     .count = out->count,
                     .sigma = out->sigma,
                     .left = turned ? out->v : out->u,
                     .right = turned ? out->u : out->v,
                     .scale = scale_of(out->norm)};
  return compute(a, flat, options, &t, out);
}

static nps_err_t compute_tame(const double *a, const nps_svd_options_t *options, nps_svd_t *out) {
  if (out->rows <= out->columns) return compute_flat(a, a, options, out);
  double *turned = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(out->rows * out->columns) * sizeof *turned, "a matrix", &turned));
  transpose(a, out->rows, out->columns, turned);
  nps_err_t err = compute_flat(a, turned, options, out);
  free(turned);
  return err;
}

/* By a scaled copy. */
static nps_err_t compute_wild(const double *a, const nps_svd_options_t *options, nps_svd_t *out) {
  const int64_t count = out->rows * out->columns;
  double *copy = NULL, scale = 1;
  NPS_TRY(copy_scaled(a, count, &scale, &copy));
  out->norm = sqrt(nps_svd_norm2(copy, count));
  nps_err_t err = compute_tame(copy, options, out);
  free(copy);
  out->norm /= scale;
  for (int64_t k = 0; k < out->count; k++) out->sigma[k] /= scale;
  return err;
}

nps_err_t nps_svd_compute(const double *a, int64_t rows, int64_t columns, const nps_svd_options_t *options,
                          nps_svd_t *out) {
  *out = (nps_svd_t){.rows = rows, .columns = columns, .energy = 1};
  NPS_TRY(check_size(rows, columns, options->name));
  out->norm = sqrt(nps_svd_norm2(a, rows * columns));
  NPS_TRY(check_finite(a, rows, columns, out->norm, options->name));
  if (rows == 0 || columns == 0) return NPS_OK;
  NPS_TRY(make_room(wanted_count(rows, columns, options->leading), out));
  nps_watch_begin("factorising", options->name);
  const nps_err_t err = is_tame(out->norm) ? compute_tame(a, options, out) : compute_wild(a, options, out);
  nps_watch_end();
  return err;
}

/* values [n] of the Gram matrix of rows, ascending → σ, descending. */
static void take_roots(int64_t n, double *values) {
  for (int64_t i = 0; i < n / 2; i++) {
    const double keep = values[i];
    values[i] = values[n - 1 - i];
    values[n - 1 - i] = keep;
  }
  for (int64_t i = 0; i < n; i++) values[i] = values[i] > 0 ? sqrt(values[i]) : 0;
}

/* sigma of a matrix whose short side is its rows. */
static nps_err_t flat_values(const double *a, int64_t n, int64_t m, double *sigma) {
  double *g = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(n * n) * sizeof *g, "a Gram matrix", &g));
  nps_dgram(n, m, a, g);
  nps_err_t err = nps_dsyevd_values(n, g, sigma);
  free(g);
  take_roots(n, sigma);
  return err;
}

nps_err_t nps_svd_values(const double *a, int64_t rows, int64_t columns, const char *name, double *sigma) {
  const int64_t n = nps_min64(rows, columns), m = nps_max64(rows, columns);
  double *turned = NULL, *copy = NULL, scale = 1;
  nps_err_t err = NPS_OK;
  NPS_TRY(check_size(rows, columns, name));
  const double norm = sqrt(nps_svd_norm2(a, rows * columns));
  NPS_TRY(check_finite(a, rows, columns, norm, name));
  if (!is_tame(norm)) NPS_GOTO(copy_scaled(a, rows * columns, &scale, &copy));
  const double *tame = copy ? copy : a;
  if (rows > columns) {
    NPS_GOTO(nps_buffer_alloc((size_t)(n * m) * sizeof *turned, "a matrix", &turned));
    transpose(tame, rows, columns, turned);
  }
  NPS_GOTO(flat_values(turned ? turned : tame, n, m, sigma));
  for (int64_t k = 0; k < n; k++) sigma[k] /= scale;
done:
  free(turned);
  free(copy);
  return err;
}

nps_err_t nps_svd_polar(int64_t k, int64_t n, double *x) {
  nps_svd_t s = {0};
  nps_err_t err = nps_svd_compute(x, k, n, &(nps_svd_options_t){.name = "a polar factor", .orthogonality = 1e-9}, &s);
  if (err == NPS_OK) nps_dgemm(true, false, k, n, s.present, 1, s.u, k, s.v, n, 0, x, n);
  nps_svd_free(&s);
  return err;
}
