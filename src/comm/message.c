/* Messages between two ranks, and a counter for all. */
#include "nps/comm_mpi.h"
#include "nps/watch.h"

#include <stdlib.h>

enum { TAG_MESSAGE = 4712 };

/* Largest part of a message, so that counts fit MPI's int. */
#define PART_BYTES ((size_t)1 << 30)

struct nps_message {
  int parts;
  MPI_Request requests[];
};

static nps_message_t *new_message(size_t bytes) {
  const size_t parts = bytes > 0 ? (bytes + PART_BYTES - 1) / PART_BYTES : 1;
  nps_message_t *m = nps_xcalloc(1, sizeof *m + parts * sizeof *m->requests);
  m->parts = (int)parts;
  return m;
}

static int part_of(size_t bytes, int part) {
  const size_t left = bytes - (size_t)part * PART_BYTES;
  return (int)(left < PART_BYTES ? left : PART_BYTES);
}

nps_message_t *nps_comm_send(const nps_comm_t *comm, int to, const void *data, size_t bytes) {
  nps_message_t *m = new_message(bytes);
  for (int i = 0; i < m->parts; i++)
    MPI_Isend((const char *)data + (size_t)i * PART_BYTES, part_of(bytes, i), MPI_BYTE, to, TAG_MESSAGE,
              nps_comm_mpi(comm), &m->requests[i]);
  return m;
}

nps_message_t *nps_comm_receive(const nps_comm_t *comm, int from, void *data, size_t bytes) {
  nps_message_t *m = new_message(bytes);
  for (int i = 0; i < m->parts; i++)
    MPI_Irecv((char *)data + (size_t)i * PART_BYTES, part_of(bytes, i), MPI_BYTE, from, TAG_MESSAGE, nps_comm_mpi(comm),
              &m->requests[i]);
  return m;
}

void nps_message_wait(nps_message_t *message) {
  if (!message) return;
  nps_watch_begin_wait();
  MPI_Waitall(message->parts, message->requests, MPI_STATUSES_IGNORE);
  nps_watch_end();
  free(message);
}

void nps_comm_progress(const nps_comm_t *comm) {
  int any = 0;
  MPI_Iprobe(MPI_ANY_SOURCE, TAG_MESSAGE, nps_comm_mpi(comm), &any, MPI_STATUS_IGNORE);
}

/* The number lies in rank 0's window; everybody has locked it for as long as it is there. */
struct nps_counter {
  MPI_Comm mpi;
  MPI_Win window;
  int64_t *value;
};

static int64_t exchange(nps_counter_t *c, int64_t operand, MPI_Op op) {
  int64_t before = 0;
  nps_watch_begin_wait();
  MPI_Fetch_and_op(&operand, &before, MPI_INT64_T, 0, 0, op, c->window);
  MPI_Win_flush(0, c->window);
  nps_watch_end();
  return before;
}

nps_counter_t *nps_counter_new(const nps_comm_t *comm) {
  nps_counter_t *c = nps_xcalloc(1, sizeof *c);
  const MPI_Aint bytes = nps_comm_rank(comm) == 0 ? (MPI_Aint)sizeof *c->value : 0;
  nps_watch_begin_wait();
  MPI_Comm_dup(nps_comm_mpi(comm), &c->mpi);
  MPI_Win_allocate(bytes, (int)sizeof *c->value, MPI_INFO_NULL, c->mpi, &c->value, &c->window);
  MPI_Win_lock_all(0, c->window);
  nps_watch_end();
  nps_counter_reset(c);
  return c;
}

void nps_counter_reset(nps_counter_t *c) {
  int rank;
  MPI_Comm_rank(c->mpi, &rank);
  if (rank == 0) exchange(c, 0, MPI_REPLACE);
  nps_watch_begin_wait();
  MPI_Barrier(c->mpi);
  nps_watch_end();
}

int64_t nps_counter_next(nps_counter_t *counter) { return exchange(counter, 1, MPI_SUM); }

void nps_counter_free(nps_counter_t *c) {
  if (!c) return;
  nps_watch_begin_wait();
  MPI_Win_unlock_all(c->window);
  MPI_Win_free(&c->window);
  MPI_Comm_free(&c->mpi);
  nps_watch_end();
  free(c);
}
