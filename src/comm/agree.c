#include "nps/comm_mpi.h"
#include "nps/watch.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG_PROBLEMS = 4711 };

/* Codes in the order in which nps_err_worse() prefers them, so that a minimum finds the worst: smallest exit code, then
 * smallest code; NPS_OK last. */
static int badness(nps_err_t err) {
  return err == NPS_OK ? NPS_ERR_COUNT * 16 : nps_err_exit_code(err) * NPS_ERR_COUNT + (int)err;
}

static nps_err_t of_badness(int value) {
  return value == NPS_ERR_COUNT * 16 ? NPS_OK : (nps_err_t)(value % NPS_ERR_COUNT);
}

static char *join_problems(void) {
  nps_text_t t = {0};
  for (int i = 0; i < nps_problem_count(); i++) {
    const char code = (char)nps_problem_code(i);
    nps_text_add_bytes(&t, &code, 1);
    nps_text_add_bytes(&t, nps_problem_text(i), strlen(nps_problem_text(i)) + 1);
  }
  nps_text_add_bytes(&t, "", 1);
  return t.text;
}

static size_t joined_size(const char *text) {
  const char *at = text;
  while (*at) at += 1 + strlen(at + 1) + 1;
  return (size_t)(at - text) + 1;
}

static void record_joined(const char *text) {
  for (const char *at = text; *at; at += 1 + strlen(at + 1) + 1) nps_fail((nps_err_t)*at, "%s", at + 1);
}

/* Brings the problems of rank `from` to rank 0; all other ranks forget theirs. */
static void gather_problems(const nps_comm_t *comm, int from) {
  MPI_Comm mpi = nps_comm_mpi(comm);
  int rank = nps_comm_rank(comm);
  if (rank == from && from != 0) {
    char *text = join_problems();
    MPI_Send(text, (int)joined_size(text), MPI_BYTE, 0, TAG_PROBLEMS, mpi);
    free(text);
  }
  if (rank == 0 && from == 0) return;
  nps_problem_clear();
  if (rank != 0) return;
  MPI_Status status;
  int size = 0;
  MPI_Probe(from, TAG_PROBLEMS, mpi, &status);
  MPI_Get_count(&status, MPI_BYTE, &size);
  char *text = nps_xcalloc((size_t)size, 1);
  MPI_Recv(text, size, MPI_BYTE, from, TAG_PROBLEMS, mpi, MPI_STATUS_IGNORE);
  record_joined(text);
  free(text);
}

nps_err_t nps_comm_agree(const nps_comm_t *comm, nps_err_t err) {
  struct {
    int value, rank;
  } mine = {badness(err), nps_comm_rank(comm)}, worst;
  nps_watch_begin_wait();
  MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MINLOC, nps_comm_mpi(comm));
  nps_err_t agreed = of_badness(worst.value);
  if (agreed != NPS_OK) gather_problems(comm, worst.rank);
  nps_watch_end();
  return agreed;
}

/* One reduction is on its way at any time; the next starts when it is complete. All ranks see the same results, so
 * that they stop after the same one: when all have ended, or some rank has failed and all know. */
enum { PULSE_DONE, PULSE_ENDED, PULSE_FAILED, PULSE_FIELDS };

struct nps_pulse {
  const nps_comm_t *comm;
  MPI_Comm mpi;
  MPI_Request request;
  int64_t sent[PULSE_FIELDS];
  int64_t heard[PULSE_FIELDS];
  int64_t total;
  bool ended, failed; /* this rank's state, sent with the next reduction */
  bool stop;          /* some rank has failed */
  bool finished;      /* the last reduction is complete */
};

static void send_next(nps_pulse_t *p, int64_t done) {
  p->sent[PULSE_DONE] = done;
  p->sent[PULSE_ENDED] = p->ended;
  p->sent[PULSE_FAILED] = p->failed;
  MPI_Iallreduce(p->sent, p->heard, PULSE_FIELDS, MPI_INT64_T, MPI_SUM, p->mpi, &p->request);
}

static void advance(nps_pulse_t *p, int64_t done) {
  if (p->finished) return;
  int complete = 0;
  MPI_Test(&p->request, &complete, MPI_STATUS_IGNORE);
  if (!complete) return;
  p->total = p->heard[PULSE_DONE];
  p->stop = p->heard[PULSE_FAILED] > 0;
  p->finished = p->heard[PULSE_ENDED] == nps_comm_size(p->comm);
  if (!p->finished) send_next(p, done);
}

nps_pulse_t *nps_pulse_start(const nps_comm_t *comm) {
  nps_pulse_t *p = nps_xcalloc(1, sizeof *p);
  p->comm = comm;
  nps_watch_begin_wait();
  MPI_Comm_dup(nps_comm_mpi(comm), &p->mpi);
  nps_watch_end();
  send_next(p, 0);
  return p;
}

bool nps_pulse_beat(nps_pulse_t *pulse, int64_t done, int64_t *total) {
  nps_watch_beat();
  advance(pulse, done);
  if (total) *total = pulse->total;
  return !pulse->stop;
}

nps_err_t nps_pulse_end(nps_pulse_t *pulse, int64_t done, nps_err_t err, void (*idle)(void *ctx, int64_t total),
                        void *ctx) {
  double shown = nps_now();
  nps_watch_begin_wait();
  pulse->ended = true;
  pulse->failed = err != NPS_OK;
  while (!pulse->finished) {
    advance(pulse, done);
    if (pulse->finished) break;
    const struct timespec pause = {0, 200000};
    nanosleep(&pause, NULL);
    if (idle && nps_now() - shown > 0.1) {
      idle(ctx, pulse->total);
      shown = nps_now();
    }
  }
  nps_watch_end();
  MPI_Comm_free(&pulse->mpi);
  const nps_comm_t *comm = pulse->comm;
  free(pulse);
  return nps_comm_agree(comm, err);
}
