#include "nps/comm_mpi.h"
#include "nps/watch.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Largest part of one transfer, so that counts fit MPI's int. */
#define PART_BYTES ((size_t)1 << 30)
#define PART_COUNT ((int64_t)1 << 26)

struct nps_comm {
  MPI_Comm mpi;
  int rank;
  int size;
};

static nps_comm_t *wrap(MPI_Comm mpi) {
  nps_comm_t *comm = nps_xcalloc(1, sizeof *comm);
  comm->mpi = mpi;
  MPI_Comm_rank(mpi, &comm->rank);
  MPI_Comm_size(mpi, &comm->size);
  return comm;
}

nps_comm_t *nps_comm_from_mpi(MPI_Comm mpi) {
  MPI_Comm copy;
  nps_watch_begin_wait();
  MPI_Comm_dup(mpi, &copy);
  nps_watch_end();
  return wrap(copy);
}

MPI_Comm nps_comm_mpi(const nps_comm_t *comm) { return comm->mpi; }

int nps_comm_rank(const nps_comm_t *comm) { return comm->rank; }

int nps_comm_size(const nps_comm_t *comm) { return comm->size; }

nps_comm_t *nps_comm_self(void) { return nps_comm_from_mpi(MPI_COMM_SELF); }

void nps_comm_split(const nps_comm_t *comm, int colour, nps_comm_t **out) {
  MPI_Comm part;
  nps_watch_begin_wait();
  MPI_Comm_split(comm->mpi, colour < 0 ? MPI_UNDEFINED : colour, comm->rank, &part);
  nps_watch_end();
  *out = part == MPI_COMM_NULL ? NULL : wrap(part);
}

void nps_comm_split_host(const nps_comm_t *comm, nps_comm_t **out) {
  MPI_Comm part;
  nps_watch_begin_wait();
  MPI_Comm_split_type(comm->mpi, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &part);
  nps_watch_end();
  *out = wrap(part);
}

void nps_comm_free(nps_comm_t *comm) {
  if (!comm) return;
  MPI_Comm_free(&comm->mpi);
  free(comm);
}

void nps_comm_barrier(const nps_comm_t *comm) {
  nps_watch_begin_wait();
  MPI_Barrier(comm->mpi);
  nps_watch_end();
}

void nps_comm_bcast(const nps_comm_t *comm, void *data, size_t bytes) { nps_comm_bcast_from(comm, 0, data, bytes); }

void nps_comm_bcast_from(const nps_comm_t *comm, int root, void *data, size_t bytes) {
  for (size_t at = 0; at < bytes; at += PART_BYTES) {
    size_t part = bytes - at < PART_BYTES ? bytes - at : PART_BYTES;
    nps_watch_begin_wait();
    MPI_Bcast((char *)data + at, (int)part, MPI_BYTE, root, comm->mpi);
    nps_watch_end();
  }
}

void nps_comm_bcast_text(const nps_comm_t *comm, char **text) {
  int64_t length = comm->rank == 0 && *text ? (int64_t)strlen(*text) : -1;
  nps_comm_bcast(comm, &length, sizeof length);
  if (comm->rank != 0) *text = length < 0 ? NULL : nps_xcalloc((size_t)length + 1, 1);
  if (length > 0) nps_comm_bcast(comm, *text, (size_t)length);
}

static void reduce_in_place(const nps_comm_t *comm, void *x, int64_t n, size_t size, MPI_Datatype type, MPI_Op op) {
  for (int64_t at = 0; at < n; at += PART_COUNT) {
    int count = (int)(n - at < PART_COUNT ? n - at : PART_COUNT);
    nps_watch_begin_wait();
    MPI_Allreduce(MPI_IN_PLACE, (char *)x + (size_t)at * size, count, type, op, comm->mpi);
    nps_watch_end();
  }
}

void nps_comm_sum_i64(const nps_comm_t *comm, int64_t *x, int64_t n) {
  reduce_in_place(comm, x, n, sizeof *x, MPI_INT64_T, MPI_SUM);
}

void nps_comm_sum_f64(const nps_comm_t *comm, double *x, int64_t n) {
  reduce_in_place(comm, x, n, sizeof *x, MPI_DOUBLE, MPI_SUM);
}

void nps_comm_max_f64(const nps_comm_t *comm, double *x, int64_t n) {
  reduce_in_place(comm, x, n, sizeof *x, MPI_DOUBLE, MPI_MAX);
}

void nps_comm_exscan_i64(const nps_comm_t *comm, int64_t *x, int64_t n) {
  for (int64_t at = 0; at < n; at += PART_COUNT) {
    int count = (int)(n - at < PART_COUNT ? n - at : PART_COUNT);
    nps_watch_begin_wait();
    MPI_Exscan(MPI_IN_PLACE, x + at, count, MPI_INT64_T, MPI_SUM, comm->mpi);
    nps_watch_end();
  }
  if (comm->rank == 0 && n > 0) memset(x, 0, (size_t)n * sizeof *x);
}
