/* Matrices of an archive that are stored by their singular factors: written. */
#include "archive_triples.h"

#include "spill.h"
#include "triple_code.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Elements compared in one go. */
enum { STEP = 4096 };

/* A matrix of this rank. */
typedef struct {
  int number; /* among all matrices */
  nps_triple_row_t row;
  int64_t at;    /* in the spill */
  float *scales; /* [2 rank] */
  double exact, wrong;
} matrix_t;

struct nps_triples {
  const nps_layout_t *layout;
  const nps_archive_factors_t *factors;
  int value_bits;
  int *number; /* [layout->count] or -1 */
  int count;
  int64_t *sides; /* [count] rows + columns */
  matrix_t *mine; /* [mine_count] */
  int mine_count;
  float *u, *v;           /* of the matrix in work, rounded */
  nps_low_rank_t product; /* of them */
  int64_t next;           /* its element that comes next */
  nps_spill_t codes;
};

nps_triples_t *nps_triples_new(const nps_layout_t *layout, const nps_archive_factors_t *factors, int value_bits) {
  nps_triples_t *t = nps_xcalloc(1, sizeof *t);
  const size_t targets = (size_t)layout->count + 1;
  *t = (nps_triples_t){.layout = layout, .factors = factors, .value_bits = value_bits, .codes = {.fd = -1}};
  t->number = nps_xcalloc(targets, sizeof *t->number);
  t->sides = nps_xcalloc(targets, sizeof *t->sides);
  t->mine = nps_xcalloc(targets, sizeof *t->mine);
  for (int i = 0; i < layout->count; i++) {
    const nps_target_t *target = &layout->targets[i];
    const bool is = target->action == NPS_ACTION_MERGE && factors->is_matrix(factors->ctx, target);
    t->number[i] = is ? t->count : -1;
    if (is) t->sides[t->count++] = target->shape[0] + target->shape[1];
  }
  return t;
}

nps_err_t nps_triples_open(nps_triples_t *t, const char *beside) { return nps_spill_open(beside, &t->codes); }

void nps_triples_free(nps_triples_t *t) {
  if (!t) return;
  for (int i = 0; i < t->mine_count; i++) free(t->mine[i].scales);
  nps_spill_close(&t->codes);
  free(t->number);
  free(t->sides);
  free(t->mine);
  free(t->u);
  free(t->v);
  free(t);
}

bool nps_triples_has(const nps_triples_t *t, int target) { return t && t->number[target] >= 0; }

/* ---- coding ---- */

/* u and v of each triple, one after the other. */
static void interleave(const nps_low_rank_t *m, float *x) {
  for (int64_t k = 0; k < m->rank; k++, x += m->rows + m->columns) {
    memcpy(x, m->u + k * m->rows, (size_t)m->rows * sizeof *x);
    memcpy(x + m->rows, m->v + k * m->columns, (size_t)m->columns * sizeof *x);
  }
}

static nps_err_t part(nps_triples_t *t, const nps_low_rank_t *m, const float *x) {
  free(t->u);
  free(t->v);
  t->u = t->v = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(m->rank * m->rows) * sizeof *t->u, "singular vectors", &t->u));
  NPS_TRY(nps_buffer_alloc((size_t)(m->rank * m->columns) * sizeof *t->v, "singular vectors", &t->v));
  for (int64_t k = 0; k < m->rank; k++, x += m->rows + m->columns) {
    memcpy(t->u + k * m->rows, x, (size_t)m->rows * sizeof *x);
    memcpy(t->v + k * m->columns, x + m->rows, (size_t)m->columns * sizeof *x);
  }
  t->product = (nps_low_rank_t){m->rank, m->rows, m->columns, t->u, t->v};
  return NPS_OK;
}

static nps_err_t begin_matrix(nps_triples_t *t, int target) {
  const nps_low_rank_t m = t->factors->get(t->factors->ctx, target);
  matrix_t *mine = &t->mine[t->mine_count++];
  float *x = NULL;
  *mine = (matrix_t){.number = t->number[target], .at = nps_spill_end(&t->codes)};
  mine->scales = nps_xcalloc(2 * (size_t)m.rank + 1, sizeof *mine->scales);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(m.rank * (m.rows + m.columns)) * sizeof *x, "singular vectors", &x));
  interleave(&m, x);
  NPS_GOTO(nps_triples_encode(t->value_bits, m.rank, m.rows, m.columns, x, &t->codes.tail, mine->scales, &mine->row));
  NPS_GOTO(nps_spill_settle(&t->codes, NPS_SPILL_BYTES));
  NPS_GOTO(part(t, &m, x));
  t->next = 0;
done:
  free(x);
  return err;
}

nps_err_t nps_triples_write(nps_triples_t *t, int target, int64_t first, int64_t count, const float *update) {
  if (first == 0) NPS_TRY(begin_matrix(t, target));
  matrix_t *mine = &t->mine[t->mine_count - 1];
  assert(mine->number == t->number[target] && t->next == first);
  for (int64_t at = 0; at < count; at += STEP) {
    const int64_t n = nps_min64(count - at, STEP);
    float made[STEP];
    nps_low_rank_entries(&t->product, first + at, n, made);
    for (int64_t i = 0; i < n; i++) {
      const double x = (double)update[at + i], d = (double)made[i] - x;
      mine->exact += x * x;
      mine->wrong += d * d;
    }
  }
  t->next += count;
  if (isfinite(mine->exact)) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "tensor %s: the update holds a value that is not finite",
                  t->layout->targets[target].name);
}

/* ---- writing ---- */

void nps_triples_tell(const nps_triples_t *t, const nps_comm_t *comm, int64_t *kept, double *exact, double *wrong) {
  double *sums = nps_xcalloc(2 * (size_t)t->count + 1, sizeof *sums);
  int64_t numbers = 0;
  for (int i = 0; i < t->mine_count; i++) {
    const matrix_t *m = &t->mine[i];
    sums[2 * m->number] = m->exact;
    sums[2 * m->number + 1] = m->wrong;
    numbers += m->row.rank * t->sides[m->number];
  }
  nps_comm_sum_f64(comm, sums, 2 * t->count); /* all but one rank's are 0: exact */
  nps_comm_sum_i64(comm, &numbers, 1);
  *kept += numbers;
  for (int i = 0; i < t->count; i++) {
    *exact += sums[2 * i];
    *wrong += sums[2 * i + 1];
  }
  free(sums);
}

/* The rows of all matrices, known to every rank. Collective. */
static nps_triple_row_t *all_rows(const nps_triples_t *t, const nps_comm_t *comm) {
  enum { FIELDS = sizeof(nps_triple_row_t) / sizeof(int64_t) };
  nps_triple_row_t *rows = nps_xcalloc((size_t)t->count + 1, sizeof *rows);
  for (int i = 0; i < t->mine_count; i++) rows[t->mine[i].number] = t->mine[i].row;
  nps_comm_sum_i64(comm, (int64_t *)rows, (int64_t)FIELDS * t->count); /* all but one rank's are 0 */
  return rows;
}

/* This rank's codes and scales at their places, after those of the matrices before. */
static nps_err_t write_matrices(const nps_triples_t *t, const nps_triple_row_t *rows, nps_h5_dataset_t *codes,
                                nps_h5_dataset_t *scales) {
  for (int i = 0; i < t->mine_count; i++) {
    const matrix_t *m = &t->mine[i];
    int64_t byte = 0, triple = 0;
    char *buffer = NULL;
    for (int j = 0; j < m->number; j++) {
      byte += rows[j].bytes;
      triple += rows[j].rank;
    }
    if (m->row.rank == 0) continue;
    NPS_TRY(nps_buffer_alloc((size_t)m->row.bytes, "codes of a matrix", &buffer));
    nps_err_t err = nps_spill_read(&t->codes, m->at, (size_t)m->row.bytes, buffer);
    if (err == NPS_OK) err = nps_h5_dataset_write(codes, byte, m->row.bytes, buffer);
    if (err == NPS_OK) err = nps_h5_dataset_write(scales, 2 * triple, 2 * m->row.rank, m->scales);
    free(buffer);
    NPS_TRY(err);
  }
  return NPS_OK;
}

static nps_err_t put(const nps_triples_t *t, const nps_comm_t *comm, nps_h5_t *file, const char *group,
                     const nps_triple_row_t *rows, int64_t *bytes) {
  const int64_t shape[2] = {t->count, 3};
  int64_t codes = 0, numbers = 0;
  nps_h5_dataset_t *code_set = NULL, *scale_set = NULL;
  for (int i = 0; i < t->count; i++) {
    codes += rows[i].bytes;
    numbers += 2 * rows[i].rank;
  }
  char *table = nps_xstrf("%s/matrices", group);
  nps_err_t err = nps_comm_agree(comm, nps_h5_put(file, table, NPS_I64, rows, 2, shape));
  free(table);
  if (err == NPS_OK)
    err = nps_comm_agree(comm, nps_h5_dataset_create(file, group, "triples", NPS_U8, 1, &codes, &code_set));
  if (err == NPS_OK)
    err = nps_comm_agree(comm, nps_h5_dataset_create(file, group, "triple_scales", NPS_F32, 1, &numbers, &scale_set));
  if (err == NPS_OK) err = nps_comm_agree(comm, nps_h5_reserve(file));
  if (err == NPS_OK) err = nps_comm_agree(comm, write_matrices(t, rows, code_set, scale_set));
  nps_h5_dataset_close(code_set);
  nps_h5_dataset_close(scale_set);
  *bytes += codes + numbers * (int64_t)sizeof(float) + t->count * (int64_t)sizeof *rows;
  return err;
}

nps_err_t nps_triples_put(nps_triples_t *t, const nps_comm_t *comm, nps_h5_t *file, const char *group, int64_t *bytes) {
  NPS_TRY(nps_comm_agree(comm, nps_spill_settle(&t->codes, 1)));
  nps_triple_row_t *rows = all_rows(t, comm);
  const nps_err_t err = put(t, comm, file, group, rows, bytes);
  free(rows);
  return err;
}
