/* Snapshots: what has been scored so far, in an HDF5 file of rank 0 that is replaced as a whole. A search that goes on walks
 * the same way again, as every step of it follows from the scores, and scores only what the snapshot does not hold. */
#include "search_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT_NAME "nps-snapshot"
enum { FORMAT_VERSION = 1 };

/* ---- columns of a memo ---- */

typedef struct {
  int64_t count;
  int64_t *key;     /* [count][2] */
  int64_t *correct; /* [count] */
  int64_t *total;
  double *nll_sum;
} columns_t;

static void free_columns(columns_t *c) {
  free(c->key);
  free(c->correct);
  free(c->total);
  free(c->nll_sum);
}

static columns_t take_columns(const nps_memo_t *memo) {
  columns_t c = {0};
  const size_t n = (size_t)nps_memo_count(memo) + 1;
  c.key = nps_xcalloc(2 * n, sizeof *c.key);
  c.correct = nps_xcalloc(n, sizeof *c.correct);
  c.total = nps_xcalloc(n, sizeof *c.total);
  c.nll_sum = nps_xcalloc(n, sizeof *c.nll_sum);
  for (int64_t i = 0; i < nps_memo_count(memo); i++) {
    if (!nps_memo_keeps(memo, i)) continue;
    const nps_memo_entry_t *entry = nps_memo_entry(memo, i);
    memcpy(c.key + 2 * c.count, entry->key.half, sizeof entry->key.half);
    c.correct[c.count] = entry->score.correct;
    c.total[c.count] = entry->score.total;
    c.nll_sum[c.count++] = entry->score.nll_sum;
  }
  return c;
}

static void put_columns(const columns_t *c, nps_memo_t *memo) {
  for (int64_t i = 0; i < c->count; i++) {
    nps_memo_key_t key;
    memcpy(key.half, c->key + 2 * i, sizeof key.half);
    nps_memo_add(memo, key, (nps_score_t){c->correct[i], c->total[i], c->nll_sum[i]});
  }
}

static int64_t checksum(const columns_t *c) {
  const size_t n = (size_t)c->count;
  uint64_t hash = nps_hash64(0, c->key, 2 * n * sizeof *c->key);
  hash = nps_hash64(hash, c->correct, n * sizeof *c->correct);
  hash = nps_hash64(hash, c->total, n * sizeof *c->total);
  hash = nps_hash64(hash, c->nll_sum, n * sizeof *c->nll_sum);
  int64_t out;
  memcpy(&out, &hash, sizeof out);
  return out;
}

/* ---- writing ---- */

static nps_err_t write_content(nps_h5_t *file, const char *identity, const columns_t *c) {
  const int64_t shape[2] = {c->count, 2};
  NPS_TRY(nps_h5_put_attr_text(file, "/", "format", FORMAT_NAME));
  NPS_TRY(nps_h5_put_attr_i64(file, "/", "format_version", FORMAT_VERSION));
  NPS_TRY(nps_h5_put_attr_text(file, "/", "identity", identity));
  NPS_TRY(nps_h5_put_attr_i64(file, "/", "checksum", checksum(c)));
  NPS_TRY(nps_h5_make_group(file, "/scores"));
  NPS_TRY(nps_h5_put(file, "/scores/key", NPS_I64, c->key, 2, shape));
  NPS_TRY(nps_h5_put(file, "/scores/correct", NPS_I64, c->correct, 1, shape));
  NPS_TRY(nps_h5_put(file, "/scores/total", NPS_I64, c->total, 1, shape));
  return nps_h5_put(file, "/scores/nll_sum", NPS_F64, c->nll_sum, 1, shape);
}

static nps_err_t write_file(const char *path, const char *identity, const columns_t *c) {
  nps_comm_t *self = nps_comm_self();
  nps_h5_t *file = NULL;
  nps_err_t err = nps_h5_create(self, path, &file);
  if (err == NPS_OK) err = write_content(file, identity, c);
  if (err == NPS_OK)
    err = nps_h5_close(file);
  else
    nps_h5_abandon(file);
  nps_comm_free(self);
  return err;
}

nps_err_t nps_snapshot_write(const char *path, const char *identity, const nps_memo_t *memo) {
  columns_t c = take_columns(memo);
  const char *slash = strrchr(path, '/');
  const int head = slash ? (int)(slash + 1 - path) : 0;
  char *partial = nps_xstrf("%.*s.%s.partial", head, path, path + head);
  nps_err_t err = write_file(partial, identity, &c);
  if (err == NPS_OK) err = nps_file_replace(partial, path);
  if (err != NPS_OK) unlink(partial);
  free(partial);
  free_columns(&c);
  return err;
}

/* ---- reading ---- */

static nps_err_t refuse(const char *path, const char *why) {
  return nps_fail(NPS_ERR_INPUT, "%s: %s (without --resume the search starts anew)", path, why);
}

static size_t line_length(const char *text) { return strcspn(text, "\n"); }

/* Names the first line in which two identities differ. */
static nps_err_t refuse_other(const char *path, const char *found, const char *wanted) {
  while (*found && *wanted) {
    const size_t f = line_length(found), w = line_length(wanted);
    if (f != w || memcmp(found, wanted, f) != 0) break;
    found += f + (found[f] == '\n');
    wanted += w + (wanted[w] == '\n');
  }
  char *why = nps_xstrf("the snapshot belongs to another search: it has \"%.*s\", this one \"%.*s\"",
                        (int)line_length(found), found, (int)line_length(wanted), wanted);
  nps_err_t err = refuse(path, why);
  free(why);
  return err;
}

static nps_err_t check_header(nps_h5_t *file, const char *path, const char *identity) {
  char *format = NULL, *found = NULL;
  int64_t version = 0;
  bool known = false;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "format", &format));
  if (!format || strcmp(format, FORMAT_NAME) != 0) NPS_GOTO(refuse(path, "is no snapshot of a search"));
  NPS_GOTO(nps_h5_get_attr_i64(file, "/", "format_version", &version, &known));
  if (!known || version != FORMAT_VERSION) NPS_GOTO(refuse(path, "the snapshot is of another version of the program"));
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "identity", &found));
  if (!found) NPS_GOTO(refuse(path, "is damaged: it does not tell which search it belongs to"));
  if (strcmp(found, identity) != 0) NPS_GOTO(refuse_other(path, found, identity));
done:
  free(format);
  free(found);
  return err;
}

/* Reads a column of the length of the first. @param width  numbers a row */
static nps_err_t read_column(nps_h5_t *file, const char *path, const char *name, nps_dtype_t dtype, int width,
                             int64_t *count, void *data) {
  int ndim = 0;
  int64_t shape[NPS_MAX_DIMS] = {0};
  NPS_TRY(nps_h5_read(file, name, dtype, &ndim, shape, data));
  if (ndim != (width > 1 ? 2 : 1) || (width > 1 && shape[1] != width) || (*count >= 0 && shape[0] != *count))
    return refuse(path, "is damaged: columns of different lengths");
  *count = shape[0];
  return NPS_OK;
}

static nps_err_t read_columns(nps_h5_t *file, const char *path, columns_t *c) {
  int64_t sum = 0;
  bool found = false;
  c->count = -1;
  NPS_TRY(read_column(file, path, "/scores/key", NPS_I64, 2, &c->count, &c->key));
  NPS_TRY(read_column(file, path, "/scores/correct", NPS_I64, 1, &c->count, &c->correct));
  NPS_TRY(read_column(file, path, "/scores/total", NPS_I64, 1, &c->count, &c->total));
  NPS_TRY(read_column(file, path, "/scores/nll_sum", NPS_F64, 1, &c->count, &c->nll_sum));
  NPS_TRY(nps_h5_get_attr_i64(file, "/", "checksum", &sum, &found));
  if (!found || sum != checksum(c)) return refuse(path, "is damaged: the checksum of its scores is another");
  return NPS_OK;
}

nps_err_t nps_snapshot_read(const char *path, const char *identity, nps_memo_t *memo) {
  nps_h5_t *file = NULL;
  columns_t c = {0};
  nps_err_t err = NPS_OK;
  if (access(path, F_OK) != 0) return NPS_OK;
  NPS_GOTO(nps_h5_open(path, &file));
  NPS_GOTO(check_header(file, path, identity));
  NPS_GOTO(read_columns(file, path, &c));
  put_columns(&c, memo);
done:
  nps_h5_abandon(file);
  free_columns(&c);
  return err;
}
