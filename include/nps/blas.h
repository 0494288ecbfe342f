/** @file blas.h
 *  Dense linear algebra on one rank: the only owner of BLAS and LAPACK prototypes. Layer 1. Everything here is local.
 *
 *  Matrices are row-major with a leading dimension in elements. BLAS and LAPACK count in 32 bits: sizes that do not fit are
 *  our bug here (assert), as callers bound them. */
#ifndef NPS_BLAS_H
#define NPS_BLAS_H

#include "nps/base.h"

/** Use one BLAS thread a process, unless OPENBLAS_NUM_THREADS (or OMP_NUM_THREADS) says otherwise: ranks are the
 *  parallelism. To be called once, early. */
void nps_blas_start(void);

/** C = alpha·A·op(B) + beta·C in float32.
 *  @param transpose_b  false: B is [k][n]; true: B is [n][k] and its transpose is taken (weights out×in)
 *  @param a  [m][k], leading dimension lda; @param b  leading dimension ldb; @param[in,out] c  [m][n], leading dimension ldc */
void nps_sgemm(bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
               const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/** C = alpha·Aᵀ·B + beta·C in float32. @param a  [k][m]; @param b  [k][n]; @param[in,out] c  [m][n] */
void nps_sgemm_tn(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                  int64_t ldb, float beta, float *c, int64_t ldc);

/** C = alpha·op(A)·op(B) + beta·C in float64; op(A) is [m][k], op(B) [k][n].
 *  @param transpose_a  true: A is [k][m]; @param transpose_b  true: B is [n][k] */
void nps_dgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, double alpha, const double *a,
               int64_t lda, const double *b, int64_t ldb, double beta, double *c, int64_t ldc);

/** Gram matrix of rows: G = A·Aᵀ, both triangles (dsyrk). @param a  [n][k]; @param[out] g  [n][n] */
void nps_dgram(int64_t n, int64_t k, const double *a, double *g);

/** The half of −A·Aᵀ that nps_dsyevd() reads; its smallest eigenvalues are the largest of A·Aᵀ.
 *  @param[out] g  [n][n] the numbers on and to the right of the diagonal; the others are not set */
void nps_dgram_negative(int64_t n, int64_t k, const double *a, double *g);

/** Make rows orthonormal, in their order (Householder QR). @param n  at least k; @param[in,out] q  [k][n]
 *  @return NPS_ERR_RUNTIME (recorded) */
nps_err_t nps_dorthonormalise(int64_t k, int64_t n, double *q);

/** Eigenvalues and eigenvectors of a symmetric matrix in float64 (dsyev).
 *  @param n  order
 *  @param[in,out] a  [n][n] in: the matrix (both triangles); out: eigenvector k is row k
 *  @param[out] values  [n] ascending
 *  @return NPS_ERR_RUNTIME (recorded) when it does not converge, NPS_ERR_MEMORY */
nps_err_t nps_dsyev(int64_t n, double *a, double *values);

/** As nps_dsyev(), faster on large matrices: divide and conquer, as dsyevd, with reflections in wider blocks.
 *  @param[in,out] a  [n][n] only what is on and to the right of the diagonal is read; destroyed
 *  @param[out] vectors  [n][n] eigenvector k is row k */
nps_err_t nps_dsyevd(int64_t n, double *a, double *values, double *vectors);

/** The eigenvalues alone (dsyevd). @param[in,out] a  [n][n] destroyed */
nps_err_t nps_dsyevd_values(int64_t n, double *a, double *values);

/** The k largest eigenvalues and their vectors (dsyevr). @param[in,out] a  [n][n] destroyed
 *  @param[out] values  [n] the first k ascending; @param[out] vectors  [k][n] */
nps_err_t nps_dsyevr_largest(int64_t n, int64_t k, double *a, double *values, double *vectors);

/** All singular triples of a matrix by divide and conquer (dgesdd).
 *  @param[in,out] a  [m][n] destroyed; r = min(m, n)
 *  @param[out] sigma  [r] descending; @param[out] u  [m][r]; @param[out] v  [r][n]
 *  @return NPS_ERR_RUNTIME (recorded) when it does not converge, NPS_ERR_MEMORY */
nps_err_t nps_dgesdd(int64_t m, int64_t n, double *a, double *sigma, double *u, double *v);

#endif
