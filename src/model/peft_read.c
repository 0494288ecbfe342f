/* Tensors of a base with a PEFT adapter, computed block by block in float64 and rounded once. Blocks always begin at the same
 * rows, so that values do not depend on which part of a tensor is asked for. */
#include "peft.h"

#include "nps/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Elements of a block: enough rows that the product of the factors is quick. */
#define BLOCK_ELEMENTS ((int64_t)1 << 18)

typedef struct {
  const nps_model_t *model;
  nps_reader_t *base, *parts;
  int tensor; /* of the model: what the following is of; -1: none */
  const nps_peft_rule_t *rule;
  double *a, *b;      /* the factors, as they are stored */
  double *magnitude;  /* DoRA's m, along what it is along */
  double *factor;     /* f along rows or columns, or NULL */
  bool by_columns;    /* f is along columns */
  int64_t block_rows; /* of every block but the last */
  int64_t block;      /* the one that is held; -1: none */
  double *values;     /* [block_rows][columns] */
  double *product;    /* likewise, of a sine; else NULL */
  void *raw;          /* stored values of a block of W */
} state_t;

static void forget(state_t *s) {
  free(s->a);
  free(s->b);
  free(s->magnitude);
  free(s->factor);
  free(s->values);
  free(s->product);
  free(s->raw);
  s->a = s->b = s->magnitude = s->factor = s->values = s->product = NULL;
  s->raw = NULL;
  s->tensor = -1;
  s->block = -1;
}

nps_err_t nps_peft_begin(const nps_model_t *model, nps_digest_t *digest, void **state) {
  state_t *s = nps_xcalloc(1, sizeof *s);
  s->model = model;
  s->base = nps_reader_new(model->derivation->base, digest);
  s->parts = nps_reader_new(model->derivation->parts, digest);
  s->tensor = -1;
  s->block = -1;
  *state = s;
  return NPS_OK;
}

void nps_peft_end(void *state) {
  state_t *s = state;
  forget(s);
  nps_reader_free(s->base);
  nps_reader_free(s->parts);
  free(s);
}

/* ---- a tensor ---- */

/* Reads a whole tensor of the adapter. @param[out] out  NULL where there is none */
static nps_err_t read_part(state_t *s, int part, double **out) {
  if (part < 0) return NPS_OK;
  const nps_tensor_info_t *t = &s->model->derivation->parts->tensors[part];
  void *raw = NULL;
  nps_err_t err;
  NPS_GOTO(nps_buffer_alloc((size_t)t->count * sizeof **out, "a part of an adapter", out));
  NPS_GOTO(nps_buffer_alloc((size_t)t->count * nps_dtype_size(t->dtype), "a part of an adapter", &raw));
  NPS_GOTO(nps_reader_read(s->parts, part, 0, t->count, raw));
  nps_tensor_widen(t->dtype, raw, t->count, *out);
done:
  free(raw);
  return err;
}

/* What W is: of the base, or a tensor of the adapter that stands for it. */
static const nps_tensor_info_t *find_w(const state_t *s) {
  const nps_derivation_t *d = s->model->derivation;
  return s->rule->stored >= 0 ? &d->parts->tensors[s->rule->stored] : &d->base->tensors[s->rule->w];
}

static int64_t rows_of_block(const nps_peft_rule_t *rule) {
  const int64_t rows = BLOCK_ELEMENTS / rule->columns;
  return rows < 1 ? 1 : nps_min64(rows, rule->rows);
}

int64_t nps_peft_rule_bytes(const nps_derivation_t *d, const nps_peft_rule_t *rule) {
  const int held[] = {rule->a, rule->b, rule->magnitude, rule->vector};
  int64_t elements = rule->magnitude >= 0 ? nps_max64(rule->rows, rule->columns) : 0, most = 0;
  for (size_t i = 0; i < sizeof held / sizeof *held; i++) {
    const int64_t count = held[i] >= 0 ? d->parts->tensors[held[i]].count : 0;
    elements += count;
    most = nps_max64(most, count);
  }
  /* The largest part once more, as it is stored; a block, as it is stored, and of a sine. */
  elements += most + 3 * rows_of_block(rule) * rule->columns;
  return elements * (int64_t)sizeof(double);
}

static nps_err_t make_room(state_t *s) {
  const nps_peft_rule_t *rule = s->rule;
  s->block_rows = rows_of_block(rule);
  const size_t count = (size_t)(s->block_rows * rule->columns);
  NPS_TRY(nps_buffer_alloc(count * sizeof *s->values, "a block of a tensor", &s->values));
  NPS_TRY(nps_buffer_alloc(count * nps_dtype_size(find_w(s)->dtype), "a block of a tensor", &s->raw));
  const bool sine = ((const nps_peft_t *)s->model->derivation->rules)->omega > 0 && rule->a >= 0;
  return sine ? nps_buffer_alloc(count * sizeof *s->product, "a block of a tensor", &s->product) : NPS_OK;
}

/* ---- a block ---- */

static int64_t rows_of(const state_t *s, int64_t block) {
  return nps_min64(s->block_rows, s->rule->rows - block * s->block_rows);
}

static nps_err_t read_w(state_t *s, int64_t block) {
  const nps_peft_rule_t *rule = s->rule;
  const int64_t first = block * s->block_rows * rule->columns, count = rows_of(s, block) * rule->columns;
  NPS_TRY(rule->stored >= 0 ? nps_reader_read(s->parts, rule->stored, first, count, s->raw)
                            : nps_reader_read(s->base, rule->w, first, count, s->raw));
  nps_tensor_widen(find_w(s)->dtype, s->raw, count, s->values);
  return NPS_OK;
}

/* C = alpha·(rows of B·A, or of its transpose) + beta·C. */
static void multiply(const state_t *s, int64_t block, double alpha, double beta, double *c) {
  const nps_peft_rule_t *rule = s->rule;
  const int64_t first = block * s->block_rows, n = rows_of(s, block), r = rule->rank;
  const double one = 1;
  if (!s->a)
    nps_dgemm(false, false, n, 1, 1, alpha, s->b + first, 1, &one, 1, beta, c, 1);
  else if (rule->transposed)
    nps_dgemm(true, true, n, rule->columns, r, alpha, s->a + first, rule->rows, s->b, r, beta, c, rule->columns);
  else
    nps_dgemm(false, false, n, rule->columns, r, alpha, s->b + first * r, r, s->a, rule->columns, beta, c,
              rule->columns);
}

/* Sine-activated low rank (arXiv 2403.19243): scale · sin(omega·B·A)/√(in features). */
static void add_sine(state_t *s, int64_t block) {
  const nps_peft_rule_t *rule = s->rule;
  const double in = (double)(rule->transposed ? rule->rows : rule->columns);
  const int64_t count = rows_of(s, block) * rule->columns;
  multiply(s, block, ((const nps_peft_t *)s->model->derivation->rules)->omega, 0, s->product);
  for (int64_t i = 0; i < count; i++) s->values[i] += rule->scale / sqrt(in) * sin(s->product[i]);
}

/* W + ΔW of a block. */
static nps_err_t form_sum(state_t *s, int64_t block) {
  NPS_TRY(read_w(s, block));
  if (s->product)
    add_sine(s, block);
  else if (s->b)
    multiply(s, block, s->rule->scale, 1, s->values);
  return NPS_OK;
}

static void scale_block(state_t *s, int64_t block) {
  const int64_t first = block * s->block_rows, n = rows_of(s, block), columns = s->rule->columns;
  for (int64_t r = 0; r < n; r++) {
    double *row = s->values + r * columns;
    for (int64_t c = 0; c < columns; c++) row[c] *= s->factor[s->by_columns ? c : first + r];
  }
}

/* DoRA (arXiv 2402.09353): f = m/‖row of W + ΔW‖. */
static void find_row_factors(state_t *s, int64_t block) {
  const int64_t first = block * s->block_rows, n = rows_of(s, block), columns = s->rule->columns;
  for (int64_t r = 0; r < n; r++) {
    const double *row = s->values + r * columns;
    double squares = 0;
    for (int64_t c = 0; c < columns; c++) squares += row[c] * row[c];
    s->factor[first + r] = s->magnitude[first + r] / sqrt(squares);
  }
}

/* Likewise for columns, which takes a sweep over the whole matrix. */
static nps_err_t find_column_factors(state_t *s) {
  const int64_t columns = s->rule->columns;
  memset(s->factor, 0, (size_t)columns * sizeof *s->factor);
  for (int64_t block = 0; block * s->block_rows < s->rule->rows; block++) {
    NPS_TRY(form_sum(s, block));
    for (int64_t r = 0; r < rows_of(s, block); r++)
      for (int64_t c = 0; c < columns; c++) s->factor[c] += s->values[r * columns + c] * s->values[r * columns + c];
  }
  for (int64_t c = 0; c < columns; c++) s->factor[c] = s->magnitude[c] / sqrt(s->factor[c]);
  return NPS_OK;
}

static nps_err_t make_factors(state_t *s) {
  const nps_peft_rule_t *rule = s->rule;
  s->by_columns = rule->vector >= 0 ? rule->by_columns : rule->transposed;
  if (rule->vector >= 0) return read_part(s, rule->vector, &s->factor);
  if (rule->magnitude < 0) return NPS_OK;
  NPS_TRY(read_part(s, rule->magnitude, &s->magnitude));
  const int64_t count = rule->transposed ? rule->columns : rule->rows;
  NPS_TRY(nps_buffer_alloc((size_t)count * sizeof *s->factor, "norms of a matrix", &s->factor));
  return rule->transposed ? find_column_factors(s) : NPS_OK;
}

static nps_err_t use_tensor(state_t *s, int i) {
  if (s->tensor == i) return NPS_OK;
  forget(s);
  s->rule = &((const nps_peft_t *)s->model->derivation->rules)->rules[s->model->tensors[i].rule - 1];
  NPS_TRY(read_part(s, s->rule->a, &s->a));
  NPS_TRY(read_part(s, s->rule->b, &s->b));
  NPS_TRY(make_room(s));
  NPS_TRY(make_factors(s));
  s->tensor = i;
  return NPS_OK;
}

static nps_err_t use_block(state_t *s, int64_t block) {
  if (s->block == block) return NPS_OK;
  s->block = -1;
  NPS_TRY(form_sum(s, block));
  if (s->magnitude && !s->by_columns) find_row_factors(s, block);
  if (s->factor) scale_block(s, block);
  s->block = block;
  return NPS_OK;
}

nps_err_t nps_peft_read(void *state, int i, int64_t first, int64_t count, void *dst) {
  state_t *s = state;
  const nps_tensor_info_t *t = &s->model->tensors[i];
  NPS_TRY(use_tensor(s, i));
  const int64_t per_block = s->block_rows * s->rule->columns;
  for (int64_t at = first; at < first + count;) {
    const int64_t block = at / per_block, within = at - block * per_block;
    const int64_t n = nps_min64(per_block - within, first + count - at);
    NPS_TRY(use_block(s, block));
    nps_tensor_narrow(s->values + within, n, t->dtype, (char *)dst + (size_t)(at - first) * nps_dtype_size(t->dtype));
    at += n;
  }
  return NPS_OK;
}
