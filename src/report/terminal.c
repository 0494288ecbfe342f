#include "report_private.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_ANCESTORS = 16 };

static bool same_file(int a, int b) {
  struct stat x, y;
  return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static int parent_of(int pid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *f = fopen(path, "re");
  size_t size = f ? fread(text, 1, sizeof text - 1, f) : 0;
  if (f) fclose(f);
  text[size] = '\0';
  const char *after_name = strrchr(text, ')'); /* the name may hold anything */
  int parent = 0;
  return after_name && sscanf(after_name, ") %*c %d", &parent) == 1 ? parent : 0;
}

/* Open MPI's mpirun gives its processes a pseudo-terminal as stdout and a pipe as stderr, whatever its own are: where the
 * text ends is seen at the nearest ancestor that has another file there. */
static int open_behind_launcher(int fd) {
  char path[64];
  int pid = getppid();
  for (int i = 0; i < MOST_ANCESTORS && pid > 1; i++, pid = parent_of(pid)) {
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    int behind = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (behind < 0) return -1;
    if (!same_file(behind, fd)) return behind;
    close(behind);
  }
  return -1;
}

int nps_report_terminal(FILE *stream) {
  const char *term = getenv("TERM");
  if (!term || !*term || strcmp(term, "dumb") == 0) return -1;
  int fd = fileno(stream);
  int behind = getenv("OMPI_COMM_WORLD_RANK") ? open_behind_launcher(fd) : fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (behind < 0 || isatty(behind)) return behind;
  close(behind);
  return -1;
}

bool nps_report_colour(FILE *stream) {
  const char *no_color = getenv("NO_COLOR");
  if (no_color && *no_color) return false;
  int terminal = nps_report_terminal(stream);
  if (terminal >= 0) close(terminal);
  return terminal >= 0;
}

int nps_report_terminal_width(int terminal) {
  struct winsize size = {0};
  if (ioctl(terminal, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}
