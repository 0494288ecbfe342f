/** @file grid_internal.h
 *  The algorithms on a grid of several ranks: each gives the triples of a matrix, or of the transposed one. */
#ifndef NPS_SVD_GRID_INTERNAL_H
#define NPS_SVD_GRID_INTERNAL_H

#include "svd_internal.h"

/** Triples of op(A) [n][m], n ≤ m; `turned`: op transposes. The vectors are made by the algorithm. */
typedef struct nps_dtriples {
  const nps_dmat_t *a;
  bool turned;
  int64_t n, m;
  int64_t count;
  double *sigma;    /**< [count] descending, the same on every rank */
  nps_dmat_t left;  /**< [count][n] */
  nps_dmat_t right; /**< [count][m] */
  double energy;    /**< Σσ² as a part of the best possible, an estimate */
} nps_dtriples_t;

/* All are collective. NPS_ERR_MEMORY, NPS_ERR_RUNTIME. */
nps_err_t nps_svd_grid_gram(nps_dtriples_t *t);
nps_err_t nps_svd_grid_randomised(double energy, nps_dtriples_t *t);
nps_err_t nps_svd_grid_lapack(nps_dtriples_t *t);

/** Fill a matrix with random numbers ±1: row i from stream first + i. Local. */
void nps_svd_grid_signs(uint32_t first, nps_dmat_t *m);

#endif
