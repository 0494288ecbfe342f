/* Loaded before the C library by tests of failures: NPS_FAULT="RANK PART FILE" lets pread() on rank RANK, of a file whose path
 * has PART in it, fail with EIO where FILE is "-", and hang while FILE exists elsewhere. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int concerns(int fd, const char *part) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  path[n < 0 ? 0 : n] = '\0';
  return strstr(path, part) != NULL;
}

ssize_t pread(int fd, void *to, size_t n, off_t at) {
  char part[512], file[2048];
  int rank = -1;
  const char *fault = getenv("NPS_FAULT"), *mine = getenv("OMPI_COMM_WORLD_RANK");
  ssize_t (*real)(int, void *, size_t, off_t) = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
  if (fault && mine && sscanf(fault, "%d %511s %2047s", &rank, part, file) == 3 && rank == atoi(mine) &&
      concerns(fd, part)) {
    if (strcmp(file, "-") == 0) {
      errno = EIO;
      return -1;
    }
    while (access(file, F_OK) == 0) usleep(10000);
  }
  return real(fd, to, n, at);
}

ssize_t pread64(int fd, void *to, size_t n, off_t at) { return pread(fd, to, n, at); }
