#include "nps/model.h"
#include "nps/watch.h"
#include "sha256.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES ((int64_t)16 << 20)
/* Unread bytes before a part (a header, padding, a small tensor that another rank reads) that are worth reading here so
 * that the rest of the block need not be read again. */
#define GAP_BYTES ((int64_t)1 << 20)
#define BUFFER_BYTES ((size_t)256 << 10)
#define MAX_RANKS ((int64_t)1 << 20)

typedef struct block {
  nps_sha_t *sha; /* while its prefix is being hashed */
  int64_t hashed; /* bytes of the prefix; the block's length when done */
  unsigned char digest[NPS_SHA_BYTES];
} block_t;

typedef struct file {
  char *path;
  int64_t size;
  int64_t block_count;
  block_t *blocks; /* NULL when the file is hashed */
  char hex[2 * NPS_SHA_BYTES + 1];
} file_t;

struct nps_digest {
  file_t *files;
  int count;
  int last;           /* where the next search starts: ranks read file by file */
  const file_t *open; /* the file last read here, open as fd; NULL: none */
  int fd;
  unsigned char *buffer;
};

void nps_sha256_hex(const void *bytes, size_t n, char hex[65]) {
  static const char digits[] = "0123456789abcdef";
  unsigned char digest[NPS_SHA_BYTES];
  nps_sha_t *sha = nps_sha_new(false);
  nps_sha_add(sha, bytes, n);
  nps_sha_end(sha, digest);
  for (int i = 0; i < NPS_SHA_BYTES; i++) {
    hex[2 * i] = digits[digest[i] >> 4];
    hex[2 * i + 1] = digits[digest[i] & 15];
  }
  hex[2 * NPS_SHA_BYTES] = '\0';
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

static void drop_blocks(file_t *f) {
  if (f->blocks)
    for (int64_t j = 0; j < f->block_count; j++) nps_sha_free(f->blocks[j].sha);
  free(f->blocks);
  f->blocks = NULL;
  f->block_count = 0;
}

void nps_digest_take(nps_digest_t *d, const nps_digest_t *finished) {
  for (int i = 0; i < finished->count; i++) {
    file_t *f = find_file(d, finished->files[i].path);
    if (!f || finished->files[i].blocks) continue;
    memcpy(f->hex, finished->files[i].hex, sizeof f->hex);
    drop_blocks(f);
  }
}

static int64_t block_length(const file_t *f, int64_t index) {
  int64_t left = f->size - index * BLOCK_BYTES;
  return left < BLOCK_BYTES ? left : BLOCK_BYTES;
}

static nps_sha_t *sha_of(block_t *b) {
  if (!b->sha) b->sha = nps_sha_new(false);
  return b->sha;
}

/* Note that the hashed prefix of a block is n bytes longer. */
static void advance(file_t *f, int64_t index, size_t n) {
  block_t *b = &f->blocks[index];
  b->hashed += (int64_t)n;
  if (b->hashed < block_length(f, index)) return;
  nps_sha_end(b->sha, b->digest);
  b->sha = NULL;
}

/* Continue the hashed prefix of a block. */
static void hash_bytes(file_t *f, int64_t index, const void *bytes, size_t n) {
  nps_sha_add(sha_of(&f->blocks[index]), bytes, n);
  advance(f, index, n);
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
    ssize_t got = nps_watch_pread(d->fd, d->buffer, want, index * BLOCK_BYTES + b->hashed, f->path);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : -1;
    hash_bytes(f, index, d->buffer, (size_t)got);
  }
  return 0;
}

/* ---- bytes that were read ---- */

/* What is left of a part, and the stretch at its front that goes into one block. */
typedef struct feed {
  file_t *file;
  const unsigned char *bytes;
  int64_t offset, end;
  int64_t index; /* the block */
  size_t n;      /* bytes of the stretch; 0: none */
} feed_t;

static feed_t begin_feed(nps_digest_t *d, const nps_digest_part_t *part) {
  feed_t feed = {.file = find_file(d, part->path), .bytes = part->bytes, .offset = part->offset};
  if (!feed.file || !feed.file->blocks) return (feed_t){0};
  assert(part->offset >= 0 && part->offset <= feed.file->size && (int64_t)part->n <= feed.file->size - part->offset);
  feed.end = part->offset + (int64_t)part->n;
  return feed;
}

static void drop_front(feed_t *feed, int64_t n) {
  feed->bytes += n;
  feed->offset += n;
}

/* How many of the next n bytes, which begin at `at` within a block and end in it, are hashed already; n where a gap before
 * them is not worth filling, or cannot be read, which is left to nps_digest_finish() to report. */
static int64_t known_bytes(nps_digest_t *d, file_t *f, int64_t index, int64_t at, int64_t n) {
  const block_t *b = &f->blocks[index];
  if (at - b->hashed > GAP_BYTES) return n;
  if (at > b->hashed && hash_from_file(d, f, index, at) != 0) return n;
  return b->hashed - at < n ? b->hashed - at : n;
}

/* Goes on to the next stretch. @return false at the end of the part */
static bool next_stretch(nps_digest_t *d, feed_t *feed) {
  while (feed->n == 0 && feed->offset < feed->end) {
    feed->index = feed->offset / BLOCK_BYTES;
    const int64_t at = feed->offset % BLOCK_BYTES, most = block_length(feed->file, feed->index) - at;
    const int64_t n = most < feed->end - feed->offset ? most : feed->end - feed->offset;
    const int64_t known = known_bytes(d, feed->file, feed->index, at, n);
    drop_front(feed, known);
    feed->n = (size_t)(n - known);
  }
  return feed->n > 0;
}

static void note_hashed(feed_t *feed, size_t n) {
  advance(feed->file, feed->index, n);
  drop_front(feed, (int64_t)n);
  feed->n -= n;
}

static void hash_stretch(feed_t *feed) {
  nps_sha_add(sha_of(&feed->file->blocks[feed->index]), feed->bytes, feed->n);
  note_hashed(feed, feed->n);
}

static void hash_two_stretches(feed_t *one, feed_t *other) {
  const size_t n = one->n < other->n ? one->n : other->n;
  nps_sha_add_two(sha_of(&one->file->blocks[one->index]), one->bytes, sha_of(&other->file->blocks[other->index]),
                  other->bytes, n);
  note_hashed(one, n);
  note_hashed(other, n);
}

static void feed_rest(nps_digest_t *d, feed_t *feed) {
  while (next_stretch(d, feed)) hash_stretch(feed);
}

void nps_digest_feed(nps_digest_t *d, const char *path, int64_t offset, const void *bytes, size_t n) {
  feed_t feed = begin_feed(d, &(nps_digest_part_t){path, offset, bytes, n});
  feed_rest(d, &feed);
}

void nps_digest_feed_two(nps_digest_t *d, const nps_digest_part_t *one, const nps_digest_part_t *other) {
  feed_t x = begin_feed(d, one), y = begin_feed(d, other);
  while (x.file != y.file && next_stretch(d, &x) && next_stretch(d, &y)) hash_two_stretches(&x, &y);
  feed_rest(d, &x);
  feed_rest(d, &y);
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
  enum { WORDS = NPS_SHA_BYTES / sizeof(int64_t) };
  int64_t *words = nps_xcalloc((size_t)n * WORDS, sizeof *words);
  int64_t k = 0;
  for (int i = 0; i < d->count; i++)
    for (int64_t j = 0; j < d->files[i].block_count; j++, k++)
      if (owner[k] == nps_comm_rank(comm)) memcpy(words + k * WORDS, d->files[i].blocks[j].digest, NPS_SHA_BYTES);
  nps_comm_sum_i64(comm, words, n * WORDS);
  k = 0;
  for (int i = 0; i < d->count; i++) {
    file_t *f = &d->files[i];
    if (!f->blocks) continue;
    nps_sha256_hex(words + k * WORDS, (size_t)f->block_count * NPS_SHA_BYTES, f->hex);
    k += f->block_count;
  }
  free(words);
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
