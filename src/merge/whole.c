/* Merging a tensor whole: all its task vectors are read before the method sees them. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  float *all;            /* [models][count] */
  float **tau;           /* [models] into all */
  double *base, *update; /* [count] */
} whole_t;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static nps_err_t make_room(int models, int64_t count, whole_t *w) {
  w->tau = nps_xcalloc((size_t)models, sizeof *w->tau);
  NPS_TRY(nps_buffer_alloc((size_t)(models * count) * sizeof *w->all, "task vectors", &w->all));
  NPS_TRY(nps_buffer_alloc((size_t)count * sizeof *w->base, "a tensor", &w->base));
  NPS_TRY(nps_buffer_alloc((size_t)count * sizeof *w->update, "a tensor", &w->update));
  for (int m = 0; m < models; m++) w->tau[m] = w->all + m * count;
  return NPS_OK;
}

static void free_room(whole_t *w) {
  free(w->all);
  free(w->tau);
  free(w->base);
  free(w->update);
}

/* Takes the loaded slab's elements [0, count), which begin at `first` of the tensor. */
static void take_slab(nps_engine_t *e, const nps_piece_t *piece, int64_t first, int64_t count, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const nps_target_t *target = &spec->layout->targets[piece->target];
  for (int64_t at = 0; at < count; at += NPS_CHUNK) {
    const int64_t n = min64(count - at, NPS_CHUNK);
    const nps_merge_chunk_t chunk = {
        .first = first + at, .count = n, .piece_ends = first + at + n == piece->count, .tau = e->tau};
    nps_engine_fill_chunk(e, target, at, n);
    nps_engine_add_norms(e, &chunk);
    for (int m = 0; m < spec->model_count; m++) memcpy(w->tau[m] + first + at, e->tau[m], (size_t)n * sizeof(float));
    nps_tensor_widen(nps_engine_input_dtype(e, target, spec->base), nps_engine_raw_at(e, target, spec->base, at), n,
                     w->base + first + at);
  }
}

static nps_err_t gather(nps_engine_t *e, const nps_piece_t *piece, int64_t step, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int64_t width = nps_plan_input_width(&spec->layout->targets[piece->target], spec->inputs, spec->input_count);
  for (int64_t first = 0; first < piece->count && !e->stopped; first += step) {
    const int64_t count = min64(piece->count - first, step);
    nps_engine_begin_slab(e, piece->target, first, count);
    NPS_TRY(nps_engine_load(e, count));
    take_slab(e, piece, first, count, w);
    nps_engine_beat(e, width * count);
  }
  return NPS_OK;
}

/* base + scale · update, rounded once. @param[in,out] base  [count] destroyed */
static nps_err_t put(nps_engine_t *e, const nps_piece_t *piece, double scale, double *base, const double *update) {
  const nps_target_t *target = &e->merge->spec.layout->targets[piece->target];
  const int64_t step = min64(e->plan->slab, NPS_STEP);
  for (int64_t i = 0; i < piece->count; i++) base[i] += scale * update[i];
  for (int64_t first = 0; first < piece->count; first += step) {
    const int64_t count = min64(piece->count - first, step);
    nps_tensor_narrow(base + first, count, target->dtype, e->out);
    NPS_TRY(nps_engine_write_out(e, piece, first, count));
  }
  return NPS_OK;
}

/* What earlier runs have merged of this tensor. @param[out] update  [count] */
static nps_err_t read_history(nps_engine_t *e, const nps_piece_t *piece, double *update) {
  const nps_model_t *updates = e->merge->spec.history.updates;
  const char *name = e->merge->spec.layout->targets[piece->target].name;
  NPS_TRY(nps_reader_read(e->history, nps_model_find(updates, name), 0, piece->count, update));
  const int64_t at = nps_tensor_find_nonfinite(NPS_F64, update, piece->count);
  if (at < 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: the state of tensor %s is not finite at index %lld", updates->path, name,
                  (long long)at);
}

static int own_index(const nps_engine_t *e, const nps_piece_t *piece) {
  return (int)(piece - e->plan->pieces) - e->plan->first_piece[nps_comm_rank(e->comm)];
}

static double squares_of(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

static double squares_of_tau(const float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
  return sum;
}

nps_err_t nps_engine_merge_whole(nps_engine_t *e, const nps_piece_t *piece) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int models = spec->model_count;
  whole_t w = {0};
  nps_err_t err = NPS_OK;
  e->norm_at = e->own_first_block[own_index(e, piece)];
  NPS_GOTO(make_room(models, piece->count, &w));
  NPS_GOTO(gather(e, piece, min64(e->plan->slab, NPS_STEP), &w));
  if (e->stopped) goto done;
  double *squares = spec->method->scale ? e->squares + (int64_t)piece->target * (models + 1) : NULL;
  for (int m = 0; squares && m < models; m++) squares[m] = squares_of_tau(w.tau[m], piece->count);
  if (spec->history.updates) NPS_GOTO(read_history(e, piece, w.update));
  NPS_GOTO(spec->method->merge_whole(&e->merge->tensors[piece->target], w.tau, w.update));
  for (int m = 0; m < models; m++) e->kept[m] += piece->count;
  if (!squares) {
    NPS_GOTO(put(e, piece, 1, w.base, w.update));
    goto done;
  }
  squares[models] = squares_of(w.update, piece->count);
  e->held[2 * own_index(e, piece)] = w.base;
  e->held[2 * own_index(e, piece) + 1] = w.update;
  w.base = w.update = NULL;
done:
  free_room(&w);
  return err;
}

/* Sums over the tensors, in their order whatever rank has which. */
double nps_engine_find_scale(nps_engine_t *e) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int models = spec->model_count, columns = models + 1, targets = spec->layout->count;
  double *norms = nps_xcalloc((size_t)columns, sizeof *norms);
  nps_comm_sum_f64(e->comm, e->squares, (int64_t)targets * columns); /* all but one rank's are 0: exact */
  for (int t = 0; t < targets; t++)
    for (int c = 0; c < columns; c++) norms[c] += e->squares[(int64_t)t * columns + c];
  for (int c = 0; c < columns; c++) norms[c] = sqrt(norms[c]);
  const double scale = spec->method->scale(&e->merge->history, models, norms, norms[models]);
  free(norms);
  return scale;
}

nps_err_t nps_engine_write_held(nps_engine_t *e, const nps_piece_t *piece, double scale) {
  double **held = e->held + 2 * own_index(e, piece);
  nps_err_t err = put(e, piece, scale, held[0], held[1]);
  if (err == NPS_OK && e->merge->spec.method->keeps_updates)
    err = nps_writer_write_state(e->writer, piece->target, 0, piece->count, held[1]);
  for (int k = 0; k < 2; k++) {
    free(held[k]);
    held[k] = NULL;
  }
  return err;
}
