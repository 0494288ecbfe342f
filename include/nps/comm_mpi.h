/** @file comm_mpi.h
 *  What the modules that own MPI calls (comm, h5, dmat, cli) share. */
#ifndef NPS_COMM_MPI_H
#define NPS_COMM_MPI_H

#include "nps/comm.h"

#include <mpi.h>

/** Wrap a duplicate of an MPI communicator. Collective. Freed with nps_comm_free(). */
nps_comm_t *nps_comm_from_mpi(MPI_Comm mpi);

/** Give the MPI communicator. Local. Owned by the wrapper. */
MPI_Comm nps_comm_mpi(const nps_comm_t *comm);

#endif
