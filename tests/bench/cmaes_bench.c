/* Evaluations that CMA-ES needs on a test function: cmaes_bench FUNCTION N POPULATION SEEDS full|sep X0 SIGMA0.
 * One line a seed: evaluations to 1e-8, counted at the end of the generation, or 0 where that was not reached. */
#include "nps/cmaes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TARGET 1e-8
#define MOST_EVALUATIONS 1000000

static double sphere(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static double ellipsoid(const double *x, int n, double condition) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += pow(condition, (double)i / (n - 1)) * x[i] * x[i];
  return sum;
}

static double ellipsoid6(const double *x, int n) { return ellipsoid(x, n, 1e6); }

static double ellipsoid3(const double *x, int n) { return ellipsoid(x, n, 1e3); }

static double cigar(const double *x, int n) { return x[0] * x[0] + 1e6 * sphere(x + 1, n - 1); }

static double powers(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += pow(fabs(x[i]), 2 + 10.0 * i / (n - 1));
  return sum;
}

static double rosenbrock(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i + 1 < n; i++) {
    const double a = x[i] * x[i] - x[i + 1], b = x[i] - 1;
    sum += 100 * a * a + b * b;
  }
  return sum;
}

static double rastrigin(const double *x, int n) {
  double sum = 10 * n;
  for (int i = 0; i < n; i++) sum += x[i] * x[i] - 10 * cos(6.283185307179586 * x[i]);
  return sum;
}

typedef double function_t(const double *x, int n);

static const struct {
  const char *name;
  function_t *function;
} functions[] = {{"sphere", sphere}, {"ellipsoid", ellipsoid6},  {"ellipsoid3", ellipsoid3}, {"cigar", cigar},
                 {"powers", powers}, {"rosenbrock", rosenbrock}, {"rastrigin", rastrigin}};

static function_t *find(const char *name) {
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
    if (strcmp(functions[i].name, name) == 0) return functions[i].function;
  return NULL;
}

static long long solve(const nps_cmaes_options_t *options, function_t *f) {
  nps_cmaes_t *c = nps_cmaes_new(options);
  const int lambda = nps_cmaes_population(c), n = options->variables;
  double *x = nps_xcalloc((size_t)(lambda * n), sizeof *x), best = INFINITY;
  nps_fitness_value_t *values = nps_xcalloc((size_t)lambda, sizeof *values);
  while (best > TARGET && nps_cmaes_stopped(c) == NPS_CMAES_STOP_NONE && nps_cmaes_ask(c, x) == NPS_OK) {
    for (int k = 0; k < lambda; k++) {
      values[k].primary = f(x + k * n, n);
      best = fmin(best, values[k].primary);
    }
    nps_cmaes_tell(c, values);
  }
  const long long used = best <= TARGET ? (long long)nps_cmaes_evaluations(c) : 0;
  nps_cmaes_free(c);
  free(values);
  free(x);
  return used;
}

int main(int argc, char **argv) {
  function_t *f = argc == 8 ? find(argv[1]) : NULL;
  const int n = f ? atoi(argv[2]) : 0;
  if (n < 2) {
    fprintf(stderr, "usage: cmaes_bench FUNCTION N POPULATION SEEDS full|sep X0 SIGMA0\n");
    return 2;
  }
  double *start = nps_xcalloc((size_t)n, sizeof *start);
  for (int i = 0; i < n; i++) start[i] = atof(argv[6]);
  for (int seed = 1; seed <= atoi(argv[4]); seed++)
    printf("%lld\n", solve(&(nps_cmaes_options_t){.kind = strcmp(argv[5], "sep") == 0 ? NPS_CMAES_SEP : NPS_CMAES_FULL,
                                                  .variables = n,
                                                  .population = atoi(argv[3]),
                                                  .sigma = atof(argv[7]),
                                                  .start = start,
                                                  .seed = (uint64_t)seed,
                                                  .max_evaluations = MOST_EVALUATIONS},
                           f));
  free(start);
  return 0;
}
