#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* pipe2 */
#endif

#include "child.h"
#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Seconds that a supervisor gets to kill what it has started. */
#define KILL_SECONDS 5.0

/* ---- what a process gets ---- */

/* Variables by which a process is taken for a rank of an MPI job. */
static bool is_of_mpi(const char *variable) {
  static const char *const prefixes[] = {"OMPI_", "PMIX_", "PMI_", "PMI2_", "PRTE_", "ORTE_", "MV2_COMM_", "MPI_LOCAL"};
  for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
    if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0) return true;
  return strncmp(variable, "NPS_GROUP=", 10) == 0;
}

/* The environment without MPI's variables. @return NULL-terminated; the last before it is owned */
static char **make_environment(int group, int *count) {
  int n = 0;
  while (environ && environ[n]) n++;
  char **out = nps_xcalloc((size_t)n + 2, sizeof *out);
  *count = 0;
  for (int i = 0; i < n; i++)
    if (!is_of_mpi(environ[i])) out[(*count)++] = environ[i];
  out[(*count)++] = nps_xstrf("NPS_GROUP=%d", group);
  return out;
}

/* The supervisor's command line. @return NULL-terminated; the texts are borrowed */
static char **make_words(const nps_command_options_t *o) {
  char **out = nps_xcalloc((size_t)o->word_count + 3, sizeof *out);
  out[0] = (char *)NPS_SUPERVISOR;
  out[1] = (char *)(o->folder ? o->folder : "");
  for (int i = 0; i < o->word_count; i++) out[2 + i] = o->words[i];
  return out;
}

/* ---- pipes ---- */

/* [0] is ours, [1] the process's. */
typedef struct {
  int in[2], out[2], err[2], socket[2];
} ends_t;

static void close_one(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static void close_side(ends_t *e, int side) {
  close_one(&e->in[side]);
  close_one(&e->out[side]);
  close_one(&e->err[side]);
  close_one(&e->socket[side]);
}

/* Above the numbers that the process has them at. */
static bool lift(int *fd) {
  enum { LEAST = 16 };
  const int lifted = fcntl(*fd, F_DUPFD_CLOEXEC, LEAST);
  close(*fd);
  *fd = lifted;
  return lifted >= 0;
}

/* @param reads  which of the two reads: 0 we, 1 the process */
static bool open_pipe(int ends[2], int reads) {
  int fd[2];
  if (pipe2(fd, O_CLOEXEC) != 0) return false;
  ends[reads] = fd[0];
  ends[1 - reads] = fd[1];
  return lift(&ends[0]) && lift(&ends[1]) && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0;
}

static bool open_ends(ends_t *e) {
  *e = (ends_t){{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
  return open_pipe(e->in, 1) && open_pipe(e->out, 0) && open_pipe(e->err, 0) &&
         socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, e->socket) == 0 && lift(&e->socket[0]) &&
         lift(&e->socket[1]);
}

/* ---- starting ---- */

static int spawn(const ends_t *e, char **words, char **environment, pid_t *pid) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  sigset_t all, none;
  sigfillset(&all);
  sigdelset(&all, SIGKILL);
  sigdelset(&all, SIGSTOP);
  sigemptyset(&none);
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, e->in[1], 0);
  posix_spawn_file_actions_adddup2(&files, e->out[1], 1);
  posix_spawn_file_actions_adddup2(&files, e->err[1], 2);
  posix_spawn_file_actions_adddup2(&files, e->socket[1], NPS_SUPERVISOR_SOCKET);
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  const int code = posix_spawn(pid, "/proc/self/exe", &files, &attributes, words, environment);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  return code;
}

int nps_child_start(const nps_command_options_t *options, nps_child_t *child) {
  ends_t e;
  int count = 0;
  char **words = make_words(options), **environment = make_environment(options->group, &count);
  *child = (nps_child_t){.supervisor = -1};
  int code = open_ends(&e) ? 0 : errno;
  if (code == 0) code = spawn(&e, words, environment, &child->supervisor);
  if (code != 0) close_side(&e, 0);
  close_side(&e, 1);
  child->in = e.in[0];
  child->out = e.out[0];
  child->err = e.err[0];
  child->socket = e.socket[0];
  free(environment[count - 1]);
  free(environment);
  free(words);
  return code;
}

/* ---- its end ---- */

bool nps_child_look(nps_child_t *child, double seconds) {
  struct pollfd p = {.fd = child->socket, .events = POLLIN};
  const double until = nps_now() + seconds;
  while (!child->ended) {
    const double left = until - nps_now();
    const int ready = poll(&p, 1, left > 0 ? (int)(1000 * left) + 1 : 0);
    if (ready > 0) {
      child->known = recv(child->socket, &child->status, sizeof child->status, 0) == (ssize_t)sizeof child->status;
      child->ended = true;
    } else if (left <= 0)
      break;
  }
  return child->ended;
}

char *nps_child_end(const nps_child_t *child) {
  if (!child->known) return nps_xstrdup("was ended together with its supervisor");
  if (WIFEXITED(child->status)) return nps_xstrf("ended with exit code %d", WEXITSTATUS(child->status));
  return nps_xstrf("was ended by signal %d (%s)", WTERMSIG(child->status), strsignal(WTERMSIG(child->status)));
}

void nps_child_kill(nps_child_t *child) {
  const char byte = 0;
  if (child->supervisor < 0) return;
  close_one(&child->in);
  if (send(child->socket, &byte, 1, MSG_NOSIGNAL) < 0) kill(child->supervisor, SIGKILL); /* it is gone already */
  const double until = nps_now() + KILL_SECONDS;
  pid_t gone;
  while ((gone = waitpid(child->supervisor, NULL, WNOHANG)) == 0 && nps_now() < until) poll(NULL, 0, 2);
  if (gone == 0) { /* the kernel cannot end the command now: it will when it can */
    kill(child->supervisor, SIGKILL);
    waitpid(child->supervisor, NULL, 0);
  }
  child->supervisor = -1;
}

void nps_child_close(nps_child_t *child) {
  close_one(&child->in);
  close_one(&child->out);
  close_one(&child->err);
  close_one(&child->socket);
}

/* ---- writing ---- */

ssize_t nps_child_write(const nps_child_t *child, const void *bytes, size_t n) {
  sigset_t pipe, before, pending;
  const struct timespec now = {0};
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  sigpending(&pending);
  pthread_sigmask(SIG_BLOCK, &pipe, &before);
  const ssize_t done = write(child->in, bytes, n);
  const int code = errno;
  if (done < 0 && code == EPIPE && !sigismember(&pending, SIGPIPE)) sigtimedwait(&pipe, NULL, &now);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = code;
  return done;
}
