/** @file svd_internal.h
 *  The algorithms: each gives the triples of a matrix whose short side is its rows. */
#ifndef NPS_SVD_INTERNAL_H
#define NPS_SVD_INTERNAL_H

#include "nps/svd.h"

/** A block of Gram eigenvectors holds σ down to this part of its largest. */
#define NPS_SVD_BLOCK_RANGE 1e-3

enum {
  NPS_SVD_BLOCKS = 5, /**< most blocks: σ below NPS_SVD_BLOCK_RANGE^NPS_SVD_BLOCKS are rounding noise in float64 */
  NPS_SVD_OVERSAMPLE = 16,             /**< directions that randomised subspaces have more than are wanted */
  NPS_SVD_PROBES = 8,                  /**< of certificates */
  NPS_SVD_ORTHOGONALITY_STREAM = 1000, /**< first streams of their random numbers */
  NPS_SVD_RESIDUAL_STREAM = 2000
};

/** Triples of a matrix [n][m], n ≤ m. Arrays are owned by whoever made the room. */
typedef struct nps_triples {
  int64_t n, m;
  int64_t count;
  double *sigma; /**< [count] descending */
  double *left;  /**< [count][n] */
  double *right; /**< [count][m] */
  double energy; /**< Σσ² as a part of the best possible, an estimate */
  double scale;  /**< a power of two that brings ‖A‖ near 1 */
} nps_triples_t;

/** Random numbers ±1 of a stream. @param first  a multiple of 4 */
void nps_svd_signs(uint32_t stream, int64_t first, int64_t n, double *out);

/** Σ x². Sums pairwise in blocks. */
double nps_svd_norm2(const double *x, int64_t n);

/* Each fills triples of `a` [n][m]. NPS_ERR_MEMORY, NPS_ERR_RUNTIME. */
nps_err_t nps_svd_gram(const double *a, nps_triples_t *t);
nps_err_t nps_svd_lapack(const double *a, nps_triples_t *t);
nps_err_t nps_svd_randomised(const double *a, double energy, nps_triples_t *t);

/** How what the leading triples capture grows from iteration to iteration. Zero-initialise. */
typedef struct nps_gains {
  double captured, gain;
  double left; /**< what is still to be gained, as a part of what is captured */
  int iterations;
} nps_gains_t;

/** Note what an iteration has captured. @return whether the subspace is good enough for `energy`, or no better will come */
bool nps_svd_gained(nps_gains_t *gains, double captured, double energy);

/** Give the least energy that is asked for. */
double nps_svd_least_energy(const nps_svd_options_t *options);

/** Fill what follows from σ and the method. @param energy  of the triples */
void nps_svd_describe(nps_svd_t *s, nps_svd_method_t method, double energy);

/** Estimate residual and orthogonality with random signs. NPS_ERR_MEMORY. */
nps_err_t nps_svd_certify(const double *a, nps_svd_t *s);

/** Whether the certificate is within its tolerances. */
bool nps_svd_holds(const nps_svd_t *s, const nps_svd_options_t *options);

/** Tell the user that the next method is to do better. */
void nps_svd_tell_miss(const nps_svd_t *s, const nps_svd_options_t *options);

/** Record that no method was good enough. @return NPS_ERR_RUNTIME */
nps_err_t nps_svd_fail_tolerance(const nps_svd_t *s, const nps_svd_options_t *options);

/** Bring triples into descending order of σ. */
void nps_svd_sort(nps_triples_t *t);

#endif
