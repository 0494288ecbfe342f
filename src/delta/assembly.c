/* Matrices from their factors: products of a bounded number of triples, added up; for archives one product of all triples that
 * are kept, whose bits are the same on every machine. */
#include "factors_internal.h"

#include "nps/blas.h"

#include <stdlib.h>
#include <string.h>

/* Triples in one product: enough for its speed, few enough for their memory. */
enum { BATCH = 1024 };

struct nps_assembly {
  const nps_factors_t *factors;
  int value_bits;
  float *u, *v;   /* [room][rows], [room][columns] */
  int64_t room;   /* triples: at most a batch, or all of the matrix that are kept */
  int16_t *codes; /* [largest side] with value_bits */
  float *update;  /* [rows][columns] */
  double *share;  /* [columns] */
  /* The matrix in work: */
  int matrix;
  int64_t count; /* triples in u and v */
  bool any;      /* update holds something */
};

/* The most triples of a product, as far as the matrices of all lists have so many. */
static int64_t batch_of(int lists, int64_t count) { return nps_min64(BATCH, lists * count); }

int64_t nps_assembly_bytes(const nps_factors_spec_t *spec) {
  int64_t most = 0;
  for (int t = 0; t < spec->layout->count; t++) {
    const nps_target_t *target = &spec->layout->targets[t];
    if (!nps_factors_splits(target, spec->exclude, spec->exclude_count)) continue;
    const int64_t rows = target->shape[0], columns = target->shape[1];
    const int64_t count = nps_min64(rows, columns), room = spec->value_bits ? count : batch_of(spec->models, count);
    most = nps_max64(most, rows * columns + room * (rows + columns));
  }
  return most * (int64_t)sizeof(float);
}

nps_err_t nps_assembly_new(const nps_factors_t *f, int value_bits, nps_assembly_t **out) {
  nps_assembly_t *a = nps_xcalloc(1, sizeof *a);
  int64_t left = 0, right = 0, elements = 0, rows = 0, columns = 0;
  nps_err_t err = NPS_OK;
  a->factors = f;
  a->value_bits = value_bits;
  for (int j = 0; j < f->matrix_count; j++) {
    const nps_matrix_t *m = &f->matrices[j];
    if (!m->held) continue;
    const int64_t batch = value_bits ? 0 : batch_of(f->lists, m->count);
    rows = nps_max64(rows, m->rows);
    left = nps_max64(left, batch * m->rows);
    right = nps_max64(right, batch * m->columns);
    elements = nps_max64(elements, m->rows * m->columns);
    columns = nps_max64(columns, m->columns);
  }
  NPS_GOTO(nps_buffer_alloc((size_t)left * sizeof *a->u, "singular vectors", &a->u));
  NPS_GOTO(nps_buffer_alloc((size_t)right * sizeof *a->v, "singular vectors", &a->v));
  NPS_GOTO(nps_buffer_alloc((size_t)elements * sizeof *a->update, "a matrix", &a->update));
  NPS_GOTO(nps_buffer_alloc((size_t)columns * sizeof *a->share, "a row", &a->share));
  NPS_GOTO(nps_buffer_alloc((size_t)nps_max64(rows, columns) * sizeof *a->codes, "a row", &a->codes));
done:
  *out = err == NPS_OK ? a : NULL;
  if (err != NPS_OK) nps_assembly_free(a);
  return err;
}

void nps_assembly_free(nps_assembly_t *a) {
  if (!a) return;
  free(a->u);
  free(a->v);
  free(a->update);
  free(a->share);
  free(a->codes);
  free(a);
}

/* ---- products ---- */

static const nps_matrix_t *matrix_of(const nps_assembly_t *a) { return &a->factors->matrices[a->matrix]; }

/* Adds the triples that wait. */
static void flush(nps_assembly_t *a) {
  const nps_matrix_t *m = matrix_of(a);
  if (a->count == 0) return;
  nps_sgemm_tn(m->rows, m->columns, a->count, 1, a->u, m->rows, a->v, m->columns, a->any ? 1 : 0, a->update,
               m->columns);
  a->any = true;
  a->count = 0;
}

static void scale(float *x, int64_t n, double by) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)(by * (double)x[i]);
}

/* Room for all triples of the matrix in work that are kept. */
static nps_err_t make_room(nps_assembly_t *a, const nps_taking_t *taking, int list) {
  const nps_matrix_t *m = matrix_of(a);
  const int32_t *kept = nps_taking_kept(taking, list, a->matrix);
  a->room = 0;
  for (int b = 0; b < a->factors->subspaces; b++) a->room += kept[b];
  free(a->u);
  free(a->v);
  a->u = a->v = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)(a->room * m->rows) * sizeof *a->u, "singular vectors", &a->u));
  return nps_buffer_alloc((size_t)(a->room * m->columns) * sizeof *a->v, "singular vectors", &a->v);
}

/* Lets n triples of a list wait, the first of them k; triple i times value[i]. */
static nps_err_t add_triples(nps_assembly_t *a, int list, int64_t k, int64_t n, const double *value) {
  const nps_factors_t *f = a->factors;
  const nps_matrix_t *m = matrix_of(a);
  const int block = nps_factors_block(f, list, a->matrix);
  float *u = a->u + a->count * m->rows, *v = a->v + a->count * m->columns;
  NPS_TRY(nps_blocks_get(f->blocks, block, k * m->rows, n * m->rows, u));
  NPS_TRY(nps_blocks_get(f->blocks, block, f->present[block] * m->rows + k * m->columns, n * m->columns, v));
  for (int64_t i = 0; i < n; i++) scale(u + i * m->rows, m->rows, value[i]);
  a->count += n;
  return NPS_OK;
}

static nps_err_t add_band(nps_assembly_t *a, int list, int64_t first, int64_t n, double factor, const double *sigma) {
  double value[BATCH];
  while (n > 0) {
    if (a->count == a->room) flush(a);
    const int64_t now = nps_min64(nps_min64(n, BATCH), a->room - a->count);
    for (int64_t i = 0; i < now; i++) value[i] = factor * (sigma ? sigma[first + i] : 1);
    NPS_TRY(add_triples(a, list, first, now, value));
    first += now;
    n -= now;
  }
  return NPS_OK;
}

static double mean_of(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  return sum / (double)n;
}

/* Adds λ × a list's kept triples; those of value 0 are left out. */
static nps_err_t add_list(nps_assembly_t *a, const nps_taking_t *taking, int list, const double *weight,
                          double lambda) {
  const nps_factors_t *f = a->factors;
  const nps_spectrum_t s = nps_factors_spectrum(f, list, a->matrix);
  const int32_t *kept = nps_taking_kept(taking, list, a->matrix);
  const double flat = f->sum ? mean_of(s.sigma, s.count) : 1;
  for (int b = 0; b < f->subspaces; b++)
    if (kept[b] > 0 && weight[b] != 0)
      NPS_TRY(add_band(a, list, nps_band_first(s.count, f->subspaces, b), kept[b], lambda * weight[b] * flat,
                       f->sum ? NULL : s.sigma));
  return NPS_OK;
}

/* ---- dividing ---- */

static bool has_part(const nps_taking_t *taking, const nps_factors_t *f, int list, int matrix, const double *weight) {
  const int32_t *kept = nps_taking_kept(taking, list, matrix);
  for (int b = 0; b < f->subspaces; b++)
    if (kept[b] > 0 && weight[b] != 0) return true;
  return false;
}

/* Adds λ to the columns of a row that a list has values in. */
static void add_share(const nps_assembly_t *a, int list, int64_t row, double lambda) {
  const nps_matrix_t *m = matrix_of(a);
  const uint8_t *seen = a->factors->seen + list * a->factors->seen_count + m->seen_at;
  for (int64_t c = 0; seen[row] && c < m->columns; c++) a->share[c] += seen[m->rows + c] ? lambda : 0;
}

static void divide_row(const nps_assembly_t *a, int64_t row) {
  const int64_t columns = matrix_of(a)->columns;
  float *x = a->update + row * columns;
  for (int64_t c = 0; c < columns; c++) x[c] = a->share[c] != 0 ? (float)((double)x[c] / a->share[c]) : 0;
}

static void divide_by_coordinate(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w,
                                 int first_list) {
  const nps_matrix_t *m = matrix_of(a);
  bool part[w->models];
  for (int i = 0; i < w->models; i++)
    part[i] = w->lambda[i] != 0 &&
              has_part(taking, a->factors, first_list + i, a->matrix, w->weight + (int64_t)i * w->subspaces);
  for (int64_t r = 0; r < m->rows; r++) {
    memset(a->share, 0, (size_t)m->columns * sizeof *a->share);
    for (int i = 0; i < w->models; i++)
      if (part[i]) add_share(a, first_list + i, r, w->lambda[i]);
    divide_row(a, r);
  }
}

static double divisor_of(const nps_weighting_t *w) {
  double total = 0;
  for (int i = 0; i < w->models; i++) total += w->lambda[i];
  return w->normalize == NPS_NORMALIZE_SUM ? total : 1;
}

/* ---- a matrix ---- */

static nps_err_t add_lists(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w, int first_list) {
  const double divisor = divisor_of(w);
  if (a->factors->sum) return add_list(a, taking, 0, w->weight, 1);
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0)
      NPS_TRY(add_list(a, taking, first_list + i, w->weight + (int64_t)i * w->subspaces, w->lambda[i] / divisor));
  return NPS_OK;
}

static nps_err_t multiply(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w, int first_list) {
  const nps_matrix_t *m = matrix_of(a);
  a->room = batch_of(a->factors->lists, m->count);
  a->any = false;
  NPS_TRY(add_lists(a, taking, w, first_list));
  flush(a);
  if (!a->any) memset(a->update, 0, (size_t)(m->rows * m->columns) * sizeof *a->update);
  if (!a->factors->sum && w->normalize == NPS_NORMALIZE_COORDINATE) divide_by_coordinate(a, taking, w, first_list);
  return NPS_OK;
}

/* ---- as archives store it ---- */

/* Vectors become what their codes stand for. @param[in,out] x  [count][n] */
static void round_vectors(const nps_assembly_t *a, int64_t n, float *x) {
  for (int64_t k = 0; k < a->count; k++) {
    const float by = nps_quantise(x + k * n, n, a->value_bits, a->codes);
    nps_dequantise(by, a->codes, n, x + k * n);
  }
}

/* The only model with a part: what its λ is divided by is λ or 1. */
static nps_err_t collect(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w, int first_list) {
  int model = 0;
  while (model + 1 < w->models && w->lambda[model] == 0) model++;
  const double factor = w->normalize == NPS_NORMALIZE_NONE ? w->lambda[model] : 1;
  NPS_TRY(make_room(a, taking, first_list + model));
  return w->lambda[model] == 0
             ? NPS_OK
             : add_list(a, taking, first_list + model, w->weight + (int64_t)model * w->subspaces, factor);
}

nps_low_rank_t nps_assembly_factors(const nps_assembly_t *a) {
  const nps_matrix_t *m = matrix_of(a);
  return (nps_low_rank_t){.rank = a->count, .rows = m->rows, .columns = m->columns, .u = a->u, .v = a->v};
}

static nps_err_t multiply_stored(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w,
                                 int first_list) {
  const nps_matrix_t *m = matrix_of(a);
  NPS_TRY(collect(a, taking, w, first_list));
  if (a->value_bits != NPS_VALUES_UNROUNDED) {
    round_vectors(a, m->rows, a->u);
    round_vectors(a, m->columns, a->v);
  }
  const nps_low_rank_t product = nps_assembly_factors(a);
  nps_low_rank_entries(&product, 0, m->rows * m->columns, a->update);
  return NPS_OK;
}

nps_err_t nps_assembly_matrix(nps_assembly_t *a, const nps_taking_t *taking, const nps_weighting_t *w, int first_list,
                              int matrix, const float **update) {
  a->matrix = matrix;
  a->count = 0;
  NPS_TRY(a->value_bits ? multiply_stored(a, taking, w, first_list) : multiply(a, taking, w, first_list));
  *update = a->update;
  return NPS_OK;
}
