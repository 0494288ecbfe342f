#include "nps/blas.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>

/* Fortran's BLAS and LAPACK: column-major, everything by reference, 32-bit integers. */
extern void sgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const float *alpha,
                   const float *a, const int *lda, const float *b, const int *ldb, const float *beta, float *c,
                   const int *ldc);
extern void dsyev_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w, double *work,
                   const int *lwork, int *info);

/* Only OpenBLAS has it. */
extern void openblas_set_num_threads(int threads) __attribute__((weak));

void nps_blas_start(void) {
  static const char *const variables[] = {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"};
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++)
    if (getenv(variables[i])) return;
  if (openblas_set_num_threads) openblas_set_num_threads(1);
}

static int narrow(int64_t n) {
  assert(n >= 0 && n <= INT_MAX);
  return (int)n;
}

/* A row-major matrix is the transpose of a column-major one: Cᵀ = op(B)ᵀ Aᵀ. */
void nps_sgemm(bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
  const int rows = narrow(m), columns = narrow(n), inner = narrow(k);
  const int row_a = narrow(lda), row_b = narrow(ldb), row_c = narrow(ldc);
  if (rows == 0 || columns == 0) return;
  sgemm_(transpose_b ? "T" : "N", "N", &columns, &rows, &inner, &alpha, b, &row_b, a, &row_a, &beta, c, &row_c);
}

nps_err_t nps_dsyev(int64_t n, double *a, double *values) {
  const int order = narrow(n);
  int info = 0, room = -1;
  double best = 0;
  if (order == 0) return NPS_OK;
  dsyev_("V", "U", &order, a, &order, values, &best, &room, &info);
  room = (int)best > 3 * order ? (int)best : 3 * order;
  double *work = nps_xcalloc((size_t)room, sizeof *work);
  dsyev_("V", "U", &order, a, &order, values, work, &room, &info);
  free(work);
  if (info != 0)
    return nps_fail(NPS_ERR_RUNTIME, "the eigenvalues of a %d × %d matrix were not found (dsyev %d)", order, order,
                    info);
  return NPS_OK;
}
