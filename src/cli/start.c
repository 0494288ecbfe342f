#include "cli.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include "nps/blas.h"
#include "nps/comm_mpi.h"
#include "nps/h5.h"
#include "nps/watch.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static void abort_all(int exit_code) { MPI_Abort(MPI_COMM_WORLD, exit_code); }

static void drop_note(void *ctx, const char *text) { (void)ctx, (void)text; }

/* MPI and HDF5 hold files open besides ours: the soft limit is often small for old programs' sake alone. */
static void allow_many_files(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

/* NPS_WATCH_SECONDS: after how many seconds without progress the watchdog tells; 0: never. */
static double watch_seconds(void) {
  enum { DEFAULT = 120 };
  const char *text = getenv("NPS_WATCH_SECONDS");
  char *end = NULL;
  if (!text || !*text) return DEFAULT;
  const double seconds = strtod(text, &end);
  if (!*end && seconds >= 0) return seconds;
  nps_note("NPS_WATCH_SECONDS: expected a number from 0 on, found '%s': taken as %d", text, DEFAULT);
  return DEFAULT;
}

static void start_watch(const nps_comm_t *comm, const char *program) {
  char host[256] = "";
  const char *slash = strrchr(program, '/');
  if (gethostname(host, sizeof host - 1) != 0) strcpy(host, "an unknown host");
  char *who = nps_xstrf("%s: rank %d on %s", slash ? slash + 1 : program, nps_comm_rank(comm), host);
  nps_watch_start(who, watch_seconds(), nps_comm_rank(comm) == 0);
  free(who);
}

/* Open MPI 4 chooses a one-sided component for TCP between hosts that then fails; the next one works. */
static void avoid_broken_windows(void) {
#if defined(OMPI_MAJOR_VERSION) && OMPI_MAJOR_VERSION < 5
  setenv("OMPI_MCA_osc", "^rdma", 0);
#endif
}

nps_comm_t *cli_start(int *argc, char ***argv) {
  avoid_broken_windows();
  int threads; /* of the watchdog and of BLAS, which call no MPI */
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &threads);
  allow_many_files();
  nps_blas_start();
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit is a failing write like a full disk, not the end */
  nps_fatal_set_handler(abort_all);
  nps_comm_t *comm = nps_comm_from_mpi(MPI_COMM_WORLD);
  if (nps_comm_rank(comm) != 0) nps_note_set_sink(drop_note, NULL);
  start_watch(comm, *argc > 0 ? (*argv)[0] : "nps");
  return comm;
}

void cli_finish(nps_comm_t *comm) {
  nps_comm_free(comm);
  nps_watch_stop();
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
