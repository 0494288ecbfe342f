#include "cli.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "nps/blas.h"
#include "nps/comm_mpi.h"
#include "nps/h5.h"

#include <signal.h>
#include <string.h>
#include <sys/resource.h>

static void abort_all(int exit_code) { MPI_Abort(MPI_COMM_WORLD, exit_code); }

static void drop_note(void *ctx, const char *text) { (void)ctx, (void)text; }

/* MPI and HDF5 hold files open besides ours: the soft limit is often small for old programs' sake alone. */
static void allow_many_files(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

nps_comm_t *cli_start(int *argc, char ***argv) {
  MPI_Init(argc, argv);
  allow_many_files();
  nps_blas_start();
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a failing write like a full disk, not the end */
  nps_fatal_set_handler(abort_all);
  nps_comm_t *comm = nps_comm_from_mpi(MPI_COMM_WORLD);
  if (nps_comm_rank(comm) != 0) nps_note_set_sink(drop_note, NULL);
  return comm;
}

void cli_finish(nps_comm_t *comm) {
  nps_comm_free(comm);
  MPI_Finalize();
}

char *cli_version(const cli_program_t *program) {
  char library[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  nps_text_t t = {0};
  MPI_Get_library_version(library, &length);
  library[strcspn(library, ",\n")] = '\0'; /* some libraries add their build's host and configure line */
  nps_text_add(&t, "%s %s\n%s\nHDF5 %s\n", program->name, PACKAGE_VERSION, library, nps_h5_version());
  return t.text;
}
