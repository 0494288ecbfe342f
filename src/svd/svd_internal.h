/** @file svd_internal.h
 *  The algorithms: each gives the triples of a matrix whose short side is its rows. */
#ifndef NPS_SVD_INTERNAL_H
#define NPS_SVD_INTERNAL_H

#include "nps/svd.h"

/** Triples of a matrix [n][m], n ≤ m. Arrays are owned by whoever made the room. */
typedef struct nps_triples {
  int64_t n, m;
  int64_t count;
  double *sigma; /**< [count] descending */
  double *left;  /**< [count][n] */
  double *right; /**< [count][m] */
  double energy; /**< Σσ² as a part of the best possible, an estimate */
} nps_triples_t;

/** Random numbers ±1 of a stream. @param first  a multiple of 4 */
void nps_svd_signs(uint32_t stream, int64_t first, int64_t n, double *out);

/** Σ x². Sums pairwise in blocks. */
double nps_svd_norm2(const double *x, int64_t n);

/* Each fills triples of `a` [n][m]. NPS_ERR_MEMORY, NPS_ERR_RUNTIME. */
nps_err_t nps_svd_gram(const double *a, nps_triples_t *t);
nps_err_t nps_svd_lapack(const double *a, nps_triples_t *t);
nps_err_t nps_svd_randomised(const double *a, double energy, nps_triples_t *t);

/** Bring triples into descending order of σ, keeping equal ones in order. */
void nps_svd_sort(nps_triples_t *t);

#endif
