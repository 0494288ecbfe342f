/** @file comm.h
 *  Communicators, agreement on errors, reductions with 64-bit counts. Layer 1. The public header does not show MPI;
 *  comm_mpi.h, for the modules that own MPI calls, does. MPI's own errors keep the default fatal handler. */
#ifndef NPS_COMM_H
#define NPS_COMM_H

#include "nps/base.h"

/** A communicator. */
typedef struct nps_comm nps_comm_t;

/** Give this process's rank / the number of ranks. Local. */
int nps_comm_rank(const nps_comm_t *comm);
int nps_comm_size(const nps_comm_t *comm);

/** Make the communicator of this process alone. Local. Freed with nps_comm_free(). */
nps_comm_t *nps_comm_self(void);

/** Split a communicator: ranks with the same colour form one, in the order of their ranks. Collective.
 *  @param colour  0 or more, or negative: no part in any (then *out is NULL)
 *  @param[out] out  freed with nps_comm_free() */
void nps_comm_split(const nps_comm_t *comm, int colour, nps_comm_t **out);

/** Make the communicator of the ranks that share this one's host. Collective. */
void nps_comm_split_host(const nps_comm_t *comm, nps_comm_t **out);

/** Free a communicator. NULL is fine. Collective over its ranks. */
void nps_comm_free(nps_comm_t *comm);

/** Agree on an error code: the worst of all ranks, as nps_err_worse() has it. Collective.
 *  Recorded problems of the lowest rank that has the worst code become rank 0's; all other ranks forget theirs.
 *  @param err  this rank's code
 *  @return the same code on every rank */
nps_err_t nps_comm_agree(const nps_comm_t *comm, nps_err_t err);

/** Wait for all ranks. Collective. */
void nps_comm_barrier(const nps_comm_t *comm);

/** Send rank 0's bytes to all, in parts of at most 1 GiB. Collective.
 *  @param[in,out] data  [bytes] */
void nps_comm_bcast(const nps_comm_t *comm, void *data, size_t bytes);

/** Likewise another rank's. Collective. */
void nps_comm_bcast_from(const nps_comm_t *comm, int root, void *data, size_t bytes);

/** Send rank 0's text to all. Collective.
 *  @param[in,out] text  on rank 0 a string (NULL is passed on as NULL); elsewhere set to a copy, freed with free() */
void nps_comm_bcast_text(const nps_comm_t *comm, char **text);

/** Add up / take the largest of arrays over all ranks, in place, result on every rank. Collective.
 *  float64 sums are made by MPI in an order of its own: use them where at most one rank's element is not zero. */
void nps_comm_sum_i64(const nps_comm_t *comm, int64_t *x, int64_t n);
void nps_comm_sum_f64(const nps_comm_t *comm, double *x, int64_t n);
void nps_comm_max_f64(const nps_comm_t *comm, double *x, int64_t n);

/** Add up the arrays of the ranks before this one (0 on rank 0), in place. Collective. */
void nps_comm_exscan_i64(const nps_comm_t *comm, int64_t *x, int64_t n);

/** A message on its way. */
typedef struct nps_message nps_message_t;

/** Start to send / receive bytes. Local. Messages from one rank to another come in the order in which they were sent.
 *  @param data  [bytes] not to be touched before nps_message_wait() */
nps_message_t *nps_comm_send(const nps_comm_t *comm, int to, const void *data, size_t bytes);
nps_message_t *nps_comm_receive(const nps_comm_t *comm, int from, void *data, size_t bytes);

/** Wait for a message to be sent or to have come, and free it. NULL is fine. */
void nps_message_wait(nps_message_t *message);

/** A counter that ranks draw numbers from, one-sided: no rank has to answer. */
typedef struct nps_counter nps_counter_t;

/** Make a counter at 0. Collective, as freeing it is. NULL may be freed. */
nps_counter_t *nps_counter_new(const nps_comm_t *comm);
void nps_counter_free(nps_counter_t *counter);

/** Set it back to 0. Collective. */
void nps_counter_reset(nps_counter_t *counter);

/** Draw the next number: 0, 1, 2, … over all ranks. Local. */
int64_t nps_counter_next(nps_counter_t *counter);

/** Let messages and other ranks' draws get on, as some networks need it; to be called now and then by a rank that computes. Does
 *  not wait. Local. */
void nps_comm_progress(const nps_comm_t *comm);

/** A pulse: progress and early failure of a phase in which ranks otherwise work alone, by a chain of non-blocking
 *  reductions. Every rank starts it, beats from time to time, and ends it; a rank that fails is known to all others at
 *  their next beats, without waiting for anyone. */
typedef struct nps_pulse nps_pulse_t;

/** Start a pulse. Collective. */
nps_pulse_t *nps_pulse_start(const nps_comm_t *comm);

/** Report this rank's progress. Does not wait. To be called by every rank from time to time.
 *  @param done  units done so far on this rank
 *  @param[out] total  units done on all ranks as last heard; may be NULL
 *  @return false when some rank is known to have failed: stop working and end the pulse */
bool nps_pulse_beat(nps_pulse_t *pulse, int64_t done, int64_t *total);

/** End a pulse: wait until every rank has ended or some rank failed, then agree as nps_comm_agree() does. Collective.
 *  @param done  units done on this rank
 *  @param err   this rank's result
 *  @param idle  called with the total about ten times a second while waiting; may be NULL
 *  @return the same code on every rank */
nps_err_t nps_pulse_end(nps_pulse_t *pulse, int64_t done, nps_err_t err, void (*idle)(void *ctx, int64_t total),
                        void *ctx);

#endif
