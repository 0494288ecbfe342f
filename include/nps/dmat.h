/** @file dmat.h
 *  Matrices spread over a group of ranks, and their linear algebra. Layer 3: the only user of BLACS, PBLAS and ScaLAPACK.
 *
 *  A matrix [rows][columns] of float64 lies block-cyclically on a near-square grid of all ranks of a communicator: each rank has
 *  some of the rows and of these some of the columns, in ascending order, as one row-major array. (To ScaLAPACK, which is
 *  column-major, that is the transposed matrix.) On a grid of one rank the array is the whole matrix, and everything here is
 *  plain BLAS: what is written for grids is written for one rank too.
 *
 *  Collective functions are called by all ranks of the grid with the same arguments, as far as these are the same everywhere;
 *  what they return is agreed on. All matrices of a call lie on one grid. */
#ifndef NPS_DMAT_H
#define NPS_DMAT_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/schedule.h"

/** A grid of ranks. */
typedef struct nps_grid nps_grid_t;

/** Make a grid of all ranks of a communicator. Collective. To be made once for a group and used again.
 *  @param comm  must outlive the grid; NULL: this process alone, without any MPI
 *  @return freed with nps_grid_free() */
nps_grid_t *nps_grid_new(const nps_comm_t *comm);

/** As nps_grid_new(), with a shape. @param row_ranks  ranks along a column, divides the number of ranks
 *  @param block  rows and columns that stay together: any number from 1 on */
nps_grid_t *nps_grid_new_shaped(const nps_comm_t *comm, int row_ranks, int block);

/** NULL is fine. Collective. */
void nps_grid_free(nps_grid_t *grid);

/** Give the communicator / the number of ranks (1: nothing is spread). Local. */
const nps_comm_t *nps_grid_comm(const nps_grid_t *grid);
int nps_grid_ranks(const nps_grid_t *grid);

/** A matrix on a grid, or a view of one. */
typedef struct nps_dmat {
  const nps_grid_t *grid;
  int64_t rows, columns;
  int64_t local_rows, local_columns; /**< this rank's */
  double *local;                     /**< [local_rows][local_columns]; owned, but by a view or a shape */
} nps_dmat_t;

/** Describe a matrix that has no values (local is NULL): for pieces of other types, and for views. Local.
 *  A piece of float32 with the same places is float [local_rows][local_columns]. */
nps_dmat_t nps_dmat_shape(const nps_grid_t *grid, int64_t rows, int64_t columns);

/** Make a matrix; its values are not set. Collective.
 *  @param[out] out  freed with nps_dmat_free(), also after an error
 *  @return NPS_ERR_MEMORY; NPS_ERR_RUNTIME: too large for the 32-bit counts of ScaLAPACK on so few ranks */
nps_err_t nps_dmat_new(const nps_grid_t *grid, int64_t rows, int64_t columns, nps_dmat_t *out);
void nps_dmat_free(nps_dmat_t *m);

/** Give the most elements that any rank has of a matrix on a grid of so many ranks. A pure function. */
int64_t nps_dmat_most_local(int64_t rows, int64_t columns, int ranks);

/** View the first `rows` rows. Local. Not to be freed. */
nps_dmat_t nps_dmat_leading_rows(const nps_dmat_t *m, int64_t rows);

/** Give the row / column of the matrix that is this rank's row i / column j. Local. */
int64_t nps_dmat_row(const nps_dmat_t *m, int64_t i);
int64_t nps_dmat_column(const nps_dmat_t *m, int64_t j);

/* ---- to and from slabs of whole rows ---- */

/** Bring slabs of whole rows to their places. Every rank gives rows [first, first + count) of its own, none two ranks give; rows
 *  that nobody gives stay as they are. In steps of a few MiB. Collective.
 *  @param shape    of the matrix (its local is not used)
 *  @param element  bytes of an element: 4 or 8
 *  @param slab     [count][columns]; count may be 0
 *  @param[in,out] piece  [local_rows][local_columns] elements
 *  @return NPS_ERR_MEMORY */
nps_err_t nps_dmat_put_rows(const nps_dmat_t *shape, size_t element, int64_t first, int64_t count, const void *slab,
                            void *piece);

/** Bring rows [first, first + count) together: each rank takes what rows it wants. Collective.
 *  @param[out] slab  [count][columns]; as in nps_dmat_put_rows() */
nps_err_t nps_dmat_get_rows(const nps_dmat_t *shape, size_t element, int64_t first, int64_t count, void *slab,
                            const void *piece);

/** Give the most bytes of messages that either takes on a rank, on a grid of so many ranks. A pure function. */
int64_t nps_dmat_exchange_bytes(int64_t rows, int64_t columns, int ranks);

/* ---- linear algebra ---- */

/** Set all values to 0. Local. */
void nps_dmat_clear(nps_dmat_t *m);

/** Multiply row i by by[i]. Local. @param by  [rows], the same on every rank */
void nps_dmat_scale_rows(nps_dmat_t *m, const double *by);

/** Give Σ of all squares / of every row's. Collective. The same bits on every rank.
 *  @param[out] out  [rows] */
double nps_dmat_norm2(const nps_dmat_t *m);
void nps_dmat_row_norms2(const nps_dmat_t *m, double *out);

/** Find NaN and infinity. Collective.
 *  @return NPS_ERR_INPUT with the name, what it is, the row and the column */
nps_err_t nps_dmat_check_finite(const nps_dmat_t *m, const char *name);

/** Copy a part of a matrix: to[to_row + i][to_column + j] = from[row + i][column + j]. Collective.
 *  @param to  not `from` */
void nps_dmat_copy(const nps_dmat_t *from, int64_t row, int64_t column, int64_t rows, int64_t columns, nps_dmat_t *to,
                   int64_t to_row, int64_t to_column);

/** Copy rows: to[i] = from[order[i]]. Collective. @param order  [to->rows]; @param to  not `from` */
nps_err_t nps_dmat_take_rows(const nps_dmat_t *from, const int64_t *order, nps_dmat_t *to);

/** C = alpha·op(A)·op(B) + beta·C, op: the transposed matrix where said. Collective.
 *  With beta = 0 the values of C need not be set. */
void nps_dmat_gemm(bool transpose_a, bool transpose_b, double alpha, const nps_dmat_t *a, const nps_dmat_t *b,
                   double beta, nps_dmat_t *c);

/** Eigenvectors of A·Aᵀ (by_columns: of Aᵀ·A) to the largest eigenvalues, largest first, as rows. Collective.
 *  @param[out] vectors  [count][n], made before, n being the rows (columns) of A; count: up to n
 *  @param[out] values   [count] the same on every rank
 *  @return NPS_ERR_MEMORY, NPS_ERR_RUNTIME */
nps_err_t nps_dmat_gram_vectors(const nps_dmat_t *a, bool by_columns, double *values, nps_dmat_t *vectors);

/** All singular triples by pdgesvd (on one rank dgesdd). Collective. r = min(rows, columns)
 *  @param[out] sigma  [r] descending, the same on every rank
 *  @param[out] u, v   [r][rows], [r][columns], made before
 *  @return NPS_ERR_MEMORY, NPS_ERR_RUNTIME */
nps_err_t nps_dmat_triples(const nps_dmat_t *a, double *sigma, nps_dmat_t *u, nps_dmat_t *v);

/* ---- the grids of a schedule ---- */

/** Grids of all groups of a schedule to which this rank belongs. */
typedef struct nps_groups nps_groups_t;

/** Make the grids of the groups that have jobs. Collective.
 *  @param comm  of the schedule's ranks; @param schedule  both must outlive the groups
 *  @return freed with nps_groups_free() */
nps_groups_t *nps_groups_new(const nps_comm_t *comm, const nps_schedule_t *schedule);

/** NULL is fine. Collective. */
void nps_groups_free(nps_groups_t *groups);

/** Give the grid of a job's group, to which this rank belongs. Local. */
const nps_grid_t *nps_groups_grid(const nps_groups_t *groups, int job);

#endif
