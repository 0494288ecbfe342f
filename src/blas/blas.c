#include "nps/blas.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Fortran's BLAS and LAPACK: column-major, everything by reference, 32-bit integers. */
extern void sgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k, const float *alpha,
                   const float *a, const int *lda, const float *b, const int *ldb, const float *beta, float *c,
                   const int *ldc);
extern void dgemm_(const char *transa, const char *transb, const int *m, const int *n, const int *k,
                   const double *alpha, const double *a, const int *lda, const double *b, const int *ldb,
                   const double *beta, double *c, const int *ldc);
extern void dsyrk_(const char *uplo, const char *trans, const int *n, const int *k, const double *alpha,
                   const double *a, const int *lda, const double *beta, double *c, const int *ldc);
extern void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work, const int *lwork,
                    int *info);
extern void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau,
                    double *work, const int *lwork, int *info);
extern void dsyevd_(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w,
                    double *work, const int *lwork, int *iwork, const int *liwork, int *info);
extern void dsytrd_(const char *uplo, const int *n, double *a, const int *lda, double *d, double *e, double *tau,
                    double *work, const int *lwork, int *info);
extern void dstedc_(const char *compz, const int *n, double *d, double *e, double *z, const int *ldz, double *work,
                    const int *lwork, int *iwork, const int *liwork, int *info);
extern void dtrsm_(const char *side, const char *uplo, const char *transa, const char *diag, const int *m, const int *n,
                   const double *alpha, const double *a, const int *lda, double *b, const int *ldb);
extern void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a, const int *lda,
                    const double *vl, const double *vu, const int *il, const int *iu, const double *abstol, int *m,
                    double *w, double *z, const int *ldz, int *isuppz, double *work, const int *lwork, int *iwork,
                    const int *liwork, int *info);
extern void dgesdd_(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s, double *u,
                    const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork, int *iwork, int *info);
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

void nps_sgemm_tn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                  int64_t ldb, float beta, float *c, int64_t ldc) {
  const int rows = narrow(m), columns = narrow(n), inner = narrow(k);
  const int row_a = narrow(lda), row_b = narrow(ldb), row_c = narrow(ldc);
  if (rows == 0 || columns == 0) return;
  sgemm_("N", "T", &columns, &rows, &inner, &alpha, b, &row_b, a, &row_a, &beta, c, &row_c);
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

void nps_dgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
               int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc) {
  const int rows = narrow(m), columns = narrow(n), inner = narrow(k);
  const int row_a = narrow(lda), row_b = narrow(ldb), row_c = narrow(ldc);
  if (rows == 0 || columns == 0) return;
  dgemm_(transpose_b ? "T" : "N", transpose_a ? "T" : "N", &columns, &rows, &inner, &alpha, b, &row_b, a, &row_a, &beta,
         c, &row_c);
}

enum { TILE = 32 };

void nps_dgram(int64_t n, int64_t k, const double *a, double *g) {
  const int order = narrow(n), inner = narrow(k);
  const double one = 1, zero = 0;
  if (order == 0) return;
  dsyrk_("U", "T", &order, &inner, &one, a, &inner, &zero, g, &order);
  for (int64_t i0 = 0; i0 < n; i0 += TILE)
    for (int64_t j0 = 0; j0 <= i0; j0 += TILE)
      for (int64_t i = i0; i < n && i < i0 + TILE; i++)
        for (int64_t j = j0; j < i && j < j0 + TILE; j++) g[j * n + i] = g[i * n + j];
}

void nps_dgram_negative(int64_t n, int64_t k, const double *a, double *g) {
  const int order = narrow(n), inner = narrow(k);
  const double minus = -1, zero = 0;
  if (order > 0) dsyrk_("L", "T", &order, &inner, &minus, a, &inner, &zero, g, &order);
}

/* Working memory of a LAPACK routine, as its query tells it: a number that may have been rounded down. */
static nps_err_t get_work(double query, int *count, double **work) {
  assert(query >= 0 && query < INT_MAX - 1);
  *count = (int)query + 1;
  return nps_buffer_alloc((size_t)*count * sizeof **work, "LAPACK", work);
}

static nps_err_t check_info(const char *routine, int64_t m, int64_t n, int info) {
  if (info == 0) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "%s failed on a %lld × %lld matrix (%d)", routine, (long long)m, (long long)n, info);
}

nps_err_t nps_dorthonormalise(int64_t k, int64_t n, double *q) {
  const int rows = narrow(n), columns = narrow(k), query = -1;
  int info = 0, count = 0;
  double best = 0, *work = NULL;
  nps_err_t err = NPS_OK;
  if (columns == 0) return NPS_OK;
  double *tau = nps_xcalloc((size_t)columns, sizeof *tau);
  dgeqrf_(&rows, &columns, q, &rows, tau, &best, &query, &info);
  NPS_GOTO(get_work(best, &count, &work));
  dgeqrf_(&rows, &columns, q, &rows, tau, work, &count, &info);
  NPS_GOTO(check_info("dgeqrf", n, k, info));
  free(work);
  work = NULL;
  dorgqr_(&rows, &columns, &columns, q, &rows, tau, &best, &query, &info);
  NPS_GOTO(get_work(best, &count, &work));
  dorgqr_(&rows, &columns, &columns, q, &rows, tau, work, &count, &info);
  NPS_GOTO(check_info("dorgqr", n, k, info));
done:
  free(work);
  free(tau);
  return err;
}

nps_err_t nps_dsyevd_values(int64_t n, double *a, double *values) {
  const int order = narrow(n), query = -1;
  int info = 0, count = 0, integer = 0;
  double best = 0, *work = NULL;
  nps_err_t err = NPS_OK;
  if (order == 0) return NPS_OK;
  dsyevd_("N", "U", &order, a, &order, values, &best, &query, &integer, &query, &info);
  NPS_GOTO(get_work(best, &count, &work));
  const int one = 1;
  dsyevd_("N", "U", &order, a, &order, values, work, &count, &integer, &one, &info);
  NPS_GOTO(check_info("dsyevd", n, n, info));
done:
  free(work);
  return err;
}

/* a ← reflectors below the diagonal; d, e the tridiagonal matrix. */
static nps_err_t tridiagonalise(int64_t n, double *a, double *d, double *e, double *tau) {
  const int order = narrow(n), query = -1;
  int info = 0, count = 0;
  double best = 0, *work = NULL;
  dsytrd_("L", &order, a, &order, d, e, tau, &best, &query, &info);
  NPS_TRY(get_work(best, &count, &work));
  dsytrd_("L", &order, a, &order, d, e, tau, work, &count, &info);
  free(work);
  return check_info("dsytrd", n, n, info);
}

static nps_err_t solve_tridiagonal(int64_t n, double *d, double *e, double *z) {
  const int order = narrow(n), query = -1;
  int info = 0, count = 0, integers = 0;
  double best = 0, *work = NULL;
  dstedc_("I", &order, d, e, z, &order, &best, &query, &integers, &query, &info);
  NPS_TRY(get_work(best, &count, &work));
  int *iwork = nps_xcalloc((size_t)integers, sizeof *iwork);
  dstedc_("I", &order, d, e, z, &order, work, &count, iwork, &integers, &info);
  free(work);
  free(iwork);
  return check_info("dstedc", n, n, info);
}

/* Reflectors applied at once: twice LAPACK's, whose products are too thin for full speed. */
enum { REFLECTORS = 64 };

/* v [count][length] ← reflectors from `first` on; those that reflect nothing are 0.
 * t [count][count] ← T⁻¹ of their product I − VTVᵀ: the upper triangle of VᵀV, with 1/tau on the diagonal. */
static void gather(const double *a, int64_t n, const double *tau, int64_t first, int64_t count, double *v, double *t) {
  const int64_t length = n - 1 - first;
  memset(v, 0, (size_t)(count * length) * sizeof *v);
  for (int64_t j = 0; j < count; j++) {
    double *row = v + j * length;
    if (tau[first + j] == 0) continue;
    row[j] = 1;
    memcpy(row + j + 1, a + (first + j) * n + first + j + 2, (size_t)(length - j - 1) * sizeof *row);
  }
  nps_dgram(count, length, v, t);
  for (int64_t j = 0; j < count; j++) t[j * count + j] = tau[first + j] == 0 ? 1 : 1 / tau[first + j];
}

/* Rows of z ← Q · them, Q the product of the reflectors in a, which are n − 1. @param work  [2n + REFLECTORS][REFLECTORS] */
static void reflect(int64_t n, const double *a, const double *tau, double *z, double *work) {
  double *v = work, *w = v + n * REFLECTORS, *t = w + n * REFLECTORS;
  const int rows = narrow(n);
  const double one = 1;
  for (int64_t first = (n - 2) / REFLECTORS * REFLECTORS; first >= 0; first -= REFLECTORS) {
    const int64_t length = n - 1 - first, most = length < REFLECTORS ? length : REFLECTORS;
    const int count = narrow(most);
    gather(a, n, tau, first, count, v, t);
    nps_dgemm(false, true, n, count, length, 1, z + first + 1, n, v, length, 0, w, count);
    dtrsm_("L", "U", "N", "N", &count, &rows, &one, t, &count, w, &count);
    nps_dgemm(false, false, n, length, count, -1, w, count, v, length, 1, z + first + 1, n);
  }
}

nps_err_t nps_dsyevd(int64_t n, double *a, double *values, double *vectors) {
  double *work = NULL;
  nps_err_t err = NPS_OK;
  if (n == 0) return NPS_OK;
  double *e = nps_xcalloc((size_t)n, sizeof *e), *tau = nps_xcalloc((size_t)n, sizeof *tau);
  NPS_GOTO(tridiagonalise(n, a, values, e, tau));
  NPS_GOTO(solve_tridiagonal(n, values, e, vectors));
  NPS_GOTO(nps_buffer_alloc((size_t)((2 * n + REFLECTORS) * REFLECTORS) * sizeof *work, "eigenvectors", &work));
  if (n > 1) reflect(n, a, tau, vectors, work);
done:
  free(work);
  free(e);
  free(tau);
  return err;
}

nps_err_t nps_dsyevr_largest(int64_t n, int64_t k, double *a, double *values, double *vectors) {
  const int order = narrow(n), wanted = narrow(k), first = order - wanted + 1, query = -1;
  const double unused = 0, tolerance = 0;
  int info = 0, count = 0, integers = 0, found = 0, *iwork = NULL;
  double best = 0, *work = NULL;
  nps_err_t err = NPS_OK;
  if (wanted == 0) return NPS_OK;
  int *support = nps_xcalloc(2 * (size_t)order, sizeof *support);
  dsyevr_("V", "I", "U", &order, a, &order, &unused, &unused, &first, &order, &tolerance, &found, values, vectors,
          &order, support, &best, &query, &integers, &query, &info);
  iwork = nps_xcalloc((size_t)integers, sizeof *iwork);
  NPS_GOTO(get_work(best, &count, &work));
  dsyevr_("V", "I", "U", &order, a, &order, &unused, &unused, &first, &order, &tolerance, &found, values, vectors,
          &order, support, work, &count, iwork, &integers, &info);
  NPS_GOTO(check_info("dsyevr", n, n, info == 0 && found != wanted ? 1 : info));
done:
  free(work);
  free(iwork);
  free(support);
  return err;
}

/* The row-major matrix is the transpose of a column-major one, whose left vectors are our right ones. */
nps_err_t nps_dgesdd(int64_t m, int64_t n, double *a, double *sigma, double *u, double *v) {
  const int rows = narrow(n), columns = narrow(m), least = rows < columns ? rows : columns, query = -1;
  int info = 0, count = 0;
  double best = 0, *work = NULL;
  nps_err_t err = NPS_OK;
  if (least == 0) return NPS_OK;
  int *iwork = nps_xcalloc(8 * (size_t)least, sizeof *iwork);
  dgesdd_("S", &rows, &columns, a, &rows, sigma, v, &rows, u, &least, &best, &query, iwork, &info);
  NPS_GOTO(get_work(best, &count, &work));
  dgesdd_("S", &rows, &columns, a, &rows, sigma, v, &rows, u, &least, work, &count, iwork, &info);
  NPS_GOTO(check_info("dgesdd", m, n, info));
done:
  free(work);
  free(iwork);
  return err;
}
