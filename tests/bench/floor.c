/* The least that a merge can take: N processes read all input files, hash them as provenance does (SHA-256 of every
 * block of 16 MiB) and write as many bytes as the output has. Prints the seconds.
 *
 *   floor PROCESSES OUT_BYTES OUT SYNC INPUT... */
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK ((int64_t)16 << 20)
#define PART ((size_t)1 << 20)

static unsigned char buffer[PART];

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void give_up(const char *what) {
  perror(what);
  exit(1);
}

/* Hashes the blocks of a file that are this process's. Returns how many blocks the file has. */
static int64_t hash_file(const char *path, int process, int processes, int64_t before) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  struct stat st;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &st) != 0) give_up(path);
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  int64_t blocks = (st.st_size + BLOCK - 1) / BLOCK;
  for (int64_t b = 0; b < blocks; b++) {
    if ((before + b) % processes != process) continue;
    EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
    int64_t end = (b + 1) * BLOCK < st.st_size ? (b + 1) * BLOCK : st.st_size;
    for (int64_t at = b * BLOCK; at < end;) {
      ssize_t n = pread(fd, buffer, end - at < (int64_t)PART ? (size_t)(end - at) : PART, at);
      if (n <= 0) give_up(path);
      EVP_DigestUpdate(ctx, buffer, (size_t)n);
      at += n;
    }
    EVP_DigestFinal_ex(ctx, digest, NULL);
  }
  EVP_MD_CTX_free(ctx);
  close(fd);
  return blocks;
}

static void write_share(int fd, int process, int processes, int64_t bytes) {
  int64_t first = bytes / processes * process,
          end = process == processes - 1 ? bytes : bytes / processes * (process + 1);
  for (int64_t at = first; at < end;) {
    ssize_t n = pwrite(fd, buffer, end - at < (int64_t)PART ? (size_t)(end - at) : PART, at);
    if (n <= 0) give_up("write");
    at += n;
  }
}

int main(int argc, char **argv) {
  if (argc < 6) return 2;
  const int processes = atoi(argv[1]), sync = atoi(argv[4]);
  const int64_t bytes = atoll(argv[2]);
  double start = now();
  int fd = open(argv[3], O_CREAT | O_TRUNC | O_WRONLY, 0666);
  if (fd < 0 || ftruncate(fd, bytes) != 0) give_up(argv[3]);
  for (int p = 0; p < processes; p++) {
    if (fork() != 0) continue;
    int64_t blocks = 0;
    for (int i = 5; i < argc; i++) blocks += hash_file(argv[i], p, processes, blocks);
    write_share(fd, p, processes, bytes);
    if (sync && fdatasync(fd) != 0) give_up(argv[3]);
    _exit(0);
  }
  int failed = 0, status = 0;
  while (wait(&status) > 0) failed |= status != 0;
  printf("%.3f\n", now() - start);
  return failed;
}
