#include "dmat_internal.h"
#include "nps/comm_mpi.h"
#include "scalapack.h"

#include <assert.h>
#include <stdlib.h>

enum {
  BLOCK = 64,
  REPEATABLE = 15 /* BLACS: sums in the order of ranks, not of arrival */
};

/* The largest divisor up to the square root. */
static int near_root(int ranks) {
  int side = 1;
  for (int k = 2; (int64_t)k * k <= ranks; k++)
    if (ranks % k == 0) side = k;
  return side;
}

nps_grid_t *nps_grid_new_shaped(const nps_comm_t *comm, int row_ranks, int block) {
  nps_grid_t *grid = nps_xcalloc(1, sizeof *grid);
  const int ranks = comm ? nps_comm_size(comm) : 1, rank = comm ? nps_comm_rank(comm) : 0;
  assert(row_ranks > 0 && ranks % row_ranks == 0 && block > 0);
  *grid = (nps_grid_t){.comm = comm,
                       .mpi = MPI_COMM_NULL,
                       .ranks = ranks,
                       .row_ranks = row_ranks,
                       .column_ranks = ranks / row_ranks,
                       .block = block};
  grid->row = rank / grid->column_ranks;
  grid->column = rank % grid->column_ranks;
  if (ranks == 1) return grid;
  MPI_Comm_dup(nps_comm_mpi(comm), &grid->mpi); /* BLACS has one handle a communicator */
  grid->handle = grid->context = Csys2blacs_handle(grid->mpi);
  Cblacs_gridinit(&grid->context, "Column", grid->column_ranks, grid->row_ranks);
  Cblacs_set(grid->context, REPEATABLE, &(int){1});
  return grid;
}

nps_grid_t *nps_grid_new(const nps_comm_t *comm) {
  return nps_grid_new_shaped(comm, near_root(comm ? nps_comm_size(comm) : 1), BLOCK);
}

void nps_grid_free(nps_grid_t *grid) {
  if (grid && grid->ranks > 1) {
    Cblacs_gridexit(grid->context);
    Cfree_blacs_system_handle(grid->handle);
    MPI_Comm_free(&grid->mpi);
  }
  free(grid);
}

const nps_comm_t *nps_grid_comm(const nps_grid_t *grid) { return grid->comm; }

int nps_grid_ranks(const nps_grid_t *grid) { return grid->ranks; }

nps_err_t nps_grid_agree(const nps_grid_t *grid, nps_err_t err) {
  return grid->ranks > 1 ? nps_comm_agree(grid->comm, err) : err;
}

int64_t nps_dmat_most_local(int64_t rows, int64_t columns, int ranks) {
  const int side = near_root(ranks);
  return nps_cyclic_count(rows, BLOCK, 0, side) * nps_cyclic_count(columns, BLOCK, 0, ranks / side);
}
