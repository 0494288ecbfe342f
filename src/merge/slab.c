/* What every way of merging does: reading slabs, forming chunks, writing, and telling how far it is. */
#include "engine.h"

#include <stdlib.h>

static const nps_merge_spec_t *spec_of(const nps_engine_t *e) { return &e->merge->spec; }

static size_t aligned(size_t bytes) {
  return (bytes + NPS_SLAB_ALIGNMENT - 1) / NPS_SLAB_ALIGNMENT * NPS_SLAB_ALIGNMENT;
}

/* ---- reading ---- */

nps_dtype_t nps_engine_input_dtype(const nps_engine_t *e, const nps_target_t *target, int input) {
  return spec_of(e)->inputs[input]->tensors[target->source[input]].dtype;
}

/* Stored values of an input from offset `at` of the slab on. */
char *nps_engine_raw_at(const nps_engine_t *e, const nps_target_t *target, int input, int64_t at) {
  return e->raw[input] + (size_t)at * nps_dtype_size(nps_engine_input_dtype(e, target, input));
}

/* Checks the elements [at, at + count) of the slab. */
static nps_err_t check_finite(const nps_engine_t *e, const nps_target_t *target, int input, int64_t at, int64_t count) {
  return nps_delta_check_finite(spec_of(e)->inputs[input], target->name, nps_engine_input_dtype(e, target, input),
                                nps_engine_raw_at(e, target, input, at), e->slab_first + at, count);
}

/* Makes the slab ready for elements [first, first + count) of a target, unless it is it already. */
void nps_engine_begin_slab(nps_engine_t *e, int t, int64_t first, int64_t count) {
  const nps_target_t *target = &spec_of(e)->layout->targets[t];
  if (e->slab_target == t && e->slab_first == first) return;
  char *at = e->slab;
  for (int i = 0; i < spec_of(e)->input_count; i++) {
    if (target->source[i] < 0) continue;
    e->raw[i] = at;
    at += aligned((size_t)count * nps_dtype_size(nps_engine_input_dtype(e, target, i)));
  }
  e->out = at;
  e->slab_target = t;
  e->slab_first = first;
  e->loaded = 0;
}

/* Elements read at a time: two inputs' stay in the cache until they are hashed and checked. */
#define PART ((int64_t)1 << 15)

/* Reads elements [at, end) of the slab from one or two inputs. */
static nps_err_t read_part(nps_engine_t *e, const nps_target_t *target, const int *input, int inputs, int64_t at,
                           int64_t end) {
  nps_read_t read[2];
  for (int k = 0; k < inputs; k++)
    read[k] = (nps_read_t){e->reader[input[k]], target->source[input[k]], nps_engine_raw_at(e, target, input[k], at)};
  if (inputs == 2)
    NPS_TRY(nps_reader_read_two(read, e->slab_first + at, end - at));
  else if (inputs == 1)
    NPS_TRY(nps_reader_read(read->reader, read->tensor, e->slab_first + at, end - at, read->dst));
  for (int k = 0; k < inputs; k++) NPS_TRY(check_finite(e, target, input[k], at, end - at));
  return NPS_OK;
}

static nps_err_t read_inputs(nps_engine_t *e, const nps_target_t *target, const int *input, int inputs, int64_t begin,
                             int64_t end) {
  for (int64_t at = begin; at < end; at += PART)
    NPS_TRY(read_part(e, target, input, inputs, at, nps_min64(end, at + PART)));
  return NPS_OK;
}

/* Reads the slab's elements up to `end`, as far as they are not there yet, from all inputs of its target. */
nps_err_t nps_engine_load(nps_engine_t *e, int64_t end) {
  const nps_target_t *target = &spec_of(e)->layout->targets[e->slab_target];
  int pair[2], waiting = 0;
  if (e->loaded >= end) return NPS_OK;
  for (int i = 0; i < spec_of(e)->input_count; i++) {
    if (target->source[i] < 0) continue;
    pair[waiting++] = i;
    if (waiting < 2) continue;
    NPS_TRY(read_inputs(e, target, pair, 2, e->loaded, end));
    waiting = 0;
  }
  NPS_TRY(read_inputs(e, target, pair, waiting, e->loaded, end));
  e->loaded = end;
  return NPS_OK;
}

/* ---- chunks ---- */

/* Fills tau or theta with entries at offset `at` of the loaded slab. */
void nps_engine_fill_chunk(nps_engine_t *e, const nps_target_t *target, int64_t at, int64_t n) {
  const nps_merge_spec_t *spec = spec_of(e);
  const int models = e->merge->tensors[target - spec->layout->targets].models;
  const void *tuned[models];
  nps_dtype_t dtype[models];
  for (int m = 0; m < models; m++) {
    dtype[m] = nps_engine_input_dtype(e, target, spec->models[m].input);
    tuned[m] = nps_engine_raw_at(e, target, spec->models[m].input, at);
  }
  if (e->tau)
    nps_delta_form(nps_engine_input_dtype(e, target, spec->base), nps_engine_raw_at(e, target, spec->base, at), models,
                   dtype, tuned, n, e->tau);
  else
    for (int m = 0; m < models; m++) nps_tensor_widen(dtype[m], tuned[m], n, e->theta[m]);
}

void nps_engine_add_norms(nps_engine_t *e, int models, const nps_merge_chunk_t *chunk) {
  bool block_ends = chunk->piece_ends || (chunk->first + chunk->count) % NPS_BLOCK == 0;
  for (int m = 0; m < models; m++) {
    nps_lanes_add_squares(&e->lanes[m], chunk->tau[m], chunk->count);
    if (!block_ends) continue;
    e->norms[m][e->norm_at] = nps_lanes_sum(&e->lanes[m]);
    e->lanes[m] = (nps_lanes_t){{0}};
  }
  e->norm_at += block_ends;
}

/* ---- writing ---- */

static nps_err_t check_output(const nps_engine_t *e, const nps_target_t *target, int64_t first, int64_t count) {
  int64_t at = nps_tensor_find_nonfinite(target->dtype, e->out, count);
  if (at < 0) return NPS_OK;
  return nps_fail(NPS_ERR_RUNTIME, "tensor %s: the merged value at index %lld is too large for %s (out_dtype)",
                  target->name, (long long)(first + at), nps_dtype_name(target->dtype));
}

/* Writes what lies in the output buffer. */
nps_err_t nps_engine_write_out(nps_engine_t *e, const nps_piece_t *piece, int64_t first, int64_t count) {
  NPS_TRY(check_output(e, &spec_of(e)->layout->targets[piece->target], first, count));
  return nps_writer_write(e->writer, piece->target, first, count, e->out);
}

/* ---- progress ---- */

/* Tells how far this rank is; hears whether another failed. */
void nps_engine_beat(nps_engine_t *e, int64_t bytes) {
  int64_t total = 0;
  e->done += bytes;
  if (!e->pulse) return;
  if (!nps_pulse_beat(e->pulse, e->done, &total)) e->stopped = true;
  if (e->progress) e->progress(e->progress_ctx, total);
}
