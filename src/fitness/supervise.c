/* The supervisor of a command: a process of its own, started from the same program, that knows nothing of MPI. It starts the
 * command, tells when that has ended, and ends it, with all that it has started, when it is told to or its owner is gone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* ppoll */
#endif

#include "supervise.h"

#include "nps/command.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
  (void)st, (void)kind, (void)ftw;
  remove(path);
  return 0;
}

void nps_folder_remove(const char *path) { nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

/* Libraries open files without close-on-exec. */
static void close_other_files(void) {
  DIR *dir = opendir("/proc/self/fd");
  if (!dir) return;
  for (struct dirent *e; (e = readdir(dir));) {
    const int fd = atoi(e->d_name);
    if (fd > NPS_SUPERVISOR_SOCKET && fd != dirfd(dir)) close(fd);
  }
  closedir(dir);
}

static void ignore_child(int signal) { (void)signal; }

/* Only the end of a child wakes the supervisor: whoever sends signals to a whole job does not mean it.
 * @param[out] awake  signals to be blocked while it waits */
static void take_signals(sigset_t *awake) {
  struct sigaction action = {.sa_handler = ignore_child};
  sigfillset(awake);
  sigprocmask(SIG_SETMASK, awake, NULL);
  sigdelset(awake, SIGCHLD);
  sigemptyset(&action.sa_mask);
  sigaction(SIGCHLD, &action, NULL);
}

static _Noreturn void become_command(char **words, pid_t supervisor) {
  sigset_t none;
  sigemptyset(&none);
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != supervisor) _exit(127);
  signal(SIGCHLD, SIG_DFL);
  signal(SIGUSR1, SIG_IGN); /* a batch system's warning, sent to all of a job, is for nps-merge */
  sigprocmask(SIG_SETMASK, &none, NULL);
  close(NPS_SUPERVISOR_SOCKET);
  execvp(words[0], words);
  dprintf(STDERR_FILENO, "%s cannot be run: %s\n", words[0], strerror(errno));
  _exit(127);
}

/* The pipes are the command's alone: their ends tell that it is gone. */
static void leave_pipes(void) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  for (int fd = 0; fd <= 2; fd++)
    if (null < 0 || dup2(null, fd) < 0) close(fd);
}

/* Children of the command that outlived it come to the supervisor. */
static void kill_orphans(void) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
  for (int round = 0; round < 100; round++) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) return;
    while (n > 0 && text[n - 1] != ' ') n--; /* a number may be cut in two */
    text[n] = '\0';
    for (char *at = text, *end; *at; at = end + strspn(end, " \n")) {
      const long pid = strtol(at, &end, 10);
      if (end == at) break;
      if (pid > 1) kill((pid_t)pid, SIGKILL);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    poll(NULL, 0, 2);
  }
}

/* Before it is reaped, so that its number is nobody else's. @return its status */
static int kill_all(pid_t command) {
  int status = 0;
  kill(-command, SIGKILL);
  kill(command, SIGKILL);
  waitpid(command, &status, 0);
  kill_orphans();
  return status;
}

static bool has_ended(pid_t command) {
  siginfo_t info = {0};
  return waitid(P_PID, (id_t)command, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == command;
}

/* Waits until the owner is gone or has had enough. @return whether it is gone */
static bool watch(pid_t command, const sigset_t *awake) {
  struct pollfd socket = {.fd = NPS_SUPERVISOR_SOCKET, .events = POLLIN};
  bool running = true;
  for (;;) {
    char byte;
    if (running && has_ended(command)) {
      const int status = kill_all(command);
      running = false;
      if (send(NPS_SUPERVISOR_SOCKET, &status, sizeof status, MSG_NOSIGNAL) < 0) return true;
    }
    if (ppoll(&socket, 1, NULL, awake) <= 0) continue;
    const ssize_t n = read(NPS_SUPERVISOR_SOCKET, &byte, 1);
    if (running)
      kill_all(command);
    else
      kill_orphans();
    return n <= 0;
  }
}

bool nps_command_supervise(int argc, char **argv, int *exit_code) {
  if (argc < 3 || strcmp(argv[0], NPS_SUPERVISOR) != 0) return false;
  const pid_t self = getpid();
  sigset_t awake;
  prctl(PR_SET_NAME, "nps-supervisor");
  close_other_files();
  take_signals(&awake);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const pid_t command = fork(); /* of a process without MPI and threads */
  if (command == 0) become_command(argv + 2, self);
  if (command < 0) dprintf(STDERR_FILENO, "%s cannot be started: %s\n", argv[2], strerror(errno));
  if (command > 0) setpgid(command, command); /* whoever of the two comes first */
  leave_pipes();
  *exit_code = command < 0;
  if (command > 0 && watch(command, &awake) && argv[1][0]) nps_folder_remove(argv[1]);
  return true;
}
