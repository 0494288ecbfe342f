/* Merging a tensor whole: all its task vectors are read before the method sees them. A tensor is one rank's, or a group's:
 * then every rank reads some of its rows from every model, an exchange brings them to the grid, and what the method gives
 * comes back as rows, which every rank writes. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const nps_grid_t *grid;
  const nps_comm_t *comm; /* of the group; NULL: this rank alone */
  float **tau;            /* [models][count of the piece], then [models][local elements] of the update */
  double *base;           /* [count of the piece] */
  nps_dmat_t update;
  double *rows; /* [count of the piece] of the update; on one rank all of it */
} whole_t;

static int models_of(const nps_engine_t *e, const nps_piece_t *piece) {
  return e->merge->tensors[piece->target].models;
}

/* ---- room ---- */

static nps_err_t make_task_vectors(int models, int64_t count, float **tau) {
  for (int m = 0; m < models; m++) NPS_TRY(nps_buffer_alloc((size_t)count * sizeof **tau, "task vectors", &tau[m]));
  return NPS_OK;
}

static nps_err_t make_room(int models, int64_t count, whole_t *w) {
  w->tau = nps_xcalloc((size_t)models, sizeof *w->tau);
  NPS_TRY(make_task_vectors(models, count, w->tau));
  return nps_buffer_alloc((size_t)count * sizeof *w->base, "a tensor", &w->base);
}

static void free_task_vectors(int models, whole_t *w) {
  for (int m = 0; w->tau && m < models; m++) free(w->tau[m]);
  free(w->tau);
  w->tau = NULL;
}

static void free_room(int models, whole_t *w) {
  free_task_vectors(models, w);
  free(w->base);
  nps_dmat_free(&w->update);
  free(w->rows);
}

/* ---- reading this rank's rows ---- */

/* Takes the loaded slab's elements [0, count), which begin at `first` of the piece. */
static void take_slab(nps_engine_t *e, const nps_piece_t *piece, int64_t first, int64_t count, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const nps_target_t *target = &spec->layout->targets[piece->target];
  const int models = models_of(e, piece);
  for (int64_t at = 0; at < count; at += NPS_CHUNK) {
    const int64_t n = nps_min64(count - at, NPS_CHUNK);
    const nps_merge_chunk_t chunk = {
        .first = first + at, .count = n, .piece_ends = first + at + n == piece->count, .tau = e->tau};
    nps_engine_fill_chunk(e, target, at, n);
    nps_engine_add_norms(e, models, &chunk);
    for (int m = 0; m < models; m++) memcpy(w->tau[m] + first + at, e->tau[m], (size_t)n * sizeof(float));
    if (spec->updates)
      memset(w->base + first + at, 0, (size_t)n * sizeof *w->base);
    else
      nps_tensor_widen(nps_engine_input_dtype(e, target, spec->base), nps_engine_raw_at(e, target, spec->base, at), n,
                       w->base + first + at);
  }
}

static nps_err_t gather(nps_engine_t *e, const nps_piece_t *piece, int64_t step, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int64_t width = nps_plan_input_width(&spec->layout->targets[piece->target], spec->inputs, spec->input_count);
  for (int64_t first = 0; first < piece->count && !e->stopped; first += step) {
    const int64_t count = nps_min64(piece->count - first, step);
    nps_engine_begin_slab(e, piece->target, piece->first + first, count);
    NPS_TRY(nps_engine_load(e, count));
    take_slab(e, piece, first, count, w);
    nps_engine_beat(e, width * count);
  }
  return NPS_OK;
}

/* ---- to and from the grid ---- */

/* The matrix that the update is. Collective over the group. */
static nps_err_t make_update(const nps_merge_tensor_t *tensor, whole_t *w) {
  if (tensor->rows > 0) return nps_dmat_new(w->grid, tensor->rows, tensor->columns, &w->update);
  w->update = nps_dmat_shape(w->grid, 1, tensor->count);
  return nps_buffer_alloc((size_t)tensor->count * sizeof(double), "a tensor", &w->update.local);
}

/* A task vector's rows become this rank's piece of the grid. Collective over the group. */
static nps_err_t spread(const nps_piece_t *piece, whole_t *w, int model) {
  const int64_t columns = w->update.columns;
  float *local = NULL;
  nps_err_t err = nps_buffer_alloc((size_t)nps_merge_local_count(&w->update) * sizeof *local, "task vectors", &local);
  err = nps_comm_agree(w->comm, err);
  if (err == NPS_OK)
    err = nps_dmat_put_rows(&w->update, sizeof *local, piece->first / columns, piece->count / columns, w->tau[model],
                            local);
  free(w->tau[model]);
  w->tau[model] = local;
  return err;
}

/* What earlier runs have merged of this rank's rows. @param[out] rows  [count] */
static nps_err_t read_history(nps_engine_t *e, const nps_piece_t *piece, double *rows) {
  const nps_model_t *updates = e->merge->spec.history.updates;
  const char *name = e->merge->spec.layout->targets[piece->target].name;
  NPS_TRY(nps_reader_read(e->history, nps_model_find(updates, name), piece->first, piece->count, rows));
  const int64_t at = nps_tensor_find_nonfinite(NPS_F64, rows, piece->count);
  if (at < 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: the state of tensor %s is not finite at index %lld", updates->path, name,
                  (long long)(piece->first + at));
}

/* What earlier runs have merged becomes the update. Collective over the group. */
static nps_err_t load_history(nps_engine_t *e, const nps_piece_t *piece, whole_t *w) {
  const int64_t columns = w->update.columns;
  if (!w->comm) return read_history(e, piece, w->update.local);
  nps_err_t err = nps_buffer_alloc((size_t)piece->count * sizeof *w->rows, "a tensor", &w->rows);
  if (err == NPS_OK) err = read_history(e, piece, w->rows);
  err = nps_comm_agree(w->comm, err);
  if (err == NPS_OK)
    err = nps_dmat_put_rows(&w->update, sizeof *w->rows, piece->first / columns, piece->count / columns, w->rows,
                            w->update.local);
  free(w->rows);
  w->rows = NULL;
  return err;
}

/* The update's rows that this rank writes. Collective over the group. */
static nps_err_t collect(const nps_piece_t *piece, whole_t *w) {
  const int64_t columns = w->update.columns;
  nps_err_t err = nps_buffer_alloc((size_t)piece->count * sizeof *w->rows, "a tensor", &w->rows);
  NPS_TRY(nps_comm_agree(w->comm, err));
  NPS_TRY(nps_dmat_get_rows(&w->update, sizeof *w->rows, piece->first / columns, piece->count / columns, w->rows,
                            w->update.local));
  nps_dmat_free(&w->update);
  return NPS_OK;
}

/* The method, between rows and rows. Collective over the group. */
static nps_err_t apply(nps_engine_t *e, const nps_piece_t *piece, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const nps_merge_tensor_t *tensor = &e->merge->tensors[piece->target];
  NPS_TRY(make_update(tensor, w));
  for (int m = 0; m < tensor->models && w->comm; m++) NPS_TRY(spread(piece, w, m));
  if (spec->history.updates) NPS_TRY(load_history(e, piece, w));
  NPS_TRY(spec->method->merge_whole(tensor, w->tau, &w->update));
  free_task_vectors(tensor->models, w);
  if (w->comm) return collect(piece, w);
  w->rows = w->update.local;
  w->update.local = NULL;
  return NPS_OK;
}

/* ---- writing ---- */

/* base + scale · update, rounded once. @param[in,out] base  [count] destroyed */
static nps_err_t put(nps_engine_t *e, const nps_piece_t *piece, double scale, double *base, const double *update) {
  const nps_target_t *target = &e->merge->spec.layout->targets[piece->target];
  const int64_t step = nps_min64(e->plan->slab, NPS_STEP);
  e->slab_target = -1; /* inputs are no longer needed: the whole slab is room for the output */
  e->out = e->slab;
  for (int64_t i = 0; i < piece->count; i++) base[i] += scale * update[i];
  for (int64_t first = 0; first < piece->count; first += step) {
    const int64_t count = nps_min64(piece->count - first, step);
    nps_tensor_narrow(base + first, count, target->dtype, e->out);
    NPS_TRY(nps_engine_write_out(e, piece, piece->first + first, count));
  }
  return NPS_OK;
}

/* ---- one tensor ---- */

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

/* Reads this rank's rows. Collective over the group: one that cannot go on stops all. */
static nps_err_t read_rows(nps_engine_t *e, const nps_piece_t *piece, whole_t *w) {
  nps_err_t err = make_room(models_of(e, piece), piece->count, w);
  if (err == NPS_OK) err = gather(e, piece, nps_min64(e->plan->slab, NPS_STEP), w);
  return w->comm ? nps_engine_agree_sharers(e, w->comm, err) : err;
}

/* Keeps what is to be scaled. */
static void hold(nps_engine_t *e, const nps_piece_t *piece, whole_t *w) {
  double **held = e->held + 2 * own_index(e, piece);
  held[0] = w->base;
  held[1] = w->rows;
  w->base = w->rows = NULL;
}

static nps_err_t merge_rows(nps_engine_t *e, const nps_piece_t *piece, whole_t *w) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int models = models_of(e, piece), columns = spec->model_count + 1;
  double *squares = spec->method->scale ? e->squares + (int64_t)piece->target * columns : NULL;
  e->norm_at = e->own_first_block[own_index(e, piece)];
  NPS_TRY(read_rows(e, piece, w));
  if (e->stopped) return NPS_OK;
  for (int m = 0; squares && m < models; m++) squares[m] = squares_of_tau(w->tau[m], piece->count);
  NPS_TRY(nps_engine_put_parts(e, piece->target, w->tau));
  NPS_TRY(apply(e, piece, w));
  for (int m = 0; m < models; m++) e->kept[m] += piece->count;
  if (!squares) return put(e, piece, 1, w->base, w->rows);
  squares[columns - 1] = squares_of(w->rows, piece->count);
  hold(e, piece, w);
  return NPS_OK;
}

nps_err_t nps_engine_merge_whole(nps_engine_t *e, const nps_piece_t *piece) {
  whole_t w = {.grid = nps_groups_grid(e->groups, piece->target)};
  w.comm = nps_grid_comm(w.grid);
  nps_err_t err = merge_rows(e, piece, &w);
  if (w.comm) err = nps_engine_agree_sharers(e, w.comm, err);
  free_room(models_of(e, piece), &w);
  return err;
}

/* ---- updates that are scaled together ---- */

/* Sums over the tensors, in their order whatever rank has which. */
double nps_engine_find_scale(nps_engine_t *e) {
  const nps_merge_spec_t *spec = &e->merge->spec;
  const int models = spec->model_count, columns = models + 1, targets = spec->layout->count;
  double *norms = nps_xcalloc((size_t)columns, sizeof *norms);
  nps_comm_sum_f64(e->comm, e->squares, (int64_t)targets * columns); /* exact but for groups' tensors */
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
    err = nps_writer_write_state(e->writer, piece->target, piece->first, piece->count, held[1]);
  for (int k = 0; k < 2; k++) {
    free(held[k]);
    held[k] = NULL;
  }
  return err;
}
