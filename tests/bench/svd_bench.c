/* Times and errors of singular value decompositions on one core: svd_bench ROWS COLUMNS LEADING RUNS
 * One line a method: name, median seconds, largest error of σ / σ1 against dgesdd over σ ≥ 1e-6·σ1, residual, orthogonality.
 * The matrix is like a task vector: a falling spectrum under noise, rounded to float32. svd_bench.py makes the table. */
#include "nps/blas.h"
#include "nps/rng.h"
#include "nps/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void sgesdd_(const char *jobz, const int *m, const int *n, float *a, const int *lda, float *s, float *u,
                    const int *ldu, float *vt, const int *ldvt, float *work, const int *lwork, int *iwork, int *info);

enum { RANK = 48, MOST_RUNS = 32 };

static int64_t rows, columns, least;
static double *matrix, *exact;

static double uniform(uint32_t stream, int64_t i) {
  uint32_t word[4];
  nps_philox4x32((uint32_t[]){(uint32_t)i, (uint32_t)(i >> 32), stream, 0}, (uint32_t[]){7, 9}, word);
  return ((double)word[0] + (double)word[1] + (double)word[2] + (double)word[3]) / 4294967296.0 - 2;
}

static void make_matrix(void) {
  double *u = nps_xcalloc((size_t)(RANK * rows), sizeof *u), *v = nps_xcalloc((size_t)(RANK * columns), sizeof *v);
  matrix = nps_xcalloc((size_t)(rows * columns), sizeof *matrix);
  for (int64_t i = 0; i < RANK * rows; i++) u[i] = uniform(1, i) * 0.02 * pow(0.85, (double)(i / rows));
  for (int64_t i = 0; i < RANK * columns; i++) v[i] = uniform(2, i);
  nps_dgemm(true, false, rows, columns, RANK, 1, u, rows, v, columns, 0, matrix, columns);
  for (int64_t i = 0; i < rows * columns; i++) matrix[i] = (float)(matrix[i] + 0.002 * uniform(3, i));
  free(u);
  free(v);
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

static void time_method(const char *name, const nps_svd_options_t *options, int runs) {
  double seconds[MOST_RUNS], residual, orthogonality;
  nps_svd_t s = {0};
  for (int r = 0; r < runs; r++) {
    nps_svd_free(&s);
    const double begin = nps_now();
    if (nps_svd_compute(matrix, rows, columns, options, &s) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
    seconds[r] = nps_now() - begin;
  }
  if (!exact) {
    exact = nps_xcalloc((size_t)least, sizeof *exact);
    memcpy(exact, s.sigma, (size_t)least * sizeof *exact);
  }
  if (nps_svd_verify(matrix, &s, &residual, &orthogonality) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
  printf("%s %.4f %.1e %.1e %.1e %.5f\n", name, median(seconds, runs), error_of(s.sigma, s.count), residual,
         orthogonality, s.energy);
  fflush(stdout);
  nps_svd_free(&s);
}

/* OpenBLAS' float32 routine on the transposed matrix, as row-major is column-major's transpose. */
static void time_sgesdd(int runs) {
  const int m = (int)columns, n = (int)rows, k = (int)least, query = -1;
  const size_t count = (size_t)(rows * columns);
  float *a = nps_xcalloc(count, sizeof *a), *u = nps_xcalloc((size_t)(m * (int64_t)k), sizeof *u);
  float *vt = nps_xcalloc((size_t)(n * (int64_t)k), sizeof *vt), *s = nps_xcalloc((size_t)k, sizeof *s), best;
  int *iwork = nps_xcalloc(8 * (size_t)k, sizeof *iwork), info, size;
  double seconds[MOST_RUNS], *sigma = nps_xcalloc((size_t)k, sizeof *sigma);
  sgesdd_("S", &m, &n, a, &m, s, u, &m, vt, &k, &best, &query, iwork, &info);
  size = (int)best + 1;
  float *work = nps_xcalloc((size_t)size, sizeof *work);
  for (int r = 0; r < runs; r++) {
    for (size_t i = 0; i < count; i++) a[i] = (float)matrix[i];
    const double begin = nps_now();
    sgesdd_("S", &m, &n, a, &m, s, u, &m, vt, &k, work, &size, iwork, &info);
    seconds[r] = nps_now() - begin;
  }
  for (int i = 0; i < k; i++) sigma[i] = (double)s[i];
  printf("sgesdd %.4f %.1e - - 1\n", median(seconds, runs), error_of(sigma, least));
  free(a), free(u), free(vt), free(s), free(work), free(iwork), free(sigma);
}

int main(int argc, char **argv) {
  if (argc != 5) nps_fatal("usage: svd_bench ROWS COLUMNS LEADING RUNS");
  rows = atoll(argv[1]), columns = atoll(argv[2]);
  least = rows < columns ? rows : columns;
  const int runs = atoi(argv[4]) < MOST_RUNS ? atoi(argv[4]) : MOST_RUNS;
  nps_blas_start();
  make_matrix();
  time_method("dgesdd", &(nps_svd_options_t){.method = NPS_SVD_LAPACK}, runs);
  time_sgesdd(runs);
  time_method("gram", &(nps_svd_options_t){.method = NPS_SVD_GRAM}, runs);
  time_method("gram-leading", &(nps_svd_options_t){.method = NPS_SVD_GRAM, .leading = atoll(argv[3])}, runs);
  time_method("randomised", &(nps_svd_options_t){.leading = atoll(argv[3]), .approximate = true}, runs);
  free(matrix);
  free(exact);
  return 0;
}
