/* CMA-ES: the published run to ten digits, its constants, and what it does when the fitness is flat, noisy or missing. */
#include "../../src/cmaes/cmaes_internal.h"
#include "nps/blas.h"
#include "../nps_check.h"

#include <math.h>

enum { MOST = 64, ROOM = 4096 };

static double given_draw(void *ctx, int generation, int candidate, int index) {
  (void)ctx;
  return 2 * sin(1 + 7 * candidate + 3 * index + 11 * generation);
}

static double sphere(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static double ellipsoid(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += pow(10, 6.0 * i / (n - 1)) * x[i] * x[i];
  return sum;
}

static double rosenbrock(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i + 1 < n; i++) sum += 100 * pow(x[i] * x[i] - x[i + 1], 2) + pow(x[i] - 1, 2);
  return sum;
}

static double not_a_number(const double *x, int n) {
  (void)x;
  (void)n;
  return NAN;
}

static double flat(const double *x, int n) {
  (void)x;
  (void)n;
  return 7;
}

/* Fails for half of all candidates. */
static double half(const double *x, int n) { return x[0] > 0 ? NAN : sphere(x, n); }

typedef double function_t(const double *x, int n);

static nps_cmaes_t *begin(nps_cmaes_options_t options, double at) {
  static double start[MOST];
  for (int i = 0; i < options.variables; i++) start[i] = at;
  if (!options.start) options.start = start;
  return nps_cmaes_new(&options);
}

/* One generation. @return the best value */
static double step(nps_cmaes_t *c, function_t *f, int n) {
  static double x[ROOM];
  static nps_fitness_value_t values[ROOM];
  double best = INFINITY;
  ck_assert_int_le(nps_cmaes_population(c) * n, ROOM);
  ck_assert_int_eq(nps_cmaes_ask(c, x), NPS_OK);
  for (int k = 0; k < nps_cmaes_population(c); k++) {
    values[k] = (nps_fitness_value_t){.primary = f(x + k * n, n)};
    if (values[k].primary < best) best = values[k].primary;
  }
  nps_cmaes_tell(c, values);
  return best;
}

/* Runs until it stops or a target is reached. @return evaluations to the target, or 0 */
static int64_t solve(nps_cmaes_options_t options, function_t *f, double at, double target) {
  nps_cmaes_t *c = begin(options, at);
  double best = INFINITY;
  while (nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE && best > target) best = step(c, f, options.variables);
  const int64_t evaluations = best <= target ? nps_cmaes_evaluations(c) : 0;
  nps_cmaes_free(c);
  return evaluations;
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-10 * fabs(b) * 5; }

START_TEST(the_golden_run_holds) {
  const double expected[3][4] = {{2.46723742931, .724918238893, 1.04975281105, -.0171327786921},
                                 {2.56452620506, .464292166839, 1.03915325946, .0119895063533},
                                 {2.83360939859, 22.5445491184, 6.03395407403, -3.65653038031}};
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 5, .sigma = 2}, 3);
  double mean[5], covariance[25];
  int row = 0;
  nps_cmaes_set_draw(c, given_draw, NULL);
  for (int g = 1; g <= 20; g++) {
    step(c, ellipsoid, 5);
    if (g > 2 && g < 20) continue;
    nps_cmaes_mean(c, mean);
    nps_cmaes_covariance(c, covariance);
    const double found[4] = {nps_cmaes_sigma(c), mean[0], covariance[0], covariance[1]};
    for (int i = 0; i < 4; i++) ck_assert_msg(near(found[i], expected[row][i]), "generation %d: %.12g", g, found[i]);
    row++;
  }
  nps_cmaes_free(c);
}
END_TEST

START_TEST(the_constants_are_the_published_ones) {
  nps_cmaes_params_t p = {0};
  nps_cmaes_params_set(&p, 10, 10, false);
  ck_assert(fabs(p.mu_eff - 3.16729928) < 1e-8 && fabs(p.c_sigma - .28442859) < 1e-8);
  ck_assert(fabs(p.d_sigma - 1.28442859) < 1e-8 && fabs(p.c_c - .29499038) < 1e-8);
  ck_assert(fabs(p.c_1 - .015283825) < 1e-9 && fabs(p.c_mu - .023551777) < 1e-9);
  ck_assert(fabs(p.alpha - 1.64894571) < 1e-8);
  ck_assert(fabs(p.weight[0] - .456273) < 1e-6 && fabs(p.weight[9] + .549750) < 1e-6);
  nps_cmaes_params_set(&p, 10, 200, false);
  ck_assert(fabs(p.mu_eff - 52.60152859) < 1e-8 && fabs(p.d_sigma - 4.13946214) < 1e-8);
  ck_assert(fabs(p.c_mu - .51749892) < 1e-8 && fabs(p.alpha - .09109351) < 1e-8);
  free(p.weight);
}
END_TEST

START_TEST(asking_twice_gives_the_same) {
  double a[ROOM], b[ROOM];
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 6, .sigma = 1, .seed = 3}, 1);
  step(c, sphere, 6);
  const size_t bytes = (size_t)(nps_cmaes_population(c) * 6) * sizeof(double);
  ck_assert_int_eq(nps_cmaes_ask(c, a), NPS_OK);
  ck_assert_int_eq(nps_cmaes_ask(c, b), NPS_OK);
  ck_assert_mem_eq(a, b, bytes);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(seeds_and_streams_differ) {
  double x[3][ROOM];
  const nps_cmaes_options_t options[3] = {{.variables = 4, .sigma = 1, .seed = 1},
                                          {.variables = 4, .sigma = 1, .seed = 2},
                                          {.variables = 4, .sigma = 1, .seed = 1, .stream = 1}};
  for (int i = 0; i < 3; i++) {
    nps_cmaes_t *c = begin(options[i], 0);
    ck_assert_int_eq(nps_cmaes_ask(c, x[i]), NPS_OK);
    nps_cmaes_free(c);
  }
  for (int k = 0; k < 16; k++) ck_assert(x[0][k] != x[1][k] && x[0][k] != x[2][k] && x[1][k] != x[2][k]);
}
END_TEST

START_TEST(normal_numbers_are_normal) {
  enum { N = 200000 };
  double sum = 0, squares = 0, fourth = 0, products = 0, last = 0;
  for (int i = 0; i < N; i++) {
    const double z = nps_cmaes_normal(5, 1, 0, i / 1000, i % 100, i % 10 + i / 100 % 10 * 10);
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    products += z * last;
    last = z;
  }
  ck_assert(fabs(sum / N) < 0.01 && fabs(squares / N - 1) < 0.02);
  ck_assert(fabs(fourth / N - 3) < 0.15 && fabs(products / N) < 0.01);
}
END_TEST

START_TEST(bounds_hold_for_what_is_evaluated) {
  double x[ROOM], lower[3] = {-1, -1, -1}, upper[3] = {1, 1, 1}, mean[3];
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 3, .sigma = 3, .lower = lower, .upper = upper}, 0.5);
  bool clipped = false;
  for (int g = 0; g < 5; g++) {
    ck_assert_int_eq(nps_cmaes_ask(c, x), NPS_OK);
    for (int k = 0; k < 3 * nps_cmaes_population(c); k++) {
      ck_assert(x[k] >= -1 && x[k] <= 1);
      clipped |= fabs(x[k]) == 1;
    }
    step(c, sphere, 3);
  }
  nps_cmaes_mean(c, mean);
  for (int i = 0; i < 3; i++) ck_assert(fabs(mean[i]) <= 1);
  ck_assert(clipped);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(a_generation_that_fails_halves_the_step) {
  double mean[4];
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 1}, 2);
  step(c, not_a_number, 4);
  nps_cmaes_mean(c, mean);
  ck_assert(nps_cmaes_sigma(c) == 0.5 && mean[0] == 2 && nps_cmaes_generation(c) == 1);
  for (int g = 1; g < 20; g++) {
    ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_NONE);
    step(c, not_a_number, 4);
  }
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_FAILED);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(equal_candidates_change_nothing) {
  double mean[4], covariance[16];
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 1}, 2);
  int generations = 0;
  while (nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE) {
    step(c, flat, 4);
    generations++;
  }
  nps_cmaes_mean(c, mean);
  nps_cmaes_covariance(c, covariance);
  ck_assert(nps_cmaes_sigma(c) == 1 && mean[3] == 2 && covariance[0] == 1 && covariance[1] == 0);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_FLAT);
  ck_assert_int_eq(generations, 10 + 15); /* W, as nothing was ever better than the start: 10 + ⌈30·4/8⌉ */
  nps_cmaes_free(c);
}
END_TEST

START_TEST(failed_candidates_are_worst_and_teach_nothing) {
  double mean[4];
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 0.5}, 0.5);
  for (int g = 0; g < 150 && nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE; g++) step(c, half, 4);
  nps_cmaes_mean(c, mean);
  ck_assert_msg(sphere(mean, 4) < 1e-6, "%g", sphere(mean, 4));
  nps_cmaes_free(c);
}
END_TEST

START_TEST(results_are_ordered) {
  const nps_fitness_value_t good = {.primary = 1, .secondary = 2}, better = {.primary = 1, .secondary = 1},
                            nan = {.primary = NAN}, failed = {.failed = true, .primary = -5};
  ck_assert(nps_fitness_compare(&better, &good) < 0 && nps_fitness_compare(&good, &better) > 0);
  ck_assert(nps_fitness_compare(&good, &good) == 0 && nps_fitness_compare(&nan, &failed) == 0);
  ck_assert(nps_fitness_compare(&nan, &good) > 0 && nps_fitness_compare(&good, &failed) < 0);
}
END_TEST

START_TEST(budgets_end_a_search) {
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 1, .max_generations = 3}, 1);
  for (int g = 0; g < 3; g++) step(c, sphere, 4);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_GENERATIONS);
  nps_cmaes_free(c);
  c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 1, .max_evaluations = 9}, 1);
  step(c, sphere, 4);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_NONE);
  step(c, sphere, 4);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_EVALUATIONS);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(small_steps_end_a_search) {
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 3, .sigma = 1, .noisy = true}, 1);
  while (nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE) step(c, sphere, 3);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_TOLX);
  ck_assert(nps_cmaes_sigma(c) < 1e-2 && nps_cmaes_sigma(c) > 1e-8);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(patience_ends_a_search) {
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.kind = NPS_CMAES_RANDOM, .variables = 3, .sigma = 1, .patience = 4}, 0);
  while (nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE) step(c, sphere, 3);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_PATIENCE);
  nps_cmaes_free(c);
}
END_TEST

START_TEST(a_restart_doubles_the_population) {
  nps_cmaes_t *c = begin((nps_cmaes_options_t){.variables = 4, .sigma = 1, .restarts = 1}, 2);
  while (nps_cmaes_restarts(c) == 0) {
    ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_NONE);
    step(c, flat, 4);
  }
  ck_assert_int_eq(nps_cmaes_population(c), 16);
  ck_assert(nps_cmaes_sigma(c) == 1);
  while (nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE) step(c, flat, 4);
  ck_assert_int_eq(nps_cmaes_stopped(c), NPS_CMAES_STOP_FLAT);
  ck_assert_int_eq(nps_cmaes_restarts(c), 1);
  nps_cmaes_free(c);
}
END_TEST

/* Medians of evaluations to 1e-8 of PyPI cma 4.5 (tests/bench/cmaes_bench.py): ours may need a fifth more with fewer seeds. */
START_TEST(functions_are_solved_as_fast_as_elsewhere) {
  static const struct {
    const char *name;
    function_t *f;
    nps_cmaes_kind_t kind;
    double at, sigma;
    int64_t most;
  } cases[] = {{"sphere", sphere, NPS_CMAES_FULL, 1, 0.5, 2200},
               {"ellipsoid", ellipsoid, NPS_CMAES_FULL, 1, 0.5, 7000},
               {"rosenbrock", rosenbrock, NPS_CMAES_FULL, 0, 0.5, 8500},
               {"sphere, sep", sphere, NPS_CMAES_SEP, 1, 0.5, 2400}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int solved = 0;
    for (uint64_t seed = 1; seed <= 5; seed++) {
      const int64_t used = solve(
          (nps_cmaes_options_t){
              .kind = cases[i].kind, .variables = 10, .sigma = cases[i].sigma, .seed = seed, .max_generations = 20000},
          cases[i].f, cases[i].at, 1e-8);
      solved += used > 0 && used <= cases[i].most;
    }
    ck_assert_msg(solved >= 4, "%s: %d of 5 solved in time", cases[i].name, solved);
  }
}
END_TEST

START_TEST(eigenvectors_are_right) {
  double a[9] = {2, 1, 0, 1, 3, 1, 0, 1, 4}, copy[9], values[3];
  memcpy(copy, a, sizeof a);
  ck_assert_int_eq(nps_dsyev(3, a, values), NPS_OK);
  for (int k = 0; k < 3; k++)
    for (int i = 0; i < 3; i++) {
      double product = 0;
      for (int j = 0; j < 3; j++) product += copy[i * 3 + j] * a[k * 3 + j];
      ck_assert(fabs(product - values[k] * a[k * 3 + i]) < 1e-14);
    }
  ck_assert(values[0] < values[1] && values[1] < values[2]);
}
END_TEST

START_TEST(products_are_right) {
  const float a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 0, 2, -1, 3, 1};
  float c[4] = {1, 1, 1, 1}, d[4] = {0};
  nps_sgemm(true, 2, 2, 3, 1, a, 3, b, 3, 2, c, 2); /* B is [2][3] */
  const float with_transpose[4] = {1 + 6 + 2, -1 + 6 + 3 + 2, 4 + 12 + 2, -4 + 15 + 6 + 2};
  for (int i = 0; i < 4; i++) ck_assert_float_eq(c[i], with_transpose[i]);
  nps_sgemm(false, 2, 2, 3, 1, a, 3, b, 2, 0, d, 2); /* B is [3][2] */
  const float plain[4] = {1 + 4 + 9, 0 - 2 + 3, 4 + 10 + 18, 0 - 5 + 6};
  for (int i = 0; i < 4; i++) ck_assert_float_eq(d[i], plain[i]);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("cmaes");
  tcase_add_test(cases, the_golden_run_holds);
  tcase_add_test(cases, the_constants_are_the_published_ones);
  tcase_add_test(cases, asking_twice_gives_the_same);
  tcase_add_test(cases, seeds_and_streams_differ);
  tcase_add_test(cases, normal_numbers_are_normal);
  tcase_add_test(cases, bounds_hold_for_what_is_evaluated);
  tcase_add_test(cases, a_generation_that_fails_halves_the_step);
  tcase_add_test(cases, equal_candidates_change_nothing);
  tcase_add_test(cases, failed_candidates_are_worst_and_teach_nothing);
  tcase_add_test(cases, results_are_ordered);
  tcase_add_test(cases, budgets_end_a_search);
  tcase_add_test(cases, small_steps_end_a_search);
  tcase_add_test(cases, patience_ends_a_search);
  tcase_add_test(cases, a_restart_doubles_the_population);
  tcase_add_test(cases, functions_are_solved_as_fast_as_elsewhere);
  tcase_add_test(cases, eigenvectors_are_right);
  tcase_add_test(cases, products_are_right);
  return run_tests("cmaes", cases);
}
