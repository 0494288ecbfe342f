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

/** Eigenvalues and eigenvectors of a symmetric matrix in float64 (dsyev).
 *  @param n  order
 *  @param[in,out] a  [n][n] in: the matrix (both triangles); out: eigenvector k is row k
 *  @param[out] values  [n] ascending
 *  @return NPS_ERR_RUNTIME (recorded) when it does not converge */
nps_err_t nps_dsyev(int64_t n, double *a, double *values);

#endif
