/** @file svd.h
 *  Singular value decompositions with certificates: which algorithm, how exact, and many matrices over many ranks. Layer 4.
 *
 *  Vectors are rows: U is [count][rows], V is [count][columns], so that the leading k triples are the first k rows. Everything
 *  is float64. The same matrix and options give the same bits wherever they are computed by one rank. */
#ifndef NPS_SVD_H
#define NPS_SVD_H

#include "nps/base.h"
#include "nps/dmat.h"

/** Algorithms, in order of accuracy. */
typedef enum nps_svd_method {
  NPS_SVD_AUTO,       /**< the cheapest that is exact enough */
  NPS_SVD_RANDOMISED, /**< leading triples: randomised subspace iteration (Halko, Martinsson, Tropp 2011) */
  NPS_SVD_GRAM,       /**< eigenvectors of the Gram matrix of the short side, block by block down the spectrum */
  NPS_SVD_LAPACK,     /**< dgesdd */
} nps_svd_method_t;

/** σ ≤ this × σ1 is rounding noise of float32 task vectors: the direction is absent. */
#define NPS_SVD_ABSENT 1e-5

/** Defaults of the tolerances below. */
#define NPS_SVD_RESIDUAL 1e-10
#define NPS_SVD_ORTHOGONALITY 1e-7
#define NPS_SVD_ENERGY 0.99

/** What is wanted. Zeros are the defaults. */
typedef struct nps_svd_options {
  const char *name;        /**< of the matrix, for messages; may be NULL */
  int64_t leading;         /**< how many triples; 0: all */
  nps_svd_method_t method; /**< to begin with; AUTO takes RANDOMISED only where approximate is true */
  bool approximate;        /**< leading triples may be approximate, with the energy below */
  double residual;         /**< all triples: most ‖A − UᵀSV‖ / ‖A‖ */
  double orthogonality;    /**< most ‖UUᵀ − I‖, ‖VVᵀ − I‖ (Frobenius) over present directions */
  double energy;           /**< approximate: least Σσ² of the triples as a part of the best possible */
} nps_svd_options_t;

/** A decomposition A ≈ UᵀSV and what is known of its quality. Arrays are owned. */
typedef struct nps_svd {
  int64_t rows, columns;
  int64_t count;   /**< triples: all, min(rows, columns), or the leading ones */
  double *sigma;   /**< [count] descending */
  double *u;       /**< [count][rows] */
  double *v;       /**< [count][columns]; of the two the long side's vectors are 0 where σ is 0 to rounding */
  int64_t present; /**< triples with σ > NPS_SVD_ABSENT·σ1 */
  int64_t unsure; /**< triples before this one have σ ≥ 1e-6·σ1; the others' values from a Gram matrix are not sure */
  double norm;    /**< ‖A‖ (Frobenius) */
  nps_svd_method_t method; /**< that gave the result */
  nps_svd_method_t failed; /**< less accurate one that missed its tolerance before; AUTO: none */
  double residual;         /**< ‖A − UᵀSV‖ / ‖A‖ by 8 random probes; of leading triples it is no error */
  double orthogonality;    /**< the larger of both sides' over present directions, by 8 random probes */
  double energy;           /**< Σσ² / its best possible value, an estimate; 1 where all is exact */
} nps_svd_t;

/** Factorise a matrix. Local. A result outside its tolerance is computed again by the next more accurate method.
 *  @param a  [rows][columns]
 *  @param[out] out  freed with nps_svd_free(), also after an error
 *  @return NPS_ERR_INPUT: NaN or infinity, with the matrix's name and the index; NPS_ERR_MEMORY; NPS_ERR_RUNTIME: no method
 *    reached its tolerance, or LAPACK failed */
nps_err_t nps_svd_compute(const double *a, int64_t rows, int64_t columns, const nps_svd_options_t *options,
                          nps_svd_t *out);
void nps_svd_free(nps_svd_t *svd);

/** Give all singular values only, from the Gram matrix: those below 1e-6·σ1 are not sure. Local.
 *  @param a  [rows][columns]; @param[out] sigma  [min(rows, columns)] descending
 *  @return as nps_svd_compute() */
nps_err_t nps_svd_values(const double *a, int64_t rows, int64_t columns, const char *name, double *sigma);

/** Give the exact certificates, at the cost of a product of matrices. Local.
 *  @param[out] residual, orthogonality  as in nps_svd_t */
nps_err_t nps_svd_verify(const double *a, const nps_svd_t *svd, double *residual, double *orthogonality);

/** Replace the rows of a matrix by its orthonormal polar factor: with X = PDQᵀ, PQᵀ; absent directions are left out.
 *  @param[in,out] x  [k][n] */
nps_err_t nps_svd_polar(int64_t k, int64_t n, double *x);

/** Choose a method for a matrix, as AUTO does. A pure function. */
nps_svd_method_t nps_svd_choose(int64_t rows, int64_t columns, const nps_svd_options_t *options);

/** Predict seconds on one core, and bytes of working memory besides the matrix and the result. Pure functions. */
double nps_svd_seconds(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method);
int64_t nps_svd_bytes(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method);

/* ---- on a grid of ranks ---- */

/** A decomposition whose vectors lie on a grid. */
typedef struct nps_dsvd {
  nps_svd_t
      svd;      /**< its u and v are NULL; all else is the same on every rank. NPS_SVD_LAPACK stands for pdgesvd, too */
  nps_dmat_t u; /**< [count][rows] */
  nps_dmat_t v; /**< [count][columns] */
} nps_dsvd_t;

/** As nps_svd_compute(), for a matrix on a grid. Collective. On a grid of one rank it is the same, to the bit. */
nps_err_t nps_svd_on_grid(const nps_dmat_t *a, const nps_svd_options_t *options, nps_dsvd_t *out);
void nps_dsvd_free(nps_dsvd_t *svd);

/** As nps_svd_verify() / nps_svd_polar(), on a grid. Collective. */
nps_err_t nps_svd_verify_on_grid(const nps_dmat_t *a, const nps_dsvd_t *svd, double *residual, double *orthogonality);
nps_err_t nps_svd_polar_on_grid(nps_dmat_t *x);

/** As nps_svd_seconds() / nps_svd_bytes(), on a grid of so many ranks, the latter of each rank. Pure functions. */
double nps_svd_grid_seconds(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks);
int64_t nps_svd_grid_bytes(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks);

/* ---- many matrices over many ranks ---- */

/** A matrix of a list. */
typedef struct nps_svd_job {
  int64_t rows, columns;
  nps_svd_options_t options; /**< with its name */
  bool values_only;          /**< no vectors: as nps_svd_values() */
  int64_t work;              /**< what it counts for in the progress */
} nps_svd_job_t;

/** What is to be factorised, and what is done with it. The same on every rank, but for ctx. */
typedef struct nps_svd_list {
  const nps_svd_job_t *jobs; /**< [count] */
  int count;
  int64_t memory; /**< bytes that a matrix may take on a rank, its decomposition and all working memory included */
  /** Give rows [first, first + count) of matrix i. Local.
   *  @param[out] rows  [count][columns] */
  nps_err_t (*load)(void *ctx, int i, int64_t first, int64_t count, double *rows);
  /** Take what was found. Called on every rank of the matrix' group, after all have it; may leave with u, v and sigma,
   *  whose pointers it then sets to NULL. @param rank  this one's, in the group */
  nps_err_t (*done)(void *ctx, int i, int rank, nps_dsvd_t *svd);
  /** Hear how far all ranks are, of the sum of all work. Local. May be NULL. */
  void (*progress)(void *ctx, int64_t done);
  void *ctx;
} nps_svd_list_t;

/** Factorise a list of matrices: most of them each on one rank, and on a group of ranks what is too large for one or would
 *  set the end (nps/schedule.h). A matrix that a group shares is never whole on one rank. Collective.
 *  @return the same on every rank; the first failure of load or done, or as nps_svd_compute(), ends all; NPS_ERR_CONFIG: a
 *    matrix does not fit into memory, with its name and what would do */
nps_err_t nps_svd_list(const nps_comm_t *comm, const nps_svd_list_t *list);

/** Give a method's name. Static. */
const char *nps_svd_method_name(nps_svd_method_t method);

#endif
