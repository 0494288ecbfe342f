/** @file dmat_internal.h
 *  The grid and the block-cyclic places of rows and columns. */
#ifndef NPS_DMAT_INTERNAL_H
#define NPS_DMAT_INTERNAL_H

#include "nps/dmat.h"

#include <mpi.h>

/** Ranks in row-major order of (row, column). ScaLAPACK, for which matrices are transposed, has columns for our rows. */
struct nps_grid {
  const nps_comm_t *comm;
  MPI_Comm mpi;
  int ranks, row_ranks, column_ranks;
  int row, column; /* this rank's coordinates */
  int block;
  int handle, context; /* of BLACS, on several ranks */
};

/** How many of the first n rows (columns) rank `at` of `ranks` has. */
static inline int64_t nps_cyclic_count(int64_t n, int block, int at, int ranks) {
  const int64_t blocks = n / block, more = blocks % ranks;
  return blocks / ranks * block + (at < more ? block : at == more ? n % block : 0);
}

/** Which of the ranks has row (column) i / where among its own. */
static inline int nps_cyclic_owner(int64_t i, int block, int ranks) { return (int)(i / block % ranks); }
static inline int64_t nps_cyclic_place(int64_t i, int block, int ranks) {
  return i / block / ranks * block + i % block;
}

/** Describe a matrix to ScaLAPACK. */
void nps_dmat_describe(const nps_dmat_t *m, int description[9]);

/** Agree on an error code over the grid. Collective. */
nps_err_t nps_grid_agree(const nps_grid_t *grid, nps_err_t err);

#endif
