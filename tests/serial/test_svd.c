/* Decompositions against planted spectra and dgesdd, their certificates against exact ones, and matrices at the edges. */
#include "../nps_check.h"
#include "nps/blas.h"
#include "nps/svd.h"

#include <math.h>

static double *fill(int64_t n, uint64_t seed) {
  double *x = nps_xcalloc((size_t)n + 1, sizeof *x);
  for (int64_t i = 0; i < n; i++) {
    double sum = 0;
    for (int k = 0; k < 4; k++) sum += (double)next_random(&seed) / 2147483648.0 - 0.5;
    x[i] = sum;
  }
  return x;
}

/* A matrix with given singular values: random orthonormal factors. */
static double *plant(int64_t rows, int64_t columns, int64_t count, const double *sigma, uint64_t seed) {
  double *u = fill(count * rows, seed), *v = fill(count * columns, seed + 1);
  double *a = nps_xcalloc((size_t)(rows * columns), sizeof *a);
  ck_assert(nps_dorthonormalise(count, rows, u) == NPS_OK && nps_dorthonormalise(count, columns, v) == NPS_OK);
  for (int64_t k = 0; k < count; k++)
    for (int64_t i = 0; i < rows; i++) u[k * rows + i] *= sigma[k];
  nps_dgemm(true, false, rows, columns, count, 1, u, rows, v, columns, 0, a, columns);
  free(u);
  free(v);
  return a;
}

static nps_svd_t factorise(const double *a, int64_t rows, int64_t columns, nps_svd_options_t options) {
  nps_svd_t s = {0};
  ck_assert_msg(nps_svd_compute(a, rows, columns, &options, &s) == NPS_OK, "%s", nps_problem_text(0));
  return s;
}

static void ck_certificate(const double *a, const nps_svd_t *s, double most_residual, double most_orthogonality) {
  double residual, orthogonality;
  ck_assert(nps_svd_verify(a, s, &residual, &orthogonality) == NPS_OK);
  ck_assert_msg(residual <= most_residual, "residual %g", residual);
  ck_assert_msg(orthogonality <= most_orthogonality, "orthogonality %g", orthogonality);
  ck_assert(residual <= 4 * s->residual + 1e-15 && s->residual <= 4 * residual + 1e-15);
  ck_assert(orthogonality <= 8 * s->orthogonality + 1e-14 && s->orthogonality <= 8 * orthogonality + 1e-14);
}

/* ---- all triples ---- */

static const struct {
  int64_t rows, columns;
} shapes[] = {{1, 1}, {1, 300}, {300, 1}, {7, 5}, {64, 64}, {100, 257}, {257, 100}, {130, 131}};

START_TEST(all_triples_of_any_shape) {
  const int64_t rows = shapes[_i / 2].rows, columns = shapes[_i / 2].columns;
  double *a = fill(rows * columns, 11);
  nps_svd_t s = factorise(a, rows, columns, (nps_svd_options_t){.method = _i % 2 ? NPS_SVD_LAPACK : NPS_SVD_GRAM});
  ck_assert_int_eq(s.count, rows < columns ? rows : columns);
  ck_assert_int_eq(s.method, _i % 2 ? NPS_SVD_LAPACK : NPS_SVD_GRAM);
  for (int64_t k = 1; k < s.count; k++) ck_assert(s.sigma[k] <= s.sigma[k - 1]);
  ck_certificate(a, &s, 1e-14, _i % 2 ? 1e-12 : 1e-10);
  nps_svd_free(&s);
  free(a);
}
END_TEST

/* Condition numbers of 10^e, spread evenly; every σ ≥ 1e-6·σ1 to 1e-9·σ1, vectors as orthogonal. */
START_TEST(planted_values_are_found) {
  const int exponent = 2 * _i;
  const int64_t rows = 150, columns = 220;
  double sigma[150];
  for (int k = 0; k < 150; k++) sigma[k] = 3 * pow(10, -exponent * (double)k / 149);
  double *a = plant(rows, columns, 150, sigma, 5);
  nps_svd_t s = factorise(a, rows, columns, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  ck_assert_int_eq(s.method, NPS_SVD_GRAM);
  for (int k = 0; k < 150; k++)
    ck_assert_msg(fabs(s.sigma[k] - sigma[k]) <= 1e-13 * sigma[0], "%d: %.17g, not %.17g", k, s.sigma[k], sigma[k]);
  ck_certificate(a, &s, 1e-13, 1e-9);
  for (int k = 0; k < 150; k++) {
    const double part = sigma[k] / sigma[0];
    if (fabs(part / 1e-5 - 1) > 1e-6) ck_assert_int_eq(k<s.present, part> 1e-5);
    if (fabs(part / 1e-6 - 1) > 1e-6) ck_assert_int_eq(k<s.unsure, part> 1e-6);
  }
  nps_svd_free(&s);
  free(a);
}
END_TEST

START_TEST(deficient_rank) {
  const double sigma[3] = {5, 2, 0.5};
  double *a = plant(90, 70, 3, sigma, 3);
  for (int method = NPS_SVD_AUTO; method <= NPS_SVD_LAPACK; method++) {
    if (method == NPS_SVD_RANDOMISED) continue;
    nps_svd_t s = factorise(a, 90, 70, (nps_svd_options_t){.method = (nps_svd_method_t)method});
    ck_assert_int_eq(s.present, 3);
    for (int k = 0; k < 70; k++) ck_assert(fabs(s.sigma[k] - (k < 3 ? sigma[k] : 0)) < 1e-13);
    ck_certificate(a, &s, 1e-14, 1e-13);
    nps_svd_free(&s);
  }
  free(a);
}
END_TEST

START_TEST(zeros_have_no_direction) {
  double *a = nps_xcalloc(80 * 120, sizeof *a);
  for (int method = NPS_SVD_AUTO; method <= NPS_SVD_LAPACK; method++) {
    nps_svd_t s = factorise(a, 80, 120, (nps_svd_options_t){.method = (nps_svd_method_t)method, .leading = 4});
    ck_assert_int_eq(s.present, 0);
    ck_assert(s.norm == 0 && s.sigma[0] == 0 && s.residual == 0);
    nps_svd_free(&s);
  }
  free(a);
}
END_TEST

START_TEST(one_huge_value) {
  double sigma[60];
  for (int k = 0; k < 60; k++) sigma[k] = k == 0 ? 1e8 : 1 + 0.01 * (60 - k);
  double *a = plant(60, 60, 60, sigma, 9);
  nps_svd_t s = factorise(a, 60, 60, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  for (int k = 0; k < 60; k++) ck_assert(fabs(s.sigma[k] - sigma[k]) <= 1e-6);
  ck_assert_int_eq(s.present, 1);
  ck_assert_int_eq(s.unsure, 1);
  nps_svd_free(&s);
  free(a);
}
END_TEST

/* Values that are 0 to rounding come in any order. */
START_TEST(values_below_the_rank_are_in_order) {
  const double sigma[2] = {2, 1};
  double *a = plant(300, 400, 2, sigma, 12);
  nps_svd_t s = factorise(a, 300, 400, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  for (int64_t k = 1; k < s.count; k++) ck_assert(s.sigma[k] <= s.sigma[k - 1]);
  ck_assert_int_eq(s.present, 2);
  ck_certificate(a, &s, 1e-14, 1e-13);
  nps_svd_free(&s);
  free(a);
}
END_TEST

/* Groups of equal values: their spaces are found, whichever vectors within them. */
START_TEST(clusters_of_values) {
  double sigma[90];
  for (int k = 0; k < 90; k++) sigma[k] = k < 30 ? 2 : k < 60 ? 2 - 1e-13 : 1e-4;
  double *a = plant(90, 140, 90, sigma, 17);
  nps_svd_t s = factorise(a, 90, 140, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  ck_assert_int_eq(s.method, NPS_SVD_GRAM);
  for (int k = 0; k < 90; k++) ck_assert(fabs(s.sigma[k] - sigma[k]) <= 1e-13);
  ck_certificate(a, &s, 1e-13, 1e-9);
  nps_svd_free(&s);
  free(a);
}
END_TEST

/* The last two have squares beyond float64. */
static const double scales[] = {1e-30, 1e30, 1e-37, 1e37, 1e-170, 1e170};

START_TEST(scale_does_not_matter) {
  const double scale = scales[_i];
  double *a = fill(100 * 140, 6), *b = nps_xcalloc(100 * 140, sizeof *b), sigma[100];
  for (int i = 0; i < 100 * 140; i++) b[i] = scale * a[i];
  for (int approximate = 0; approximate < 2; approximate++) {
    const nps_svd_options_t options = {.leading = approximate ? 6 : 0, .approximate = approximate};
    nps_svd_t s = factorise(a, 100, 140, options), t = factorise(b, 100, 140, options);
    ck_assert_int_eq(s.method, approximate ? NPS_SVD_RANDOMISED : NPS_SVD_GRAM);
    ck_assert_int_eq(t.method, s.method);
    ck_assert(fabs(t.norm / scale / s.norm - 1) < 1e-12);
    ck_assert(t.orthogonality < 1e-9 && (approximate || t.residual < 1e-13));
    for (int k = 0; k < s.count; k++) ck_assert(fabs(t.sigma[k] / scale - s.sigma[k]) <= 1e-6 * s.sigma[0]);
    nps_svd_free(&s);
    nps_svd_free(&t);
  }
  nps_svd_t all = factorise(a, 100, 140, (nps_svd_options_t){.method = NPS_SVD_LAPACK});
  ck_assert(nps_svd_values(b, 100, 140, "b", sigma) == NPS_OK);
  for (int k = 0; k < 100; k++) ck_assert(fabs(sigma[k] / scale - all.sigma[k]) <= 1e-10 * all.sigma[0]);
  nps_svd_free(&all);
  free(a);
  free(b);
}
END_TEST

/* ---- leading triples ---- */

START_TEST(leading_triples_are_exact_unless_told) {
  double *a = fill(200 * 260, 21);
  nps_svd_t all = factorise(a, 200, 260, (nps_svd_options_t){.method = NPS_SVD_LAPACK});
  nps_svd_t s = factorise(a, 200, 260, (nps_svd_options_t){.leading = 20});
  ck_assert_int_eq(s.count, 20);
  ck_assert_int_eq(s.method, NPS_SVD_GRAM);
  for (int k = 0; k < 20; k++) {
    double dot = 0;
    for (int i = 0; i < 200; i++) dot += s.u[k * 200 + i] * all.u[k * 200 + i];
    ck_assert(fabs(s.sigma[k] - all.sigma[k]) <= 1e-12 * all.sigma[0]);
    ck_assert_msg(fabs(fabs(dot) - 1) < 1e-9, "%d: %g", k, dot);
  }
  nps_svd_free(&s);
  nps_svd_free(&all);
  free(a);
}
END_TEST

static double energy_of(const nps_svd_t *s, int count) {
  double sum = 0;
  for (int k = 0; k < count; k++) sum += s->sigma[k] * s->sigma[k];
  return sum;
}

/* A spectrum that falls, and pure noise, whose leading triples hardly stand out. */
START_TEST(randomised_triples_capture_what_they_say) {
  double sigma[300], *a;
  for (int k = 0; k < 300; k++) sigma[k] = pow(k + 1, -1);
  a = _i == 0 ? plant(300, 400, 300, sigma, 2) : fill(300 * 400, 33);
  nps_svd_t all = factorise(a, 300, 400, (nps_svd_options_t){.method = NPS_SVD_LAPACK});
  nps_svd_t s = factorise(a, 300, 400, (nps_svd_options_t){.leading = 24, .approximate = true});
  const double captured = energy_of(&s, 24) / energy_of(&all, 24);
  ck_assert_int_eq(s.method, NPS_SVD_RANDOMISED);
  ck_assert_msg(captured >= 0.99 && captured <= 1 + 1e-12, "captured %g", captured);
  ck_assert_msg(s.energy >= 0.99 && s.energy <= captured + 0.005, "said %g, captured %g", s.energy, captured);
  ck_assert(s.orthogonality < 1e-12);
  nps_svd_free(&s);
  nps_svd_free(&all);
  free(a);
}
END_TEST

static char noted[256];

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  snprintf(noted, sizeof noted, "%s", text);
}

START_TEST(what_misses_its_tolerance_is_computed_again) {
  double *a = fill(300 * 400, 33);
  nps_note_set_sink(keep_note, NULL);
  nps_svd_t s = factorise(
      a, 300, 400, (nps_svd_options_t){.leading = 24, .approximate = true, .energy = 1 - 1e-12, .name = "a.weight"});
  ck_assert_int_eq(s.method, NPS_SVD_GRAM);
  ck_assert_int_eq(s.failed, NPS_SVD_RANDOMISED);
  ck_assert_ptr_nonnull(strstr(noted, "a.weight: randomised decomposition outside of its tolerance"));
  ck_assert_ptr_nonnull(strstr(noted, "gram is next"));
  nps_svd_free(&s);
  const nps_svd_options_t impossible = {.residual = 1e-20, .name = "a.weight"};
  ck_assert(nps_svd_compute(a, 300, 400, &impossible, &s) == NPS_ERR_RUNTIME);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "a.weight"));
  nps_problem_clear();
  nps_svd_free(&s);
  free(a);
}
END_TEST

START_TEST(what_is_not_finite_is_named) {
  double *a = fill(30 * 40, 1);
  nps_svd_t s;
  a[3 * 40 + 5] = NAN;
  ck_assert(nps_svd_compute(a, 30, 40, &(nps_svd_options_t){.name = "a.weight"}, &s) == NPS_ERR_INPUT);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "a.weight: NaN at row 3, column 5"));
  nps_problem_clear();
  nps_svd_free(&s);
  a[3 * 40 + 5] = -INFINITY;
  ck_assert(nps_svd_compute(a, 30, 40, &(nps_svd_options_t){0}, &s) == NPS_ERR_INPUT);
  nps_problem_clear();
  nps_svd_free(&s);
  free(a);
}
END_TEST

START_TEST(what_lapack_cannot_count_is_refused) {
  nps_svd_t s;
  double none = 0;
  ck_assert(nps_svd_compute(&none, 23001, 23001, &(nps_svd_options_t){.name = "big"}, &s) == NPS_ERR_RUNTIME);
  ck_assert_ptr_nonnull(strstr(nps_problem_text(0), "big is 23001 × 23001"));
  nps_problem_clear();
  nps_svd_free(&s);
}
END_TEST

START_TEST(polar_factors_are_orthonormal) {
  double sigma[20], *x, *g = nps_xcalloc(20 * 20, sizeof *g);
  for (int k = 0; k < 20; k++) sigma[k] = k < 18 ? 1 + k : 1e-9;
  x = plant(20, 90, 20, sigma, 4);
  ck_assert(nps_svd_polar(20, 90, x) == NPS_OK);
  nps_svd_t s = factorise(x, 20, 90, (nps_svd_options_t){.method = NPS_SVD_LAPACK});
  for (int k = 0; k < 20; k++) ck_assert(fabs(s.sigma[k] - (k < 18)) < 1e-12);
  nps_svd_free(&s);
  free(x);
  free(g);
}
END_TEST

START_TEST(values_alone) {
  double *a = fill(90 * 130, 8), sigma[90];
  nps_svd_t s = factorise(a, 90, 130, (nps_svd_options_t){.method = NPS_SVD_LAPACK});
  ck_assert(nps_svd_values(a, 90, 130, "a", sigma) == NPS_OK);
  for (int k = 0; k < 90; k++) ck_assert(fabs(sigma[k] - s.sigma[k]) <= 1e-10 * s.sigma[0]);
  double *t = nps_xcalloc(90 * 130, sizeof *t);
  for (int i = 0; i < 90; i++)
    for (int j = 0; j < 130; j++) t[j * 90 + i] = a[i * 130 + j];
  ck_assert(nps_svd_values(t, 130, 90, "t", sigma) == NPS_OK);
  for (int k = 0; k < 90; k++) ck_assert(fabs(sigma[k] - s.sigma[k]) <= 1e-10 * s.sigma[0]);
  nps_svd_free(&s);
  free(a);
  free(t);
}
END_TEST

START_TEST(dearer_methods_are_dearer) {
  const nps_svd_options_t leading = {.leading = 64, .approximate = true}, all = {0};
  ck_assert_int_eq(nps_svd_choose(2048, 2048, &leading), NPS_SVD_RANDOMISED);
  ck_assert_int_eq(nps_svd_choose(2048, 2048, &all), NPS_SVD_GRAM);
  ck_assert_int_eq(nps_svd_choose(20, 2048, &all), NPS_SVD_LAPACK);
  for (int n = 256; n <= 8192; n *= 2) {
    ck_assert(nps_svd_seconds(n, n, 64, NPS_SVD_RANDOMISED) < nps_svd_seconds(n, n, 64, NPS_SVD_GRAM));
    ck_assert(nps_svd_seconds(n, n, 0, NPS_SVD_GRAM) < nps_svd_seconds(n, n, 0, NPS_SVD_LAPACK));
    ck_assert(nps_svd_seconds(n, 4 * n, 0, NPS_SVD_GRAM) == nps_svd_seconds(4 * n, n, 0, NPS_SVD_GRAM));
    ck_assert(nps_svd_bytes(n, n, 64, NPS_SVD_RANDOMISED) > 0);
  }
}
END_TEST

int main(void) {
  nps_blas_start();
  TCase *cases = tcase_create("svd");
  tcase_set_timeout(cases, 60);
  tcase_add_loop_test(cases, all_triples_of_any_shape, 0, 16);
  tcase_add_loop_test(cases, planted_values_are_found, 1, 5);
  tcase_add_test(cases, deficient_rank);
  tcase_add_test(cases, zeros_have_no_direction);
  tcase_add_test(cases, one_huge_value);
  tcase_add_test(cases, values_below_the_rank_are_in_order);
  tcase_add_test(cases, clusters_of_values);
  tcase_add_loop_test(cases, scale_does_not_matter, 0, 6);
  tcase_add_test(cases, leading_triples_are_exact_unless_told);
  tcase_add_loop_test(cases, randomised_triples_capture_what_they_say, 0, 2);
  tcase_add_test(cases, what_misses_its_tolerance_is_computed_again);
  tcase_add_test(cases, what_is_not_finite_is_named);
  tcase_add_test(cases, what_lapack_cannot_count_is_refused);
  tcase_add_test(cases, polar_factors_are_orthonormal);
  tcase_add_test(cases, values_alone);
  tcase_add_test(cases, dearer_methods_are_dearer);
  return run_tests("svd", cases);
}
