/* CMA-ES by ask and tell (Hansen, arXiv 1604.00772; active weights). */
#include "cmaes_internal.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Eigenvalues below this part of the largest are raised to it. */
#define LEAST_EIGENVALUE 1e-14

int nps_fitness_compare(const nps_fitness_value_t *a, const nps_fitness_value_t *b) {
  const bool bad_a = a->failed || !isfinite(a->primary), bad_b = b->failed || !isfinite(b->primary);
  if (bad_a || bad_b) return bad_a - bad_b;
  if (a->primary != b->primary) return a->primary < b->primary ? -1 : 1;
  const double x = isnan(a->secondary) ? INFINITY : a->secondary, y = isnan(b->secondary) ? INFINITY : b->secondary;
  return x == y ? 0 : x < y ? -1 : 1;
}

static bool has_failed(const nps_fitness_value_t *value) { return value->failed || !isfinite(value->primary); }

/* ---- a run ---- */

static size_t matrix_size(const nps_cmaes_t *c) {
  const size_t n = (size_t)c->options.variables;
  return c->diagonal ? n : n * n;
}

/* Sets a matrix to I. */
static void set_identity(const nps_cmaes_t *c, double *matrix) {
  const int n = c->options.variables;
  memset(matrix, 0, matrix_size(c) * sizeof *matrix);
  for (int i = 0; i < n; i++) matrix[c->diagonal ? (size_t)i : (size_t)i * (size_t)n + (size_t)i] = 1;
}

/* Begins a run, the first or a restart, with everything fresh but the counts. */
static void begin_run(nps_cmaes_t *c, int lambda) {
  const size_t n = (size_t)c->options.variables;
  nps_cmaes_params_set(&c->params, c->options.variables, lambda, c->diagonal);
  c->generation = 0;
  c->sigma = c->options.sigma;
  c->condition = 1;
  c->decomposed = 0;
  c->asked = false;
  c->watch = (nps_cmaes_watch_t){0};
  memcpy(c->mean, c->options.start, n * sizeof *c->mean);
  memset(c->path_sigma, 0, n * sizeof *c->path_sigma);
  memset(c->path_c, 0, n * sizeof *c->path_c);
  set_identity(c, c->covariance);
  set_identity(c, c->root);
  c->z = nps_xrealloc(c->z, (size_t)lambda * n, sizeof *c->z);
  c->y = nps_xrealloc(c->y, (size_t)lambda * n, sizeof *c->y);
}

static double *copy(const double *x, int n) {
  double *out = nps_xcalloc((size_t)n, sizeof *out);
  if (x) memcpy(out, x, (size_t)n * sizeof *out);
  return out;
}

nps_cmaes_t *nps_cmaes_new(const nps_cmaes_options_t *options) {
  nps_cmaes_t *c = nps_xcalloc(1, sizeof *c);
  const int n = options->variables;
  c->options = *options;
  c->options.start = copy(options->start, n);
  c->options.lower = options->lower ? copy(options->lower, n) : NULL;
  c->options.upper = options->upper ? copy(options->upper, n) : NULL;
  c->diagonal = options->kind != NPS_CMAES_FULL || n > NPS_CMAES_MAX_FULL;
  c->mean = copy(NULL, n);
  c->path_sigma = copy(NULL, n);
  c->path_c = copy(NULL, n);
  c->covariance = nps_xcalloc(matrix_size(c), sizeof *c->covariance);
  c->root = nps_xcalloc(matrix_size(c), sizeof *c->root);
  begin_run(c, options->population ? options->population : 4 + (int)floor(3 * log(n)));
  return c;
}

void nps_cmaes_free(nps_cmaes_t *c) {
  if (!c) return;
  free((double *)c->options.start);
  free((double *)c->options.lower);
  free((double *)c->options.upper);
  free(c->params.weight);
  free(c->mean);
  free(c->path_sigma);
  free(c->path_c);
  free(c->covariance);
  free(c->root);
  free(c->z);
  free(c->y);
  free(c);
}

/* ---- asking ---- */

/* A = B diag(D) Bᵀ from eigenvalues D² and eigenvectors, which are the rows of b. */
static void set_root(nps_cmaes_t *c, const double *b, const double *d) {
  const int n = c->params.n;
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      double sum = 0;
      for (int k = 0; k < n; k++) sum += b[k * n + i] * d[k] * b[k * n + j];
      c->root[i * n + j] = c->root[j * n + i] = sum;
    }
}

/* The symmetric root of C does not depend on the signs and the order of eigenvectors. */
static nps_err_t decompose(nps_cmaes_t *c) {
  const int n = c->params.n;
  double *b = nps_xcalloc((size_t)n * (size_t)n, sizeof *b), *d = nps_xcalloc((size_t)n, sizeof *d);
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) b[i * n + j] = (c->covariance[i * n + j] + c->covariance[j * n + i]) / 2;
  nps_err_t err = nps_dsyev(n, b, d);
  if (err == NPS_OK) {
    const double most = d[n - 1], least = LEAST_EIGENVALUE * most;
    c->condition = d[0] > 0 ? most / d[0] : INFINITY;
    for (int i = 0; i < n; i++) d[i] = sqrt(d[i] < least ? least : d[i]);
    set_root(c, b, d);
  }
  free(b);
  free(d);
  return err;
}

static void take_diagonal_root(nps_cmaes_t *c) {
  double most = 0, least = INFINITY;
  for (int i = 0; i < c->params.n; i++) {
    most = fmax(most, c->covariance[i]);
    least = fmin(least, c->covariance[i]);
  }
  c->condition = least > 0 ? most / least : INFINITY;
  for (int i = 0; i < c->params.n; i++) c->root[i] = sqrt(fmax(c->covariance[i], LEAST_EIGENVALUE * most));
}

static nps_err_t update_root(nps_cmaes_t *c) {
  if (c->options.kind == NPS_CMAES_RANDOM) return NPS_OK;
  if (c->diagonal) {
    take_diagonal_root(c);
    return NPS_OK;
  }
  if (c->generation - c->decomposed < c->params.interval) return NPS_OK;
  c->decomposed = c->generation;
  return decompose(c);
}

static double draw(const nps_cmaes_t *c, int candidate, int index) {
  if (c->draw) return c->draw(c->draw_ctx, c->generation, candidate, index);
  return nps_cmaes_normal(c->options.seed, c->options.stream, c->restart, c->generation, candidate, index);
}

/* y = A z */
static void transform(const nps_cmaes_t *c, const double *z, double *y) {
  const int n = c->params.n;
  for (int i = 0; i < n; i++) {
    if (c->diagonal) {
      y[i] = c->root[i] * z[i];
      continue;
    }
    double sum = 0;
    for (int j = 0; j < n; j++) sum += c->root[i * n + j] * z[j];
    y[i] = sum;
  }
}

static double clip(const nps_cmaes_t *c, int i, double x) {
  if (c->options.lower && x < c->options.lower[i]) return c->options.lower[i];
  if (c->options.upper && x > c->options.upper[i]) return c->options.upper[i];
  return x;
}

nps_err_t nps_cmaes_ask(nps_cmaes_t *c, double *x) {
  const int n = c->params.n;
  if (!c->asked) NPS_TRY(update_root(c));
  c->asked = true;
  for (int k = 0; k < c->params.lambda; k++) {
    double *z = c->z + (size_t)k * (size_t)n, *y = c->y + (size_t)k * (size_t)n;
    for (int i = 0; i < n; i++) z[i] = draw(c, k, i);
    transform(c, z, y);
    for (int i = 0; i < n; i++) x[(size_t)k * (size_t)n + (size_t)i] = clip(c, i, c->mean[i] + c->sigma * y[i]);
  }
  return NPS_OK;
}

/* ---- telling ---- */

/* Candidates best first; equals in the order in which they were drawn. */
static void rank(const nps_cmaes_t *c, const nps_fitness_value_t *values, int *order) {
  for (int k = 0; k < c->params.lambda; k++) {
    int at = k;
    while (at > 0 && nps_fitness_compare(&values[k], &values[order[at - 1]]) < 0) {
      order[at] = order[at - 1];
      at--;
    }
    order[at] = k;
  }
}

/* Weighted mean of the μ best rows of y or z. */
static void recombine(const nps_cmaes_t *c, const double *rows, const int *order, double *out) {
  const int n = c->params.n;
  for (int i = 0; i < n; i++) {
    double sum = 0;
    for (int k = 0; k < c->params.mu; k++) sum += c->params.weight[k] * rows[(size_t)order[k] * (size_t)n + (size_t)i];
    out[i] = sum;
  }
}

static double norm(const double *x, int n) {
  double sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * x[i];
  return sqrt(sum);
}

/* Moves both paths. @return h: whether ‖pσ‖ is not too long */
static bool move_paths(nps_cmaes_t *c, const double *y_mean, const double *z_mean) {
  const nps_cmaes_params_t *p = &c->params;
  const double s = sqrt(p->c_sigma * (2 - p->c_sigma) * p->mu_eff), r = sqrt(p->c_c * (2 - p->c_c) * p->mu_eff);
  for (int i = 0; i < p->n; i++) c->path_sigma[i] = (1 - p->c_sigma) * c->path_sigma[i] + s * z_mean[i];
  const double length = norm(c->path_sigma, p->n) / sqrt(1 - pow(1 - p->c_sigma, 2.0 * (c->generation + 1)));
  const bool h = length < (1.4 + 2.0 / (p->n + 1)) * p->chi;
  for (int i = 0; i < p->n; i++) c->path_c[i] = (1 - p->c_c) * c->path_c[i] + (h ? r * y_mean[i] : 0);
  return h;
}

/* v_i: positive weights as they are; negative ones by the length of z, none for what failed. */
static void scale_weights(const nps_cmaes_t *c, const nps_fitness_value_t *values, const int *order, double *v) {
  const nps_cmaes_params_t *p = &c->params;
  for (int k = 0; k < p->lambda; k++) {
    v[k] = p->weight[k];
    if (k < p->mu) continue;
    const double length = norm(c->z + (size_t)order[k] * (size_t)p->n, p->n);
    v[k] = has_failed(&values[order[k]]) || length == 0 ? 0 : v[k] * p->n / (length * length);
  }
}

/* Σ v_k y_ki y_kj */
static double outer(const nps_cmaes_t *c, const int *order, const double *v, int i, int j) {
  const int n = c->params.n;
  double sum = 0;
  for (int k = 0; k < c->params.lambda; k++) {
    const double *y = c->y + (size_t)order[k] * (size_t)n;
    sum += v[k] * y[i] * y[j];
  }
  return sum;
}

static void adapt_covariance(nps_cmaes_t *c, const nps_fitness_value_t *values, const int *order, bool h) {
  const nps_cmaes_params_t *p = &c->params;
  double *v = nps_xcalloc((size_t)p->lambda, sizeof *v), weight_sum = 0;
  scale_weights(c, values, order, v);
  for (int k = 0; k < p->lambda; k++)
    weight_sum += k >= p->mu && v[k] == 0 ? 0 : p->weight[k]; /* a weight that is not used does not count */
  const double decay = 1 - p->c_1 - p->c_mu * weight_sum + (h ? 0 : p->c_1 * p->c_c * (2 - p->c_c));
  for (int i = 0; i < p->n; i++)
    for (int j = c->diagonal ? i : 0; j <= i; j++) {
      const size_t at = c->diagonal ? (size_t)i : (size_t)i * (size_t)p->n + (size_t)j;
      const double next =
          decay * c->covariance[at] + p->c_1 * c->path_c[i] * c->path_c[j] + p->c_mu * outer(c, order, v, i, j);
      c->covariance[at] = next;
      if (!c->diagonal) c->covariance[(size_t)j * (size_t)p->n + (size_t)i] = next;
    }
  free(v);
}

static void learn(nps_cmaes_t *c, const nps_fitness_value_t *values, const int *order) {
  const nps_cmaes_params_t *p = &c->params;
  double *y_mean = nps_xcalloc((size_t)p->n, sizeof *y_mean), *z_mean = nps_xcalloc((size_t)p->n, sizeof *z_mean);
  recombine(c, c->y, order, y_mean);
  recombine(c, c->z, order, z_mean);
  for (int i = 0; i < p->n; i++) c->mean[i] += c->sigma * y_mean[i];
  const bool h = move_paths(c, y_mean, z_mean);
  adapt_covariance(c, values, order, h);
  c->sigma *= exp(fmin(1, p->c_sigma / p->d_sigma * (norm(c->path_sigma, p->n) / p->chi - 1)));
  free(y_mean);
  free(z_mean);
}

static bool all_alike(const nps_cmaes_t *c, const nps_fitness_value_t *values, const int *order) {
  return nps_fitness_compare(&values[order[0]], &values[order[c->params.lambda - 1]]) == 0;
}

void nps_cmaes_tell(nps_cmaes_t *c, const nps_fitness_value_t *values) {
  int *order = nps_xcalloc((size_t)c->params.lambda, sizeof *order);
  rank(c, values, order);
  const bool all_failed = has_failed(&values[order[0]]);
  if (c->options.kind != NPS_CMAES_RANDOM) {
    if (all_failed)
      c->sigma /= 2;
    else if (!all_alike(c, values, order))
      learn(c, values, order);
  }
  c->generation++;
  c->told++;
  c->evaluations += c->params.lambda;
  c->asked = false;
  nps_cmaes_observe(c, values, order, all_failed);
  free(order);
  const nps_cmaes_stop_t stop = nps_cmaes_check(c);
  if (stop == NPS_CMAES_STOP_NONE) return;
  if (!nps_cmaes_may_restart(c, stop)) {
    c->stop = stop;
    return;
  }
  c->restart++;
  begin_run(c, 2 * c->params.lambda);
}

/* ---- what is known ---- */

int nps_cmaes_population(const nps_cmaes_t *c) { return c->params.lambda; }

nps_cmaes_stop_t nps_cmaes_stopped(const nps_cmaes_t *c) { return c->stop; }

int nps_cmaes_generation(const nps_cmaes_t *c) { return c->told; }

int64_t nps_cmaes_evaluations(const nps_cmaes_t *c) { return c->evaluations; }

int nps_cmaes_restarts(const nps_cmaes_t *c) { return c->restart; }

double nps_cmaes_sigma(const nps_cmaes_t *c) { return c->sigma; }

void nps_cmaes_mean(const nps_cmaes_t *c, double *mean) {
  for (int i = 0; i < c->params.n; i++) mean[i] = clip(c, i, c->mean[i]);
}

void nps_cmaes_covariance(const nps_cmaes_t *c, double *covariance) {
  const size_t n = (size_t)c->params.n;
  memset(covariance, 0, n * n * sizeof *covariance);
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++)
      if (!c->diagonal || i == j) covariance[i * n + j] = c->covariance[c->diagonal ? i : i * n + j];
}

void nps_cmaes_set_draw(nps_cmaes_t *c, double (*function)(void *ctx, int generation, int candidate, int index),
                        void *ctx) {
  c->draw = function;
  c->draw_ctx = ctx;
}
