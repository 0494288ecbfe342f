/* The engine: streams slabs of all inputs through a method to the writer.
 *
 * Without statistics, and for copied tensors: one sweep over this rank's pieces. With statistics of single tensors: the
 * tensors shared with other ranks come first, in two rounds (a rank shares at most its first and its last tensor, and
 * neighbours in the list of shared tensors are in different rounds), each with a communicator of its own; then the others
 * by each rank alone. With statistics of the whole model: one sweep over all pieces for each pass. Methods that see tensors
 * whole: large tensors first, each by a group of ranks, then the others by each rank alone (whole.c). */
#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nps_merge_spec_t *spec_of(const nps_engine_t *e) { return &e->merge->spec; }

static bool on_task_vectors(const nps_engine_t *e) { return spec_of(e)->method->base == NPS_BASE_TASK_VECTORS; }

static int64_t blocks_of(int64_t count) { return (count + NPS_BLOCK - 1) / NPS_BLOCK; }

/* ---- chunks ---- */

NPS_VECTOR_CLONES
static void add_base(const double *base, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) out[i] = base[i] + out[i];
}

static void merge_chunk(nps_engine_t *e, const nps_target_t *target, const nps_merge_tensor_t *tensor,
                        const nps_merge_chunk_t *chunk, int64_t at, void *dst) {
  const nps_merge_spec_t *spec = spec_of(e);
  double out[NPS_CHUNK], base[NPS_CHUNK];
  if (e->tau) nps_engine_add_norms(e, tensor->models, chunk);
  spec->method->merge(e->state, tensor, chunk, out, e->kept);
  if (e->tau && !spec->updates) {
    nps_tensor_widen(nps_engine_input_dtype(e, target, spec->base), nps_engine_raw_at(e, target, spec->base, at),
                     chunk->count, base);
    add_base(base, chunk->count, out);
  }
  nps_tensor_narrow(out, chunk->count, target->dtype, dst);
}

/* ---- sweeps over one piece ---- */

/* Looks at elements [at, end) of the slab in one pass; the pass after the last statistics one merges into the output
 * buffer. */
static void sweep_chunks(nps_engine_t *e, const nps_piece_t *piece, int pass, const int64_t begin, const int64_t end) {
  const nps_target_t *target = &spec_of(e)->layout->targets[piece->target];
  const nps_merge_tensor_t *tensor = &e->merge->tensors[piece->target];
  for (int64_t at = begin; at < end; at += NPS_CHUNK) {
    const nps_merge_method_t *method = spec_of(e)->method;
    int64_t skipped = 0, n = nps_min64(end - at, NPS_CHUNK);
    if (pass < e->merge->passes && method->part) n = method->part(e->state, pass, n, &skipped);
    const int64_t first = e->slab_first + at + skipped;
    const nps_merge_chunk_t chunk = {.first = first,
                                     .count = n,
                                     .piece_ends = first + n == piece->first + piece->count,
                                     .tau = e->tau,
                                     .theta = e->theta};
    nps_engine_fill_chunk(e, target, at + skipped, n);
    if (pass == e->merge->passes)
      merge_chunk(e, target, tensor, &chunk, at, e->out + (size_t)(at - begin) * nps_dtype_size(target->dtype));
    else
      method->scan(e->state, tensor, pass, &chunk);
  }
}

static nps_err_t sweep_slab(nps_engine_t *e, const nps_piece_t *piece, int pass, int64_t first, int64_t count) {
  const nps_target_t *target = &spec_of(e)->layout->targets[piece->target];
  const int64_t width = nps_plan_input_width(target, spec_of(e)->inputs, spec_of(e)->input_count);
  const bool merging = pass == e->merge->passes, counts = merging || e->merge->whole_model;
  nps_engine_begin_slab(e, piece->target, first, count);
  for (int64_t at = 0; at < count && !e->stopped; at += NPS_STEP) {
    const int64_t end = nps_min64(count, at + NPS_STEP);
    NPS_TRY(nps_engine_load(e, end));
    sweep_chunks(e, piece, pass, at, end);
    if (merging) NPS_TRY(nps_engine_write_out(e, piece, first + at, end - at));
    nps_engine_beat(e, counts ? width * (end - at) : 0);
  }
  return NPS_OK;
}

static nps_err_t sweep(nps_engine_t *e, const nps_piece_t *piece, int pass) {
  const nps_merge_method_t *method = spec_of(e)->method;
  if (method->piece) method->piece(e->state, &e->merge->tensors[piece->target], pass);
  const int64_t end = piece->first + piece->count;
  e->norm_at = e->own_first_block[piece - e->plan->pieces - e->plan->first_piece[nps_comm_rank(e->comm)]];
  for (int64_t first = piece->first; first < end && !e->stopped; first += e->plan->slab)
    NPS_TRY(sweep_slab(e, piece, pass, first, nps_min64(end - first, e->plan->slab)));
  return NPS_OK;
}

nps_err_t nps_engine_agree_sharers(nps_engine_t *e, const nps_comm_t *comm, nps_err_t err) {
  if (nps_comm_size(comm) == 1) return err;
  const double since = nps_now();
  double stopped = e->stopped;
  nps_comm_max_f64(comm, &stopped, 1);
  e->busy -= nps_now() - since;
  e->stopped = stopped > 0;
  return nps_comm_agree(comm, err);
}

/* After a pass and its reduction. */
static int next_pass(nps_engine_t *e, int pass) {
  const nps_merge_method_t *method = spec_of(e)->method;
  return method->next ? method->next(e->state, pass) : pass + 1;
}

/* Statistics of one tensor over the ranks of `comm`, then its merging. Collective over comm; the result of the last sweep
 * is this rank's own. */
static nps_err_t merge_tensor(nps_engine_t *e, const nps_piece_t *piece, const nps_comm_t *comm) {
  const nps_merge_method_t *method = spec_of(e)->method;
  const nps_merge_tensor_t *tensor = &e->merge->tensors[piece->target];
  method->start(e->state, tensor);
  for (int pass = 0; pass < e->merge->passes; pass = next_pass(e, pass)) {
    nps_err_t err = nps_engine_agree_sharers(e, comm, sweep(e, piece, pass));
    if (err != NPS_OK || e->stopped) return err;
    method->reduce(e->state, tensor, pass, comm);
  }
  return sweep(e, piece, e->merge->passes);
}

/* ---- copied targets ---- */

/* Integer and boolean tensors must be the same in all inputs. */
static nps_err_t compare_sources(const nps_engine_t *e, const nps_target_t *target, int first_input, int64_t first,
                                 int64_t count) {
  const size_t size = nps_dtype_size(target->dtype);
  for (int i = first_input + 1; i < spec_of(e)->input_count; i++) {
    if (target->source[i] < 0 || memcmp(e->raw[first_input], e->raw[i], (size_t)count * size) == 0) continue;
    int64_t at = 0;
    while (memcmp(e->raw[first_input] + (size_t)at * size, e->raw[i] + (size_t)at * size, size) == 0) at++;
    return nps_fail(NPS_ERR_INPUT,
                    "tensor %s (%s) cannot be merged and differs between the models %s and %s at index %lld",
                    target->name, nps_dtype_name(target->dtype), spec_of(e)->inputs[first_input]->name,
                    spec_of(e)->inputs[i]->name, (long long)(first + at));
  }
  return NPS_OK;
}

/* Copied targets keep the type in which they are stored. */
static nps_err_t copy_step(nps_engine_t *e, const nps_piece_t *piece, int64_t first, int64_t count) {
  const nps_target_t *target = &spec_of(e)->layout->targets[piece->target];
  int source = 0;
  while (target->source[source] < 0) source++;
  nps_engine_begin_slab(e, piece->target, first, count);
  NPS_TRY(nps_engine_load(e, count));
  if (target->action == NPS_ACTION_COPY) NPS_TRY(compare_sources(e, target, source, first, count));
  nps_engine_beat(e, count * nps_plan_input_width(target, spec_of(e)->inputs, spec_of(e)->input_count));
  return nps_writer_write(e->writer, piece->target, first, count, e->raw[source]);
}

static nps_err_t copy_tensor(nps_engine_t *e, const nps_piece_t *piece) {
  const int64_t end = piece->first + piece->count, step = nps_min64(e->plan->slab, NPS_STEP);
  for (int64_t first = piece->first; first < end && !e->stopped; first += step)
    NPS_TRY(copy_step(e, piece, first, nps_min64(end - first, step)));
  return NPS_OK;
}

/* ---- phases ---- */

typedef nps_err_t piece_fn(nps_engine_t *e, const nps_piece_t *piece, int pass);

static bool is_merged(const nps_engine_t *e, const nps_piece_t *piece) {
  return spec_of(e)->layout->targets[piece->target].action == NPS_ACTION_MERGE;
}

/* Whether a piece belongs to a tensor whose statistics this rank shares with others. */
static bool is_shared(const nps_engine_t *e, const nps_piece_t *piece) {
  return e->merge->passes > 0 && !e->merge->whole_model && is_merged(e, piece) &&
         e->plan->owner_first[piece->target] != e->plan->owner_last[piece->target];
}

static void show_idle(void *ctx, int64_t total) {
  nps_engine_t *e = ctx;
  if (e->progress) e->progress(e->progress_ctx, total);
}

static nps_err_t end_pulse(nps_engine_t *e, nps_err_t err) {
  err = nps_pulse_end(e->pulse, e->done, err, show_idle, e);
  e->pulse = NULL;
  return err;
}

/* Applies a function to this rank's pieces, ranks working alone. Collective; the same result on every rank. */
static nps_err_t for_pieces(nps_engine_t *e, piece_fn *fn, int pass) {
  const int rank = nps_comm_rank(e->comm);
  nps_err_t err = NPS_OK;
  e->pulse = nps_pulse_start(e->comm);
  e->busy -= nps_now();
  for (int i = e->plan->first_piece[rank]; i < e->plan->first_piece[rank + 1] && err == NPS_OK && !e->stopped; i++)
    err = fn(e, &e->plan->pieces[i], pass);
  e->busy += nps_now();
  return end_pulse(e, err);
}

static nps_err_t scan_piece(nps_engine_t *e, const nps_piece_t *piece, int pass) {
  return is_merged(e, piece) ? sweep(e, piece, pass) : NPS_OK;
}

/* The merging pass where statistics are there already or never needed. */
static nps_err_t merge_piece(nps_engine_t *e, const nps_piece_t *piece, int pass) {
  return is_merged(e, piece) ? sweep(e, piece, pass) : copy_tensor(e, piece);
}

/* Statistics and merging of a tensor that is this rank's alone, or merged whole. */
static nps_err_t merge_own_piece(nps_engine_t *e, const nps_piece_t *piece, int pass) {
  if (is_shared(e, piece)) return NPS_OK;
  if (is_merged(e, piece) && nps_merge_is_whole(e->merge, piece->target)) return nps_engine_merge_whole(e, piece);
  return e->merge->passes > 0 && is_merged(e, piece) ? merge_tensor(e, piece, e->self) : merge_piece(e, piece, pass);
}

/* Finds this rank's piece of the shared tensors of a round, or NULL. Returns whether any tensor is shared at all. */
static bool find_shared(const nps_engine_t *e, int round, const nps_piece_t **mine) {
  const nps_plan_t *plan = e->plan;
  const int rank = nps_comm_rank(e->comm);
  int number = 0, last_target = -1;
  *mine = NULL;
  for (int i = 0; i < plan->piece_count; i++) {
    const nps_piece_t *piece = &plan->pieces[i];
    if (!is_shared(e, piece)) continue;
    if (piece->target != last_target) number++;
    last_target = piece->target;
    const bool here = i >= plan->first_piece[rank] && i < plan->first_piece[rank + 1];
    if (here && number % 2 == round) *mine = piece;
  }
  return number > 0;
}

/* Merges the tensors that ranks share, in two rounds. A rank that has failed still meets its neighbours of the second
 * round, to tell them. Collective; the same result on every rank. */
static nps_err_t merge_shared(nps_engine_t *e) {
  const nps_piece_t *mine[2];
  nps_comm_t *sharers[2];
  nps_err_t err = NPS_OK;
  if (!find_shared(e, 0, &mine[0])) return NPS_OK;
  find_shared(e, 1, &mine[1]);
  for (int round = 0; round < 2; round++)
    nps_comm_split(e->comm, mine[round] ? mine[round]->target : -1, &sharers[round]);
  e->pulse = nps_pulse_start(e->comm);
  e->busy -= nps_now();
  for (int round = 0; round < 2; round++) {
    if (!mine[round]) continue;
    err = nps_engine_agree_sharers(e, sharers[round], err);
    if (err == NPS_OK && !e->stopped) err = merge_tensor(e, mine[round], sharers[round]);
  }
  e->busy += nps_now();
  err = end_pulse(e, err);
  for (int round = 0; round < 2; round++) nps_comm_free(sharers[round]);
  return err;
}

static nps_err_t write_held_piece(nps_engine_t *e, const nps_piece_t *piece, int pass) {
  (void)pass;
  return is_merged(e, piece) ? nps_engine_write_held(e, piece, e->scale) : NPS_OK;
}

/* The updates of all tensors, then the factor of all, then the output. */
static nps_err_t merge_scaled(nps_engine_t *e) {
  NPS_TRY(for_pieces(e, merge_own_piece, e->merge->passes));
  e->scale = nps_engine_find_scale(e);
  return for_pieces(e, write_held_piece, e->merge->passes);
}

static nps_err_t run_phases(nps_engine_t *e) {
  const nps_merge_t *merge = e->merge;
  if (merge->whole_model) {
    const nps_merge_tensor_t *any = &merge->tensors[merge->first];
    merge->spec.method->start(e->state, any);
    for (int pass = 0; pass < merge->passes; pass = next_pass(e, pass)) {
      NPS_TRY(for_pieces(e, scan_piece, pass));
      merge->spec.method->reduce(e->state, any, pass, e->comm);
    }
    return for_pieces(e, merge_piece, merge->passes);
  }
  if (merge->spec.method->scale) return merge_scaled(e);
  NPS_TRY(merge_shared(e));
  return for_pieces(e, merge_own_piece, merge->passes);
}

/* ---- results ---- */

/* Block sums that cross the network at a time. */
#define NORM_BATCH ((int64_t)1 << 16)

/* Adds up a model's block sums in the order of the line of all targets, whatever rank has which. Collective. */
static double total_norm(const nps_engine_t *e, const double *own, double *batch) {
  const nps_plan_t *plan = e->plan;
  const int rank = nps_comm_rank(e->comm);
  int64_t before = 0, blocks = 0;
  double total = 0;
  for (int i = 0; i < plan->piece_count; i++) {
    if (i < plan->first_piece[rank]) before += blocks_of(plan->pieces[i].count);
    blocks += blocks_of(plan->pieces[i].count);
  }
  const int64_t own_blocks = e->own_blocks;
  for (int64_t at = 0; at < blocks; at += NORM_BATCH) {
    int64_t n = nps_min64(blocks - at, NORM_BATCH);
    for (int64_t i = 0; i < n; i++) {
      int64_t k = at + i - before;
      batch[i] = k >= 0 && k < own_blocks ? own[k] : 0;
    }
    nps_comm_sum_f64(e->comm, batch, n); /* all but one rank's are 0: exact */
    for (int64_t i = 0; i < n; i++) total += batch[i];
  }
  return sqrt(total);
}

/* Elements of the merged tensors that a model has a part in. */
static int64_t count_elements(const nps_merge_t *merge, int model) {
  int64_t elements = 0;
  for (int t = 0; t < merge->spec.layout->count; t++)
    if (model < merge->tensors[t].models) elements += merge->tensors[t].count;
  return elements;
}

static void gather_results(nps_engine_t *e, nps_merge_result_t *results) {
  const nps_merge_spec_t *spec = spec_of(e);
  double *batch = nps_xcalloc((size_t)NORM_BATCH, sizeof *batch);
  nps_comm_sum_i64(e->comm, e->kept, spec->model_count);
  for (int m = 0; m < spec->model_count; m++) {
    results[m] = (nps_merge_result_t){.norm = NAN, .kept = 1};
    if (!e->tau) continue;
    results[m].norm = total_norm(e, e->norms[m], batch);
    const int64_t elements = count_elements(e->merge, m);
    if (elements > 0) results[m].kept = (double)e->kept[m] / (double)elements;
  }
  free(batch);
}

static nps_merge_balance_t find_balance(const nps_engine_t *e) {
  double ends[2] = {e->busy, -e->busy}, mean = e->busy;
  nps_comm_max_f64(e->comm, ends, 2);
  nps_comm_sum_f64(e->comm, &mean, 1);
  return (nps_merge_balance_t){.least = -ends[1], .mean = mean / nps_comm_size(e->comm), .most = ends[0]};
}

/* ---- set-up ---- */

static void **make_rows(int rows, size_t bytes) {
  void **row = nps_xcalloc((size_t)rows, sizeof *row);
  for (int i = 0; i < rows; i++) row[i] = nps_xcalloc(1, bytes);
  return row;
}

static void free_rows(void **row, int rows) {
  for (int i = 0; row && i < rows; i++) free(row[i]);
  free(row);
}

/* Bytes of the slab buffer of this rank. */
static size_t slab_bytes(const nps_engine_t *e) {
  const nps_merge_spec_t *spec = spec_of(e);
  const int rank = nps_comm_rank(e->comm);
  int64_t most = 0;
  for (int i = e->plan->first_piece[rank]; i < e->plan->first_piece[rank + 1]; i++) {
    const nps_piece_t *piece = &e->plan->pieces[i];
    const nps_target_t *target = &spec->layout->targets[piece->target];
    int64_t bytes = nps_plan_buffer_bytes(target, spec->inputs, spec->input_count, piece->count, e->plan->slab);
    if (bytes > most) most = bytes;
  }
  return (size_t)most + NPS_SLAB_ALIGNMENT * (size_t)spec->input_count;
}

static int own_pieces(const nps_engine_t *e) {
  const int rank = nps_comm_rank(e->comm);
  return e->plan->first_piece[rank + 1] - e->plan->first_piece[rank];
}

static void index_blocks(nps_engine_t *e) {
  const int first = e->plan->first_piece[nps_comm_rank(e->comm)], pieces = own_pieces(e);
  e->own_first_block = nps_xcalloc((size_t)pieces, sizeof *e->own_first_block);
  for (int i = 0; i < pieces; i++) {
    e->own_first_block[i] = e->own_blocks;
    e->own_blocks += blocks_of(e->plan->pieces[first + i].count);
  }
}

static nps_err_t set_up(nps_engine_t *e, nps_digest_t *digest) {
  const nps_merge_spec_t *spec = spec_of(e);
  const int models = spec->model_count;
  e->slab_target = -1;
  e->raw = nps_xcalloc((size_t)spec->input_count, sizeof *e->raw);
  e->kept = nps_xcalloc((size_t)models, sizeof *e->kept);
  e->lanes = nps_xcalloc((size_t)models, sizeof *e->lanes);
  e->reader = nps_xcalloc((size_t)spec->input_count, sizeof *e->reader);
  for (int i = 0; i < spec->input_count; i++) e->reader[i] = nps_reader_new(spec->inputs[i], digest);
  if (spec->history.updates) e->history = nps_reader_new(spec->history.updates, digest);
  index_blocks(e);
  if (on_task_vectors(e)) {
    e->tau = (float **)make_rows(models, NPS_CHUNK * sizeof(float));
    e->norms = (double **)make_rows(models, (size_t)e->own_blocks * sizeof(double));
  } else {
    e->theta = (double **)make_rows(models, NPS_CHUNK * sizeof(double));
  }
  if (e->merge->passes > 0) e->state = spec->method->state_new(spec);
  e->held = nps_xcalloc(2 * (size_t)own_pieces(e) + 1, sizeof *e->held);
  e->squares = nps_xcalloc((size_t)spec->layout->count * (size_t)(models + 1) + 1, sizeof *e->squares);
  return nps_buffer_alloc(slab_bytes(e), "the slab buffer", &e->slab);
}

static void tear_down(nps_engine_t *e) {
  const nps_merge_spec_t *spec = spec_of(e);
  if (e->state) spec->method->state_free(e->state);
  for (int i = 0; i < spec->input_count; i++) nps_reader_free(e->reader[i]);
  free_rows((void **)e->tau, spec->model_count);
  free_rows((void **)e->theta, spec->model_count);
  free_rows((void **)e->norms, spec->model_count);
  nps_reader_free(e->history);
  nps_groups_free(e->groups);
  nps_comm_free(e->self);
  for (int i = 0; e->held && i < 2 * own_pieces(e); i++) free(e->held[i]);
  free(e->held);
  free(e->squares);
  free(e->own_first_block);
  free(e->reader);
  free(e->lanes);
  free(e->kept);
  free(e->raw);
  free(e->slab);
}

nps_err_t nps_merge_run(nps_merge_t *merge, const nps_comm_t *comm, const nps_plan_t *plan, nps_digest_t *digest,
                        nps_writer_t *writer, nps_merge_progress_fn *progress, void *ctx, nps_merge_result_t *results) {
  nps_engine_t e = {
      .merge = merge, .plan = plan, .comm = comm, .writer = writer, .progress = progress, .progress_ctx = ctx};
  e.self = nps_comm_self();
  if (plan->schedule) e.groups = nps_groups_new(comm, plan->schedule);
  nps_err_t err = nps_comm_agree(comm, set_up(&e, digest));
  if (err == NPS_OK) err = run_phases(&e);
  if (err == NPS_OK) gather_results(&e, results);
  if (err == NPS_OK) merge->balance = find_balance(&e);
  if (err == NPS_OK && e.state && merge->spec.method->subspaces) {
    nps_merge_subspaces_clear(&merge->subspaces);
    merge->spec.method->subspaces(e.state, comm, &merge->subspaces);
  }
  tear_down(&e);
  return err;
}
