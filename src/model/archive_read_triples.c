/* Matrices of an archive that are stored by their singular factors: read. */
#include "archive_read_triples.h"

#include <stdlib.h>
#include <string.h>

void nps_triple_rules_free(nps_triple_rules_t *r) {
  if (!r) return;
  free(r->tensors);
  free(r->rows);
  free(r->byte_at);
  free(r->scale_at);
  free(r);
}

static nps_err_t read_rows(const nps_model_t *parts, nps_triple_rules_t *r) {
  nps_reader_t *reader = nps_reader_new(parts, NULL);
  const nps_err_t err = nps_reader_read(reader, r->table, 0, 3 * (int64_t)r->count, r->rows);
  nps_reader_free(reader);
  return err;
}

static int64_t most_triples(const nps_tensor_info_t *t) { return nps_min64(t->shape[0], t->shape[1]); }

/* Sums of sizes from a file stay below these, or they are refused first. */
static bool is_possible(const nps_tensor_info_t *t, const nps_triple_row_t *row) {
  return row->rank >= 0 && row->rank <= most_triples(t) && row->bytes >= 0 && row->bytes <= INT32_MAX;
}

/* Checks the rows and finds where the bytes lie. */
static void place(nps_triple_rules_t *r, nps_checks_t *checks) {
  for (int j = 0; j < r->count; j++) {
    nps_triple_row_t *row = &r->rows[j];
    if (!is_possible(r->tensors[j], row)) {
      nps_checks_fail(checks, "tensor %s: has %lld of %lld triples in %lld bytes", r->tensors[j]->name,
                      (long long)row->rank, (long long)most_triples(r->tensors[j]), (long long)row->bytes);
      *row = (nps_triple_row_t){0};
    }
    r->byte_at[j + 1] = r->byte_at[j] + row->bytes;
    r->scale_at[j + 1] = r->scale_at[j] + 2 * row->rank;
  }
}

nps_err_t nps_triple_rules_new(const nps_model_t *parts, int bits, const nps_tensor_info_t **tensors, int count,
                               nps_checks_t *checks, nps_triple_rules_t **out) {
  nps_triple_rules_t *r = *out = nps_xcalloc(1, sizeof *r);
  *r = (nps_triple_rules_t){.bits = bits, .count = count, .tensors = tensors};
  r->rows = nps_xcalloc((size_t)count + 1, sizeof *r->rows);
  r->byte_at = nps_xcalloc((size_t)count + 1, sizeof *r->byte_at);
  r->scale_at = nps_xcalloc((size_t)count + 1, sizeof *r->scale_at);
  r->table = nps_archive_find_part(parts, "matrices", NPS_I64, count, 3, checks);
  r->codes = nps_archive_find_part(parts, "triples", NPS_U8, -1, 1, checks);
  r->scales = nps_archive_find_part(parts, "triple_scales", NPS_F32, -1, 1, checks);
  if (checks->count > 0) return NPS_OK;
  NPS_TRY(read_rows(parts, r));
  place(r, checks);
  nps_archive_check_total(parts, r->codes, "matrices", r->byte_at[count], checks);
  nps_archive_check_total(parts, r->scales, "matrices", r->scale_at[count], checks);
  return NPS_OK;
}

int64_t nps_triple_rules_bytes(const nps_triple_rules_t *r) {
  int64_t most = 0;
  for (int j = 0; r && j < r->count; j++) {
    const int64_t numbers = r->rows[j].rank * (r->tensors[j]->shape[0] + r->tensors[j]->shape[1]);
    most = nps_max64(most, numbers * (int64_t)(sizeof(float) + 2) + r->rows[j].bytes);
  }
  return most;
}

/* ---- reading ---- */

void nps_triple_state_free(nps_triple_state_t *state) {
  free(state->u);
  free(state->v);
}

static nps_err_t load(const nps_triple_rules_t *r, const nps_model_t *parts, nps_reader_t *reader, int j,
                      nps_triple_state_t *state) {
  const nps_tensor_info_t *t = r->tensors[j];
  const nps_triple_row_t row = r->rows[j];
  const char *wrong = NULL;
  uint8_t *bytes = NULL;
  float *scales = NULL;
  nps_err_t err;
  NPS_GOTO(nps_buffer_alloc((size_t)row.bytes + 1, "codes of a matrix", &bytes));
  NPS_GOTO(nps_buffer_alloc(2 * (size_t)row.rank * sizeof *scales + 1, "codes of a matrix", &scales));
  NPS_GOTO(nps_buffer_alloc((size_t)(row.rank * t->shape[0]) * sizeof *state->u, "singular vectors", &state->u));
  NPS_GOTO(nps_buffer_alloc((size_t)(row.rank * t->shape[1]) * sizeof *state->v, "singular vectors", &state->v));
  NPS_GOTO(nps_reader_read(reader, r->codes, r->byte_at[j], row.bytes, bytes));
  NPS_GOTO(nps_reader_read(reader, r->scales, r->scale_at[j], 2 * row.rank, scales));
  NPS_GOTO(nps_triples_decode(r->bits, row, t->shape[0], t->shape[1], bytes, scales, state->u, state->v, &wrong));
  if (wrong)
    err = nps_fail(NPS_ERR_INPUT, "%s: is damaged: %s: tensor %s has %s", parts->path, parts->name, t->name, wrong);
done:
  free(bytes);
  free(scales);
  return err;
}

nps_err_t nps_triples_read(const nps_triple_rules_t *r, const nps_model_t *parts, nps_reader_t *reader, int number,
                           int64_t first, int64_t n, nps_triple_state_t *state, float *update) {
  const nps_tensor_info_t *t = r->tensors[number];
  if (state->number != number) {
    nps_triple_state_free(state);
    *state = (nps_triple_state_t){.number = -1};
    NPS_TRY(load(r, parts, reader, number, state));
    state->number = number;
    state->product = (nps_low_rank_t){r->rows[number].rank, t->shape[0], t->shape[1], state->u, state->v};
  }
  nps_low_rank_entries(&state->product, first, n, update);
  return NPS_OK;
}
