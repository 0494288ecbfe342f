/* Decompositions on grids of every shape, against plain loops and LAPACK on one rank. */
#include "../grids.h"
#include "nps/blas.h"
#include "nps/svd.h"

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A matrix with given singular values. */
static double *plant(int64_t rows, int64_t columns, int64_t count, const double *sigma) {
  double *u = random_values(count * rows, 5), *v = random_values(count * columns, 6);
  double *a = nps_xcalloc((size_t)(rows * columns), sizeof *a);
  ck_assert(nps_dorthonormalise(count, rows, u) == NPS_OK && nps_dorthonormalise(count, columns, v) == NPS_OK);
  for (int64_t i = 0; i < count * rows; i++) u[i] *= sigma[i / rows];
  multiply(true, false, rows, columns, count, 1, u, v, 0, a);
  free(u);
  free(v);
  return a;
}

/* Singular values by dgesdd on one rank. */
static double *values_of(const double *a, int64_t rows, int64_t columns) {
  const int64_t r = least(rows, columns);
  double *sigma = nps_xcalloc((size_t)r, sizeof *sigma), *copy = nps_xcalloc((size_t)(rows * columns), sizeof *copy);
  double *u = nps_xcalloc((size_t)(rows * r), sizeof *u), *v = nps_xcalloc((size_t)(r * columns), sizeof *v);
  memcpy(copy, a, (size_t)(rows * columns) * sizeof *copy);
  ck_assert(nps_dgesdd(rows, columns, copy, sigma, u, v) == NPS_OK);
  free(copy), free(u), free(v);
  return sigma;
}

static double defect(const double *x, int64_t k, int64_t n) {
  double sum = 0, *g = nps_xcalloc((size_t)(k * k) + 1, sizeof *g);
  multiply(false, true, k, k, n, 1, x, x, 0, g);
  for (int64_t i = 0; i < k * k; i++) sum += pow(g[i] - (i / k == i % k), 2);
  free(g);
  return sqrt(sum);
}

/* What a decomposition is worth, by plain loops. */
typedef struct {
  double residual, orthogonality,
      sigma; /* ‖A − UᵀSV‖/‖A‖; over present directions; the largest error as a part of σ1 */
} worth_t;

static worth_t worth_of(const double *a, const nps_dsvd_t *s) {
  const int64_t rows = s->svd.rows, columns = s->svd.columns, k = s->svd.count;
  double *u = collect(&s->u), *v = collect(&s->v), *rest = nps_xcalloc((size_t)(rows * columns), sizeof *rest);
  double *scaled = nps_xcalloc((size_t)(k * columns), sizeof *scaled), *sigma = values_of(a, rows, columns);
  worth_t worth = {0};
  double norm = 0, left = 0;
  memcpy(rest, a, (size_t)(rows * columns) * sizeof *rest);
  for (int64_t i = 0; i < k * columns; i++) scaled[i] = s->svd.sigma[i / columns] * v[i];
  multiply(true, false, rows, columns, k, -1, u, scaled, 1, rest);
  for (int64_t i = 0; i < rows * columns; i++) norm += a[i] * a[i], left += rest[i] * rest[i];
  worth.residual = norm > 0 ? sqrt(left / norm) : sqrt(left);
  worth.orthogonality = fmax(defect(u, s->svd.present, rows), defect(v, s->svd.present, columns));
  for (int64_t i = 0; i < k; i++) worth.sigma = fmax(worth.sigma, fabs(s->svd.sigma[i] - sigma[i]));
  if (sigma[0] > 0) worth.sigma /= sigma[0];
  free(u), free(v), free(rest), free(scaled), free(sigma);
  return worth;
}

static bool is_falling(const nps_svd_t *s) {
  for (int64_t k = 1; k < s->count; k++)
    if (!(s->sigma[k] <= s->sigma[k - 1])) return false;
  return true;
}

static nps_dsvd_t factorise(const nps_dmat_t *a, nps_svd_options_t options) {
  nps_dsvd_t s;
  ck_assert(everywhere(nps_svd_on_grid(a, &options, &s) == NPS_OK));
  return s;
}

/* Values, residual and orthogonality within bounds; the certificate and the exact check say the same as plain loops. */
static void ck_all_triples(const double *a, const nps_dmat_t *da, const nps_dsvd_t *s, double residual,
                           double orthogonality) {
  double exact_residual, exact_orthogonality;
  ck_assert(everywhere(nps_svd_verify_on_grid(da, s, &exact_residual, &exact_orthogonality) == NPS_OK));
  const worth_t worth = worth_of(a, s);
  const bool good = worth.residual <= residual && worth.orthogonality <= orthogonality && worth.sigma <= 1e-12;
  const bool same = fabs(exact_residual - worth.residual) <= 0.01 * worth.residual + 1e-15 &&
                    fabs(exact_orthogonality - worth.orthogonality) <= 0.01 * worth.orthogonality + 1e-14;
  const bool estimated = s->svd.residual <= 4 * worth.residual + 1e-15 &&
                         worth.residual <= 4 * s->svd.residual + 1e-15 &&
                         s->svd.orthogonality <= 8 * worth.orthogonality + 1e-14 &&
                         worth.orthogonality <= 8 * s->svd.orthogonality + 1e-14;
  if (!(good && same && estimated))
    fprintf(stderr, "residual %g %g %g orthogonality %g %g %g sigma %g\n", worth.residual, exact_residual,
            s->svd.residual, worth.orthogonality, exact_orthogonality, s->svd.orthogonality, worth.sigma);
  ck_assert(everywhere(good && same && estimated && is_falling(&s->svd)));
}

/* ---- all triples ---- */

static const struct {
  int64_t rows, columns;
} shapes[] = {{1, 1}, {1, 70}, {70, 1}, {7, 5}, {3, 60}, {60, 8}, {64, 64}, {45, 101}, {101, 45}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

static void ck_shape(const nps_grid_t *grid, int64_t rows, int64_t columns, nps_svd_method_t method) {
  double *a = random_values(rows * columns, 11);
  nps_dmat_t da = spread(grid, rows, columns, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.method = method});
  ck_assert(everywhere(s.svd.count == least(rows, columns) && s.svd.failed == NPS_SVD_AUTO));
  ck_all_triples(a, &da, &s, 1e-14, 1e-11);
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}

START_TEST(all_triples_of_any_shape) {
  ck_shape(grids[_i / SHAPES], shapes[_i % SHAPES].rows, shapes[_i % SHAPES].columns, NPS_SVD_AUTO);
}
END_TEST

START_TEST(the_last_resort) { ck_shape(grids[_i / 2], _i % 2 ? 31 : 12, _i % 2 ? 12 : 31, NPS_SVD_LAPACK); }
END_TEST

/* Condition numbers up to 1e10, wide and high. */
START_TEST(planted_values_are_found) {
  const bool high = _i % 2;
  const int exponent = 2 + 4 * (_i / 2 % 3);
  const int64_t rows = high ? 110 : 75, columns = high ? 75 : 110;
  double sigma[75];
  for (int k = 0; k < 75; k++) sigma[k] = 3 * pow(10, -exponent * (double)k / 74);
  double *a = plant(rows, columns, 75, sigma);
  nps_dmat_t da = spread(grids[_i / 6], rows, columns, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  ck_assert(everywhere(s.svd.method == NPS_SVD_GRAM));
  ck_all_triples(a, &da, &s, 1e-13, 1e-9);
  bool ok = true;
  for (int k = 0; k < 75; k++) {
    const double ratio = sigma[k] / sigma[0];
    if (fabs(ratio / 1e-5 - 1) > 1e-6) ok = ok && (k < s.svd.present) == (ratio > 1e-5);
    if (fabs(ratio / 1e-6 - 1) > 1e-6) ok = ok && (k < s.svd.unsure) == (ratio > 1e-6);
  }
  ck_assert(everywhere(ok));
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

/* Few directions; all values alike, whose order rounding decides; none; one that dwarfs the others. */
START_TEST(spectra_at_the_edges) {
  double sigma[40] = {0};
  const int kind = _i % 4;
  for (int k = 0; k < 40; k++) sigma[k] = kind == 0 ? (k < 3 ? 5 - k : 0) : kind == 1 ? 2 : kind == 2 ? 0 : k ? 1 : 1e8;
  double *a = plant(40, 66, 40, sigma);
  nps_dmat_t da = spread(grids[_i / 4], 40, 66, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.method = NPS_SVD_GRAM});
  const int64_t present[] = {3, 40, 0, 1};
  ck_assert(everywhere(s.svd.present == present[kind]));
  ck_all_triples(a, &da, &s, 1e-14, 1e-12);
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

/* Blocks of 64: most ranks have nothing of a small matrix. */
START_TEST(ranks_that_own_nothing) {
  nps_grid_t *grid = nps_grid_new(comm);
  const int64_t rows = _i ? 50 : 80, columns = _i ? 20 : 60;
  double *a = random_values(rows * columns, 2);
  nps_dmat_t da = spread(grid, rows, columns, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){0});
  ck_all_triples(a, &da, &s, 1e-14, 1e-11);
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  nps_grid_free(grid);
  free(a);
}
END_TEST

START_TEST(one_rank_gives_the_same_bits) {
  nps_comm_t *self = nps_comm_self();
  nps_grid_t *grid = nps_grid_new(_i ? self : NULL);
  double *a = random_values(60 * 90, 2);
  nps_dmat_t da = spread(grid, 60, 90, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){0});
  nps_svd_t plain;
  bool same = nps_svd_compute(a, 60, 90, &(nps_svd_options_t){0}, &plain) == NPS_OK;
  same = same && memcmp(s.u.local, plain.u, 60 * 60 * sizeof(double)) == 0 &&
         memcmp(s.v.local, plain.v, 60 * 90 * sizeof(double)) == 0;
  ck_assert(everywhere(same && !s.svd.u && !s.svd.v && s.svd.residual == plain.residual));
  nps_svd_free(&plain);
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  nps_grid_free(grid);
  nps_comm_free(self);
  free(a);
}
END_TEST

static bool is_same(const nps_dmat_t *a, const nps_dmat_t *b) {
  return memcmp(a->local, b->local, (size_t)(a->local_rows * a->local_columns) * sizeof(double)) == 0;
}

/* Whichever rank comes first. */
START_TEST(a_grid_gives_the_same_bits_again) {
  const nps_svd_options_t options[] = {{.method = NPS_SVD_GRAM},
                                       {.leading = 19, .method = NPS_SVD_GRAM},
                                       {.leading = 12, .approximate = true}};
  double *a = random_values(80 * 61, 21);
  nps_dmat_t da = spread(grids[_i / 3], 80, 61, a);
  nps_dsvd_t first = factorise(&da, options[_i % 3]);
  bool same = true;
  for (int k = 0; k < 40; k++) {
    nps_dsvd_t again = factorise(&da, options[_i % 3]);
    same = same && is_same(&first.u, &again.u) && is_same(&first.v, &again.v);
    nps_dsvd_free(&again);
  }
  ck_assert(everywhere(same));
  nps_dsvd_free(&first);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

/* ---- leading triples ---- */

START_TEST(leading_triples_are_exact_unless_told) {
  double *a = random_values(80 * 61, 21);
  nps_dmat_t da = spread(grids[_i / 2], 80, 61, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.leading = 19, .method = _i % 2 ? NPS_SVD_LAPACK : NPS_SVD_GRAM});
  const worth_t worth = worth_of(a, &s);
  double *sigma = values_of(a, 80, 61), left = 0, all = 0;
  for (int k = 0; k < 61; k++) all += sigma[k] * sigma[k], left += k < 19 ? 0 : sigma[k] * sigma[k];
  ck_assert(everywhere(s.svd.count == 19 && worth.sigma < 1e-13 && worth.orthogonality < 1e-11));
  ck_assert(everywhere(fabs(worth.residual - sqrt(left / all)) < 1e-12));
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(sigma);
  free(a);
}
END_TEST

START_TEST(randomised_triples_capture_what_they_say) {
  const int64_t rows = _i % 2 ? 170 : 140, columns = _i % 2 ? 140 : 170;
  double sigma[140], best = 0, captured = 0;
  for (int k = 0; k < 140; k++) sigma[k] = 1.0 / (k + 1);
  double *a = plant(rows, columns, 140, sigma);
  nps_dmat_t da = spread(grids[_i / 2], rows, columns, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.leading = 12, .approximate = true});
  const worth_t worth = worth_of(a, &s);
  for (int k = 0; k < 12; k++) best += sigma[k] * sigma[k], captured += s.svd.sigma[k] * s.svd.sigma[k];
  captured /= best;
  ck_assert(everywhere(s.svd.method == NPS_SVD_RANDOMISED && worth.orthogonality < 1e-11));
  ck_assert(everywhere(captured >= 0.99 && captured <= 1 + 1e-12));
  ck_assert(everywhere(s.svd.energy >= 0.99 && s.svd.energy <= captured + 0.005));
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

/* ---- errors ---- */

START_TEST(what_misses_its_tolerance_is_computed_again) {
  double *a = random_values(140 * 150, 33);
  nps_dmat_t da = spread(grids[_i], 140, 150, a);
  nps_dsvd_t s = factorise(&da, (nps_svd_options_t){.leading = 12, .approximate = true, .energy = 1 - 1e-12});
  ck_assert(everywhere(s.svd.method == NPS_SVD_GRAM && s.svd.failed == NPS_SVD_RANDOMISED));
  nps_dsvd_free(&s);
  const nps_err_t err = nps_svd_on_grid(&da, &(nps_svd_options_t){.residual = 1e-20, .name = "a.weight"}, &s);
  const bool here = nps_grid_ranks(da.grid) == 1 || nps_comm_rank(nps_grid_comm(da.grid)) == 0;
  const bool told = !here || (nps_problem_count() == 1 && strstr(nps_problem_text(0), "a.weight"));
  nps_problem_clear();
  ck_assert(everywhere(err == NPS_ERR_RUNTIME && told && s.svd.failed == NPS_SVD_LAPACK));
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

START_TEST(what_is_not_finite_is_named) {
  double *a = random_values(30 * 40, 1);
  a[27 * 40 + 35] = NAN;
  nps_dmat_t da = spread(grids[_i], 30, 40, a);
  nps_dsvd_t s;
  const nps_err_t err = nps_svd_on_grid(&da, &(nps_svd_options_t){.name = "a.weight"}, &s);
  const bool here = nps_grid_ranks(da.grid) == 1 || nps_comm_rank(nps_grid_comm(da.grid)) == 0;
  const bool told =
      !here || (nps_problem_count() == 1 && strcmp(nps_problem_text(0), "a.weight: NaN at row 27, column 35") == 0);
  nps_problem_clear();
  ck_assert(everywhere(err == NPS_ERR_INPUT && told));
  nps_dsvd_free(&s);
  nps_dmat_free(&da);
  free(a);
}
END_TEST

/* ---- polar factors ---- */

/* X = PDQᵀ → PQᵀ over present directions: orthonormal to 1e-9, and XᵀPQᵀ is symmetric. */
START_TEST(polar_factors_are_nearest) {
  double sigma[20];
  for (int k = 0; k < 20; k++) sigma[k] = k < 18 ? 1 + k : 1e-9;
  double *x = plant(20, 47, 20, sigma);
  double *s = nps_xcalloc(47 * 47, sizeof *s);
  nps_dmat_t dx = spread(grids[_i], 20, 47, x);
  ck_assert(everywhere(nps_svd_polar_on_grid(&dx) == NPS_OK));
  double *p = collect(&dx), *values = values_of(p, 20, 47), worst = 0, skew = 0;
  for (int k = 0; k < 20; k++) worst = fmax(worst, fabs(values[k] - (k < 18)));
  multiply(true, false, 47, 47, 20, 1, x, p, 0, s);
  for (int i = 0; i < 47; i++)
    for (int j = 0; j < i; j++) skew = fmax(skew, fabs(s[i * 47 + j] - s[j * 47 + i]));
  ck_assert(everywhere(worst < 1e-12 && skew < 1e-8));
  free(x), free(s), free(p), free(values);
  nps_dmat_free(&dx);
}
END_TEST

/* ---- predictions ---- */

START_TEST(more_ranks_take_less_of_large_ones) {
  for (int64_t n = 1024; n <= 16384; n *= 2)
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
      const double fewer = nps_svd_grid_seconds(n, 2 * n, 0, NPS_SVD_GRAM, ranks);
      ck_assert(nps_svd_grid_seconds(n, 2 * n, 0, NPS_SVD_GRAM, 2 * ranks) < fewer);
      ck_assert(nps_svd_grid_seconds(2 * n, n, 0, NPS_SVD_GRAM, ranks) == fewer);
      for (nps_svd_method_t method = NPS_SVD_RANDOMISED; method <= NPS_SVD_LAPACK; method++) {
        const int64_t k = method == NPS_SVD_RANDOMISED ? n / 8 : 0;
        const int64_t more = nps_svd_grid_bytes(n, 2 * n, k, method, ranks);
        ck_assert(nps_svd_grid_bytes(n, 2 * n, k, method, 2 * ranks) < more);
      }
    }
  ck_assert(nps_svd_grid_seconds(700, 800, 0, NPS_SVD_GRAM, 1) == nps_svd_seconds(700, 800, 0, NPS_SVD_GRAM));
  ck_assert(nps_svd_grid_bytes(700, 800, 0, NPS_SVD_GRAM, 1) == nps_svd_bytes(700, 800, 0, NPS_SVD_GRAM));
  ck_assert(nps_svd_grid_seconds(64, 64, 0, NPS_SVD_GRAM, 4) > nps_svd_seconds(64, 64, 0, NPS_SVD_GRAM));
}
END_TEST

int main(int argc, char **argv) {
  nps_blas_start();
  start_mpi(&argc, &argv);
  make_grids(8);
  TCase *cases = tcase_create("dsvd");
  tcase_set_timeout(cases, 60);
  tcase_add_loop_test(cases, all_triples_of_any_shape, 0, SHAPES * grid_count);
  tcase_add_loop_test(cases, the_last_resort, 0, 2 * grid_count);
  tcase_add_loop_test(cases, planted_values_are_found, 0, 6 * grid_count);
  tcase_add_loop_test(cases, spectra_at_the_edges, 0, 4 * grid_count);
  tcase_add_loop_test(cases, ranks_that_own_nothing, 0, 2);
  tcase_add_loop_test(cases, one_rank_gives_the_same_bits, 0, 2);
  tcase_add_loop_test(cases, a_grid_gives_the_same_bits_again, 0, 3 * grid_count);
  tcase_add_loop_test(cases, leading_triples_are_exact_unless_told, 0, 2 * grid_count);
  tcase_add_loop_test(cases, randomised_triples_capture_what_they_say, 0, 2 * grid_count);
  tcase_add_loop_test(cases, what_misses_its_tolerance_is_computed_again, 0, grid_count);
  tcase_add_loop_test(cases, what_is_not_finite_is_named, 0, grid_count);
  tcase_add_loop_test(cases, polar_factors_are_nearest, 0, grid_count);
  tcase_add_test(cases, more_ranks_take_less_of_large_ones);
  const int64_t failed = run_tests_everywhere("dsvd", cases);
  free_grids();
  return end_mpi(failed);
}
