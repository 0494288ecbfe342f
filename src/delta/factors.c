/* Factorising the matrices of all lists, each on one rank, and giving the factors to the ranks that assemble with them. */
#include "factors_internal.h"
#include "store.h"

#include "nps/plan.h"
#include "nps/svd.h"

#include <stdlib.h>
#include <string.h>

/* ---- shapes ---- */

bool nps_factors_excludes(const char *name, const char *const *exclude, int exclude_count) {
  for (int i = 0; i < exclude_count; i++)
    if (strstr(name, exclude[i])) return true;
  return false;
}

bool nps_factors_splits(const nps_target_t *target, const char *const *exclude, int exclude_count) {
  return target->action == NPS_ACTION_MERGE && target->ndim == 2 && target->shape[0] > 1 && target->shape[1] > 1 &&
         !nps_factors_excludes(target->name, exclude, exclude_count);
}

static int lists_of(const nps_factors_spec_t *spec) { return spec->sum ? 1 : spec->models; }

static int64_t short_side(const nps_target_t *t) { return nps_min64(t->shape[0], t->shape[1]); }

int64_t nps_factors_target_bytes(const nps_factors_spec_t *spec, int target) {
  const nps_target_t *t = &spec->layout->targets[target];
  if (!nps_factors_splits(t, spec->exclude, spec->exclude_count)) return 0;
  return lists_of(spec) * short_side(t) * (t->shape[0] + t->shape[1]) * (int64_t)sizeof(float);
}

int64_t nps_factors_bytes(const nps_factors_spec_t *spec) {
  int64_t bytes = 0;
  for (int t = 0; t < spec->layout->count; t++) bytes += nps_factors_target_bytes(spec, t);
  return bytes;
}

int64_t nps_factors_work_bytes(const nps_factors_spec_t *spec) {
  int64_t most = 0;
  for (int t = 0; t < spec->layout->count; t++) {
    const nps_target_t *target = &spec->layout->targets[t];
    if (!nps_factors_splits(target, spec->exclude, spec->exclude_count)) continue;
    const int64_t rows = target->shape[0], columns = target->shape[1];
    most = nps_max64(most, 8 * rows * columns + 12 * short_side(target) * (rows + columns) +
                               nps_svd_bytes(rows, columns, 0, NPS_SVD_GRAM));
  }
  return most + 8 * NPS_STEP * (spec->models + 1);
}

/* ---- what there is ---- */

static void add_matrix(nps_factors_t *f, int tensor) {
  const nps_target_t *t = f->targets[tensor];
  f->matrix_of[tensor] = f->matrix_count;
  f->matrices[f->matrix_count++] = (nps_matrix_t){.tensor = tensor,
                                                  .rows = t->shape[0],
                                                  .columns = t->shape[1],
                                                  .count = short_side(t),
                                                  .sigma_at = f->sigma_count,
                                                  .seen_at = f->seen_count};
  f->sigma_count += short_side(t);
  f->seen_count += t->shape[0] + t->shape[1];
  f->matrix_elements += t->count;
}

static nps_factors_t *describe(const nps_factors_spec_t *spec) {
  nps_factors_t *f = nps_xcalloc(1, sizeof *f);
  f->models = spec->models;
  f->lists = lists_of(spec);
  f->subspaces = spec->subspaces;
  f->sum = spec->sum;
  f->scope = spec->scope;
  f->lambda = nps_xcalloc((size_t)f->models, sizeof *f->lambda);
  if (f->sum) memcpy(f->lambda, spec->lambda, (size_t)f->models * sizeof *f->lambda);
  f->targets = nps_sorted_targets(spec->layout, &f->tensors);
  f->matrix_of = nps_xcalloc((size_t)f->tensors + 1, sizeof *f->matrix_of);
  f->matrices = nps_xcalloc((size_t)f->tensors + 1, sizeof *f->matrices);
  for (int t = 0; t < f->tensors; t++) {
    f->matrix_of[t] = -1;
    if (nps_factors_splits(f->targets[t], spec->exclude, spec->exclude_count))
      add_matrix(f, t);
    else
      f->rest_elements += f->targets[t]->count;
  }
  const size_t lists = (size_t)f->lists;
  f->sigma = nps_xcalloc(lists * (size_t)f->sigma_count + 1, sizeof *f->sigma);
  f->present = nps_xcalloc(lists * (size_t)f->matrix_count + 1, sizeof *f->present);
  f->seen = nps_xcalloc(lists * (size_t)f->seen_count + 1, sizeof *f->seen);
  f->rules = nps_xcalloc(lists * (size_t)f->tensors + 1, sizeof *f->rules);
  return f;
}

void nps_factors_free(nps_factors_t *f) {
  if (!f) return;
  nps_blocks_free(f->blocks);
  free(f->lambda);
  free(f->targets);
  free(f->matrix_of);
  free(f->matrices);
  free(f->sigma);
  free(f->present);
  free(f->seen);
  free(f->rules);
  free(f);
}

/* The dearest matrices first, each to the rank with the least to do, unless the owners are given. */
static void share_out(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *f) {
  double *seconds = nps_xcalloc((size_t)f->matrix_count + 1, sizeof *seconds);
  int *owner = nps_xcalloc((size_t)f->matrix_count + 1, sizeof *owner);
  for (int j = 0; j < f->matrix_count; j++)
    seconds[j] = nps_svd_seconds(f->matrices[j].rows, f->matrices[j].columns, 0, NPS_SVD_GRAM);
  nps_schedule_assign(seconds, f->matrix_count, nps_comm_size(comm), owner);
  for (int j = 0; j < f->matrix_count; j++) {
    const nps_target_t *target = f->targets[f->matrices[j].tensor];
    f->matrices[j].held = spec->spill || !spec->hold || spec->hold[target - spec->layout->targets] != NPS_HOLD_NOT;
    f->matrices[j].owner = spec->owner ? spec->owner[target - spec->layout->targets] : owner[j];
  }
  free(seconds);
  free(owner);
}

/* Room for all factors; on the ranks that do not keep them it is never used. */
static nps_err_t make_blocks(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *f) {
  const int count = f->lists * f->matrix_count;
  int64_t *most = nps_xcalloc((size_t)count + 1, sizeof *most);
  for (int i = 0; i < f->lists; i++)
    for (int j = 0; j < f->matrix_count; j++)
      most[nps_factors_block(f, i, j)] = f->matrices[j].count * (f->matrices[j].rows + f->matrices[j].columns);
  nps_err_t err = nps_blocks_new(comm, most, count, spec->spill, &f->blocks);
  free(most);
  return err;
}

/* ---- one matrix ---- */

/* Reads a list's matrix, and marks its rows and columns that are not all 0. */
static nps_err_t read_matrix(nps_source_t *source, const nps_factors_t *f, int list, const nps_matrix_t *m, double *a,
                             uint8_t *seen) {
  const nps_target_t *target = f->targets[m->tensor];
  for (int64_t first = 0; first < target->count; first += NPS_STEP) {
    const int64_t count = nps_min64(target->count - first, NPS_STEP);
    NPS_TRY(nps_source_load(source, list, target, first, count));
    for (int64_t at = 0; at < count; at += NPS_CHUNK)
      nps_source_values(source, at, nps_min64(count - at, NPS_CHUNK), a + first + at);
  }
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t c = 0; c < m->columns; c++)
      if (a[r * m->columns + c] != 0) seen[r] = seen[m->rows + c] = 1;
  return NPS_OK;
}

/* Rounds vectors [count][n] to float32; what belongs to rows or columns that are all 0 is 0 itself. */
static void narrow(const double *x, int64_t count, int64_t n, const uint8_t *seen, float *out) {
  for (int64_t k = 0; k < count; k++)
    for (int64_t i = 0; i < n; i++) out[k * n + i] = seen[i] ? (float)x[k * n + i] : 0;
}

static nps_err_t keep(nps_factors_t *f, int list, int matrix, const nps_svd_t *s, const uint8_t *seen) {
  const nps_matrix_t *m = &f->matrices[matrix];
  const int block = nps_factors_block(f, list, matrix);
  const int64_t sides = m->rows + m->columns;
  float *vectors = NULL;
  memcpy(f->sigma + list * f->sigma_count + m->sigma_at, s->sigma, (size_t)m->count * sizeof *s->sigma);
  f->present[block] = s->present;
  NPS_TRY(nps_buffer_alloc((size_t)(s->present * sides) * sizeof *vectors, "singular vectors", &vectors));
  narrow(s->u, s->present, m->rows, seen, vectors);
  narrow(s->v, s->present, m->columns, seen + m->rows, vectors + s->present * m->rows);
  nps_err_t err = nps_blocks_put(f->blocks, block, vectors, s->present * sides);
  free(vectors);
  return err;
}

/* The flat spectrum of `sum` lifts small values to the mean, whose vectors then matter as much. */
static nps_svd_options_t options_of(const nps_factors_t *f, const nps_matrix_t *m) {
  return (nps_svd_options_t){.name = f->targets[m->tensor]->name, .orthogonality = f->sum ? 1e-9 : 0};
}

static nps_err_t factorise(nps_source_t *source, nps_factors_t *f, int list, int matrix) {
  const nps_matrix_t *m = &f->matrices[matrix];
  const nps_svd_options_t options = options_of(f, m);
  uint8_t *seen = f->seen + list * f->seen_count + m->seen_at;
  nps_svd_t s = {0};
  double *a = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_buffer_alloc((size_t)(m->rows * m->columns) * sizeof *a, "a matrix", &a));
  NPS_GOTO(read_matrix(source, f, list, m, a, seen));
  NPS_GOTO(nps_svd_compute(a, m->rows, m->columns, &options, &s));
  free(a);
  a = NULL;
  NPS_GOTO(keep(f, list, matrix, &s, seen));
done:
  nps_svd_free(&s);
  free(a);
  return err;
}

/* Seconds of a matrix, in the unit that progress is told in. */
static nps_err_t factorise_own(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *f) {
  nps_source_t *source = NULL;
  nps_pulse_t *pulse = nps_pulse_start(comm);
  int64_t done = 0;
  bool goes_on = true;
  nps_err_t err = nps_source_new(spec, &source);
  for (int j = 0; j < f->matrix_count; j++)
    for (int i = 0; i < f->lists && err == NPS_OK && goes_on; i++) {
      if (f->matrices[j].owner != nps_comm_rank(comm)) continue;
      err = factorise(source, f, i, j);
      done += f->matrices[j].rows * f->matrices[j].columns;
      goes_on = nps_pulse_beat(pulse, done, NULL);
    }
  nps_source_free(source);
  return nps_pulse_end(pulse, done, err, NULL, NULL);
}

/* ---- giving them away ---- */

/* One rank's factors of a matrix for all that hold it. */
static nps_err_t give_block(const nps_comm_t *comm, nps_factors_t *f, int list, int matrix, int from, bool wanted,
                            float *vectors) {
  const nps_matrix_t *m = &f->matrices[matrix];
  const int block = nps_factors_block(f, list, matrix);
  const int64_t n = f->present[block] * (m->rows + m->columns);
  const bool own = from == nps_comm_rank(comm);
  nps_err_t err = own ? nps_blocks_get(f->blocks, block, 0, n, vectors) : NPS_OK;
  nps_comm_bcast_from(comm, from, vectors, (size_t)n * sizeof *vectors);
  return err == NPS_OK && !own && wanted ? nps_blocks_put(f->blocks, block, vectors, n) : err;
}

static nps_err_t make_vectors(const nps_comm_t *comm, const nps_factors_t *f, float **vectors) {
  int64_t most = 0;
  for (int j = 0; j < f->matrix_count; j++)
    most = nps_max64(most, f->matrices[j].count * (f->matrices[j].rows + f->matrices[j].columns));
  return nps_comm_agree(comm, nps_buffer_alloc((size_t)most * sizeof **vectors, "singular vectors", vectors));
}

/* Brings every factor to the ranks that hold its matrix. In the end a rank that does not forgets its own. */
static nps_err_t give_all(const nps_comm_t *comm, nps_factors_t *f) {
  float *vectors = NULL;
  if (nps_comm_size(comm) == 1) return NPS_OK;
  nps_err_t err = make_vectors(comm, f, &vectors);
  for (int b = 0; err == NPS_OK && b < f->lists * f->matrix_count; b++) {
    const int list = b / f->matrix_count, matrix = b % f->matrix_count;
    const nps_matrix_t *m = &f->matrices[matrix];
    const bool wanted = nps_blocks_in_file(f->blocks) ? nps_blocks_wanted(f->blocks) : m->held;
    err = nps_comm_agree(comm, give_block(comm, f, list, matrix, m->owner, wanted, vectors));
    nps_comm_bcast_from(comm, m->owner, f->seen + list * f->seen_count + m->seen_at, (size_t)(m->rows + m->columns));
    if (!m->held) nps_blocks_drop(f->blocks, b);
  }
  free(vectors);
  return err;
}

/* The first rank that has the factors of each matrix. */
static int *find_holders(const nps_comm_t *comm, const nps_factors_t *f) {
  int *holder = nps_xcalloc((size_t)f->matrix_count + 1, sizeof *holder);
  double *first = nps_xcalloc((size_t)f->matrix_count + 1, sizeof *first);
  for (int j = 0; j < f->matrix_count; j++)
    first[j] = f->matrices[j].held ? -nps_comm_rank(comm) : -nps_comm_size(comm);
  nps_comm_max_f64(comm, first, f->matrix_count);
  for (int j = 0; j < f->matrix_count; j++) holder[j] = (int)-first[j];
  free(first);
  return holder;
}

static int owner_of(const nps_factors_t *f, int matrix, const nps_layout_t *layout, const int *owner) {
  for (int t = 0; t < layout->count; t++)
    if (strcmp(layout->targets[t].name, f->targets[f->matrices[matrix].tensor]->name) == 0) return owner[t];
  return -1;
}

nps_err_t nps_factors_give(const nps_comm_t *comm, nps_factors_t *f, const nps_layout_t *layout, const int *owner) {
  float *vectors = NULL;
  int64_t missing = 0;
  for (int j = 0; j < f->matrix_count; j++)
    missing += !f->matrices[j].held && owner_of(f, j, layout, owner) == nps_comm_rank(comm);
  nps_comm_sum_i64(comm, &missing, 1);
  if (missing == 0) return NPS_OK;
  nps_err_t err = make_vectors(comm, f, &vectors);
  int *holder = find_holders(comm, f);
  for (int j = 0; j < f->matrix_count && err == NPS_OK; j++) {
    const bool wanted = !f->matrices[j].held && owner_of(f, j, layout, owner) == nps_comm_rank(comm);
    int64_t takers = wanted;
    nps_comm_sum_i64(comm, &takers, 1);
    for (int i = 0; takers > 0 && i < f->lists && err == NPS_OK; i++)
      err = nps_comm_agree(comm, give_block(comm, f, i, j, holder[j], wanted, vectors));
    f->matrices[j].held = f->matrices[j].held || wanted;
  }
  free(holder);
  free(vectors);
  return err;
}

nps_err_t nps_factors_new(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t **out) {
  nps_factors_t *f = describe(spec);
  nps_err_t err = NPS_OK;
  *out = NULL;
  share_out(comm, spec, f);
  NPS_GOTO(make_blocks(comm, spec, f));
  NPS_GOTO(factorise_own(comm, spec, f));
  nps_comm_sum_f64(comm, f->sigma, f->lists * f->sigma_count); /* all but one rank's are 0: exact */
  nps_comm_sum_i64(comm, f->present, (int64_t)f->lists * f->matrix_count);
  if (!spec->owner) NPS_GOTO(give_all(comm, f));
  NPS_GOTO(nps_rest_find(comm, spec, f));
  *out = f;
  f = NULL;
done:
  nps_factors_free(f);
  return err;
}

/* ---- what is known of them ---- */

int nps_factors_lists(const nps_factors_t *f) { return f->lists; }

int nps_factors_matrices(const nps_factors_t *f) { return f->matrix_count; }

int64_t nps_factors_rest(const nps_factors_t *f) { return f->rest_elements; }

int nps_factors_matrix(const nps_factors_t *f, int tensor) { return f->matrix_of[tensor]; }

nps_spectrum_t nps_factors_spectrum(const nps_factors_t *f, int list, int matrix) {
  const nps_matrix_t *m = &f->matrices[matrix];
  return (nps_spectrum_t){.name = f->targets[m->tensor]->name,
                          .rows = m->rows,
                          .columns = m->columns,
                          .count = m->count,
                          .present = f->present[nps_factors_block(f, list, matrix)],
                          .sigma = f->sigma + list * f->sigma_count + m->sigma_at};
}
