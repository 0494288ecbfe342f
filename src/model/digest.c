#include "nps/model.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHA_BYTES 32
#define BLOCK_BYTES ((int64_t)16 << 20)
/* Unread bytes before a part (a header, padding, a small tensor that another rank reads) that are worth reading here so
 * that the rest of the block need not be read again. */
#define GAP_BYTES ((int64_t)1 << 20)
#define BUFFER_BYTES ((size_t)256 << 10)
#define MAX_RANKS ((int64_t)1 << 20)

typedef struct block {
  EVP_MD_CTX *ctx; /* while its prefix is being hashed */
  int64_t hashed;  /* bytes of the prefix; the block's length when done */
  unsigned char digest[SHA_BYTES];
} block_t;

typedef struct file {
  char *path;
  int64_t size;
  int64_t block_count;
  block_t *blocks; /* NULL after nps_digest_finish() */
  char hex[2 * SHA_BYTES + 1];
} file_t;

struct nps_digest {
  file_t *files;
  int count;
  int last;           /* where the next search starts: ranks read file by file */
  const file_t *open; /* the file last read here, open as fd; NULL: none */
  int fd;
  unsigned char *buffer;
};

static _Noreturn void sha_failed(void) { nps_fatal("SHA-256 of the OpenSSL library does not work"); }

static EVP_MD_CTX *sha_start(void) {
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  if (!ctx || EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) sha_failed();
  return ctx;
}

static void sha_end(EVP_MD_CTX *ctx, unsigned char digest[SHA_BYTES]) {
  if (EVP_DigestFinal_ex(ctx, digest, NULL) != 1) sha_failed();
  EVP_MD_CTX_free(ctx);
}

static void sha_add(EVP_MD_CTX *ctx, const void *bytes, size_t n) {
  if (EVP_DigestUpdate(ctx, bytes, n) != 1) sha_failed();
}

void nps_sha256_hex(const void *bytes, size_t n, char hex[65]) {
  static const char digits[] = "0123456789abcdef";
  unsigned char digest[SHA_BYTES];
  EVP_MD_CTX *ctx = sha_start();
  sha_add(ctx, bytes, n);
  sha_end(ctx, digest);
  for (int i = 0; i < SHA_BYTES; i++) {
    hex[2 * i] = digits[digest[i] >> 4];
    hex[2 * i + 1] = digits[digest[i] & 15];
  }
  hex[2 * SHA_BYTES] = '\0';
}

static file_t *find_file(nps_digest_t *d, const char *path) {
  for (int i = 0; i < d->count; i++) {
    int at = (d->last + i) % d->count;
    if (strcmp(d->files[at].path, path) != 0) continue;
    d->last = at;
    return &d->files[at];
  }
  return NULL;
}

static void add_file(nps_digest_t *d, const nps_model_file_t *file) {
  if (find_file(d, file->path)) return;
  d->files = nps_xrealloc(d->files, (size_t)d->count + 1, sizeof *d->files);
  file_t *f = &d->files[d->count++];
  *f = (file_t){.path = nps_xstrdup(file->path), .size = file->size};
  f->block_count = file->size / BLOCK_BYTES + (file->size % BLOCK_BYTES != 0);
  f->blocks = nps_xcalloc((size_t)f->block_count, sizeof *f->blocks);
}

nps_digest_t *nps_digest_start(const nps_model_t *const *models, int n) {
  nps_digest_t *d = nps_xcalloc(1, sizeof *d);
  d->buffer = nps_xcalloc(BUFFER_BYTES, 1);
  for (int i = 0; i < n; i++)
    for (int j = 0; j < models[i]->file_count; j++) add_file(d, &models[i]->files[j]);
  return d;
}

static int64_t block_length(const file_t *f, int64_t index) {
  int64_t left = f->size - index * BLOCK_BYTES;
  return left < BLOCK_BYTES ? left : BLOCK_BYTES;
}

/* Continue the hashed prefix of a block. */
static void hash_bytes(file_t *f, int64_t index, const void *bytes, size_t n) {
  block_t *b = &f->blocks[index];
  if (!b->ctx) b->ctx = sha_start();
  sha_add(b->ctx, bytes, n);
  b->hashed += (int64_t)n;
  if (b->hashed < block_length(f, index)) return;
  sha_end(b->ctx, b->digest);
  b->ctx = NULL;
}

static void close_file(nps_digest_t *d) {
  if (d->open) close(d->fd);
  d->open = NULL;
}

/* Returns 0 or an errno. One file at a time: there may be more than a process may open. */
static int open_file(nps_digest_t *d, const file_t *f) {
  if (d->open == f) return 0;
  close_file(d);
  d->fd = open(f->path, O_RDONLY | O_CLOEXEC);
  if (d->fd < 0) return errno;
  d->open = f;
  return 0;
}

/* Continue the hashed prefix of a block up to `end` (counted from the block's start) from the file itself. Returns 0,
 * an errno, or -1 when the file ends before that. */
static int hash_from_file(nps_digest_t *d, file_t *f, int64_t index, int64_t end) {
  block_t *b = &f->blocks[index];
  if (b->hashed >= end) return 0;
  int cause = open_file(d, f);
  if (cause != 0) return cause;
  while (b->hashed < end) {
    int64_t left = end - b->hashed;
    size_t want = left < (int64_t)BUFFER_BYTES ? (size_t)left : BUFFER_BYTES;
    ssize_t got = pread(d->fd, d->buffer, want, index * BLOCK_BYTES + b->hashed);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : -1;
    hash_bytes(f, index, d->buffer, (size_t)got);
  }
  return 0;
}

/* Take n bytes that begin at `at` within a block and end in it. */
static void feed_block(nps_digest_t *d, file_t *f, int64_t index, int64_t at, const unsigned char *bytes, int64_t n) {
  block_t *b = &f->blocks[index];
  if (at - b->hashed > GAP_BYTES) return;
  /* A gap that cannot be read is left to nps_digest_finish(), which reports it. */
  if (at > b->hashed && hash_from_file(d, f, index, at) != 0) return;
  int64_t known = b->hashed - at;
  if (known < n) hash_bytes(f, index, bytes + known, (size_t)(n - known));
}

void nps_digest_feed(nps_digest_t *d, const char *path, int64_t offset, const void *bytes, size_t n) {
  file_t *f = find_file(d, path);
  if (!f || !f->blocks) return;
  assert(offset >= 0 && offset <= f->size && (int64_t)n <= f->size - offset);
  const unsigned char *p = bytes;
  int64_t end = offset + (int64_t)n;
  while (offset < end) {
    int64_t index = offset / BLOCK_BYTES;
    int64_t at = offset % BLOCK_BYTES;
    int64_t part = block_length(f, index) - at;
    if (part > end - offset) part = end - offset;
    feed_block(d, f, index, at, p, part);
    p += part;
    offset += part;
  }
}

/* ---- putting the ranks' parts together ---- */

static int64_t count_blocks(const nps_digest_t *d) {
  int64_t n = 0;
  for (int i = 0; i < d->count; i++) n += d->files[i].block_count;
  return n;
}

/* Find for every block the longest prefix hashed by any rank and the lowest rank that has it: the largest of
 * (bytes, rank from above) over all ranks, as one exact float64. */
static void find_longest(const nps_comm_t *comm, const nps_digest_t *d, int64_t n, int64_t *hashed, int *owner) {
  double *code = nps_xcalloc((size_t)n, sizeof *code);
  int64_t k = 0;
  for (int i = 0; i < d->count; i++)
    for (int64_t j = 0; j < d->files[i].block_count; j++)
      code[k++] = (double)(d->files[i].blocks[j].hashed * MAX_RANKS + (MAX_RANKS - 1 - nps_comm_rank(comm)));
  nps_comm_max_f64(comm, code, n);
  for (k = 0; k < n; k++) {
    int64_t value = (int64_t)code[k];
    hashed[k] = value / MAX_RANKS;
    owner[k] = (int)(MAX_RANKS - 1 - value % MAX_RANKS);
  }
  free(code);
}

static int least_loaded(const int64_t *load, int ranks) {
  int least = 0;
  for (int r = 1; r < ranks; r++)
    if (load[r] < load[least]) least = r;
  return least;
}

/* Choose who finishes each block that no rank has whole: the one with the longest prefix, unless another that starts
 * anew would be done earlier. Every rank comes to the same choice. */
static void share_out(const nps_digest_t *d, int ranks, const int64_t *hashed, int *owner) {
  int64_t *load = nps_xcalloc((size_t)ranks, sizeof *load);
  int64_t k = 0;
  for (int i = 0; i < d->count; i++)
    for (int64_t j = 0; j < d->files[i].block_count; j++, k++) {
      int64_t length = block_length(&d->files[i], j);
      int64_t rest = length - hashed[k];
      if (rest == 0) continue;
      int other = least_loaded(load, ranks);
      if (load[other] + length <= load[owner[k]] + rest) {
        owner[k] = other;
        rest = length;
      }
      load[owner[k]] += rest;
    }
  free(load);
}

static nps_err_t hash_own_blocks(nps_digest_t *d, const int *owner, int rank) {
  int64_t k = 0;
  for (int i = 0; i < d->count; i++)
    for (int64_t j = 0; j < d->files[i].block_count; j++) {
      file_t *f = &d->files[i];
      if (owner[k++] != rank) continue;
      int cause = hash_from_file(d, f, j, block_length(f, j));
      if (cause < 0)
        return nps_fail(NPS_ERR_INPUT, "%s: became shorter while it was read: expected %lld bytes", f->path,
                        (long long)f->size);
      if (cause > 0) return nps_fail(NPS_ERR_INPUT, "%s: cannot be read: %s", f->path, strerror(cause));
    }
  return NPS_OK;
}

/* Bring all blocks' digests to every rank (one rank's words are not zero) and hash them file by file. */
static void gather(const nps_comm_t *comm, nps_digest_t *d, int64_t n, const int *owner) {
  enum { WORDS = SHA_BYTES / sizeof(int64_t) };
  int64_t *words = nps_xcalloc((size_t)n * WORDS, sizeof *words);
  int64_t k = 0;
  for (int i = 0; i < d->count; i++)
    for (int64_t j = 0; j < d->files[i].block_count; j++, k++)
      if (owner[k] == nps_comm_rank(comm)) memcpy(words + k * WORDS, d->files[i].blocks[j].digest, SHA_BYTES);
  nps_comm_sum_i64(comm, words, n * WORDS);
  k = 0;
  for (int i = 0; i < d->count; i++) {
    file_t *f = &d->files[i];
    nps_sha256_hex(words + k * WORDS, (size_t)f->block_count * SHA_BYTES, f->hex);
    k += f->block_count;
  }
  free(words);
}

static void drop_blocks(file_t *f) {
  if (f->blocks)
    for (int64_t j = 0; j < f->block_count; j++) EVP_MD_CTX_free(f->blocks[j].ctx);
  free(f->blocks);
  f->blocks = NULL;
}

nps_err_t nps_digest_finish(const nps_comm_t *comm, nps_digest_t *d) {
  assert(nps_comm_size(comm) <= MAX_RANKS);
  int64_t n = count_blocks(d);
  int64_t *hashed = nps_xcalloc((size_t)n, sizeof *hashed);
  int *owner = nps_xcalloc((size_t)n, sizeof *owner);
  find_longest(comm, d, n, hashed, owner);
  share_out(d, nps_comm_size(comm), hashed, owner);
  nps_err_t err = nps_comm_agree(comm, hash_own_blocks(d, owner, nps_comm_rank(comm)));
  if (err == NPS_OK) gather(comm, d, n, owner);
  for (int i = 0; i < d->count; i++) drop_blocks(&d->files[i]);
  close_file(d);
  free(hashed);
  free(owner);
  return err;
}

int nps_digest_count(const nps_digest_t *d) { return d->count; }
const char *nps_digest_path(const nps_digest_t *d, int i) { return d->files[i].path; }
int64_t nps_digest_size(const nps_digest_t *d, int i) { return d->files[i].size; }
const char *nps_digest_hex(const nps_digest_t *d, int i) { return d->files[i].hex; }

void nps_digest_free(nps_digest_t *d) {
  if (!d) return;
  close_file(d);
  for (int i = 0; i < d->count; i++) {
    drop_blocks(&d->files[i]);
    free(d->files[i].path);
  }
  free(d->files);
  free(d->buffer);
  free(d);
}
