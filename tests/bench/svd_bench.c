/* Times and errors of singular value decompositions on one core: svd_bench FILE ROWS COLUMNS LEADING RUNS
 * FILE holds the matrix, float32 in rows. One line a method: name, median seconds of CPU time, largest error of σ / σ1 against dgesdd over
 * σ ≥ 1e-6·σ1, residual and orthogonality (exact ones), captured energy, predicted seconds. svd_bench.py makes the table. */
#include "nps/blas.h"
#include "nps/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern void sgesdd_(const char *jobz, const int *m, const int *n, float *a, const int *lda, float *s, float *u,
                    const int *ldu, float *vt, const int *ldvt, float *work, const int *lwork, int *iwork, int *info);

enum { MOST_RUNS = 32 };

static int64_t rows, columns, least;
static double *matrix, *exact;

/* Of this process, which has one thread: what else runs disturbs it little. */
static double cpu_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static void read_matrix(const char *path) {
  const size_t count = (size_t)(rows * columns);
  float *x = nps_xcalloc(count, sizeof *x);
  FILE *file = fopen(path, "rb");
  if (!file || fread(x, sizeof *x, count, file) != count) nps_fatal("%s: no %zu numbers", path, count);
  fclose(file);
  matrix = nps_xcalloc(count, sizeof *matrix);
  for (size_t i = 0; i < count; i++) matrix[i] = x[i];
  free(x);
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static double error_of(const double *sigma, int64_t count) {
  double worst = 0;
  for (int64_t k = 0; k < count && exact[k] >= 1e-6 * exact[0]; k++) worst = fmax(worst, fabs(sigma[k] - exact[k]));
  return worst / exact[0];
}

static void report(const char *name, double seconds, const nps_svd_t *s, double predicted) {
  double residual, orthogonality;
  if (nps_svd_verify(matrix, s, &residual, &orthogonality) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
  printf("%s %.4f %.1e %.1e %.1e %.5f %.4f\n", name, seconds, error_of(s->sigma, s->count), residual, orthogonality,
         s->energy, predicted);
  fflush(stdout);
}

static void time_method(const char *name, const nps_svd_options_t *options, int runs) {
  double seconds[MOST_RUNS];
  nps_svd_t s = {0};
  for (int r = 0; r < runs; r++) {
    nps_svd_free(&s);
    const double begin = cpu_seconds();
    if (nps_svd_compute(matrix, rows, columns, options, &s) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
    seconds[r] = cpu_seconds() - begin;
  }
  if (!exact) {
    exact = nps_xcalloc((size_t)least, sizeof *exact);
    memcpy(exact, s.sigma, (size_t)least * sizeof *exact);
  }
  report(name, median(seconds, runs), &s, nps_svd_seconds(rows, columns, options->leading, s.method));
  nps_svd_free(&s);
}

static void time_values(int runs) {
  double seconds[MOST_RUNS], *sigma = nps_xcalloc((size_t)least, sizeof *sigma);
  for (int r = 0; r < runs; r++) {
    const double begin = cpu_seconds();
    if (nps_svd_values(matrix, rows, columns, "matrix", sigma) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
    seconds[r] = cpu_seconds() - begin;
  }
  printf("gram-values %.4f %.1e - - - %.4f\n", median(seconds, runs), error_of(sigma, least),
         nps_svd_seconds(rows, columns, 1, NPS_SVD_GRAM));
  free(sigma);
}

/* OpenBLAS' float32 routine on the transposed matrix, as row-major is column-major's transpose. */
static nps_svd_t widen(const float *sigma, const float *u, const float *vt) {
  nps_svd_t out = {.rows = rows, .columns = columns, .count = least, .energy = 1};
  out.sigma = nps_xcalloc((size_t)least, sizeof *out.sigma);
  out.u = nps_xcalloc((size_t)(least * rows), sizeof *out.u);
  out.v = nps_xcalloc((size_t)(least * columns), sizeof *out.v);
  for (int64_t i = 0; i < least * columns; i++) out.v[i] = u[i];
  for (int64_t k = 0; k < least; k++)
    for (int64_t i = 0; i < rows; i++) out.u[k * rows + i] = vt[i * least + k];
  for (int64_t k = 0; k < least; k++) {
    out.sigma[k] = sigma[k];
    out.norm += out.sigma[k] * out.sigma[k];
    out.present += sigma[k] > NPS_SVD_ABSENT * sigma[0];
  }
  out.norm = sqrt(out.norm);
  return out;
}

static void time_sgesdd(int runs) {
  const int m = (int)columns, n = (int)rows, k = (int)least, query = -1;
  const size_t count = (size_t)(rows * columns);
  float *a = nps_xcalloc(count, sizeof *a), *u = nps_xcalloc((size_t)(m * (int64_t)k), sizeof *u);
  float *vt = nps_xcalloc((size_t)(n * (int64_t)k), sizeof *vt), *s = nps_xcalloc((size_t)k, sizeof *s), best;
  int *iwork = nps_xcalloc(8 * (size_t)k, sizeof *iwork), info, size;
  double seconds[MOST_RUNS];
  sgesdd_("S", &m, &n, a, &m, s, u, &m, vt, &k, &best, &query, iwork, &info);
  size = (int)best + 1;
  float *work = nps_xcalloc((size_t)size, sizeof *work);
  for (int r = 0; r < runs; r++) {
    for (size_t i = 0; i < count; i++) a[i] = (float)matrix[i];
    const double begin = cpu_seconds();
    sgesdd_("S", &m, &n, a, &m, s, u, &m, vt, &k, work, &size, iwork, &info);
    seconds[r] = cpu_seconds() - begin;
  }
  nps_svd_t wide = widen(s, u, vt);
  report("sgesdd", median(seconds, runs), &wide, 0);
  nps_svd_free(&wide);
  free(a), free(u), free(vt), free(s), free(work), free(iwork);
}

int main(int argc, char **argv) {
  if (argc != 6) nps_fatal("usage: svd_bench FILE ROWS COLUMNS LEADING RUNS");
  rows = atoll(argv[2]), columns = atoll(argv[3]);
  least = rows < columns ? rows : columns;
  const int64_t leading = atoll(argv[4]);
  const int runs = atoi(argv[5]) < MOST_RUNS ? atoi(argv[5]) : MOST_RUNS;
  nps_blas_start();
  read_matrix(argv[1]);
  time_method("dgesdd", &(nps_svd_options_t){.method = NPS_SVD_LAPACK}, runs);
  time_sgesdd(runs);
  time_method("gram", &(nps_svd_options_t){.method = NPS_SVD_GRAM}, runs);
  time_values(runs);
  time_method("gram-leading", &(nps_svd_options_t){.method = NPS_SVD_GRAM, .leading = leading}, runs);
  time_method("randomised", &(nps_svd_options_t){.leading = leading, .approximate = true}, runs);
  free(matrix);
  free(exact);
  return 0;
}
