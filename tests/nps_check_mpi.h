/** @file nps_check_mpi.h
 *  nps_check.h for tests that several ranks run together. */
#ifndef NPS_CHECK_MPI_H
#define NPS_CHECK_MPI_H

#include "nps/comm_mpi.h"
#include "nps_check.h"

static nps_comm_t *comm; /* all ranks */
static int rank, size;

static inline void start_mpi(int *argc, char ***argv) {
  MPI_Init(argc, argv);
  comm = nps_comm_from_mpi(MPI_COMM_WORLD);
  rank = nps_comm_rank(comm);
  size = nps_comm_size(comm);
}

/** Run the tests on every rank; rank 0 tells. @return how many failed, on all ranks together */
static inline int64_t run_tests_everywhere(const char *name, TCase *cases) {
  int64_t failed = count_failures(name, cases, rank == 0);
  nps_comm_sum_i64(comm, &failed, 1);
  return failed;
}

/** End MPI. @return the program's exit code */
static inline int end_mpi(int64_t failed) {
  nps_comm_free(comm);
  MPI_Finalize();
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/** Whether something holds on every rank: a failing assertion on one rank alone would leave the others waiting. */
static inline bool everywhere(bool ok) {
  for (int i = 0; !ok && i < nps_problem_count(); i++) fprintf(stderr, "rank %d: %s\n", rank, nps_problem_text(i));
  int64_t bad = ok ? 0 : 1;
  nps_comm_sum_i64(comm, &bad, 1);
  return bad == 0;
}

/** Make a new empty folder for all ranks. @return on every rank alike whether it is there */
static inline bool make_common_folder(void) {
  const bool made = rank != 0 || make_new_folder();
  nps_comm_bcast(comm, folder, sizeof folder);
  return everywhere(made);
}

/** Remove it when no rank needs it any more. */
static inline void remove_common_folder(void) {
  nps_comm_barrier(comm);
  if (rank == 0) remove_all(folder);
}

#endif
