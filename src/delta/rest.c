/* The tensors that are not split into bands: which of their entries are kept, and the update that comes of them. */
#include "factors_internal.h"
#include "radix.h"

#include "nps/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Entries in work: those of the rest tensors [first, end), one after the other. */
typedef struct {
  const nps_factors_t *factors;
  nps_source_t *source;
  int list, first, end;
  int64_t from, to; /* of them, this rank's stretch */
} stretch_t;

typedef void chunk_fn(void *ctx, int tensor, int64_t first, const float *x, int64_t n);

static bool is_rest(const nps_factors_t *f, int tensor) { return f->matrix_of[tensor] < 0; }

/* fl32(τ), or fl32(Σ λ_i τ_i / T) */
static void narrow(const nps_factors_t *f, const double *x, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i++) out[i] = (float)(f->sum ? x[i] / f->models : x[i]);
}

static nps_err_t walk_tensor(const stretch_t *s, int tensor, int64_t first, int64_t end, chunk_fn *each, void *ctx) {
  double x[NPS_CHUNK];
  float tau[NPS_CHUNK];
  for (int64_t at = first; at < end; at += NPS_STEP) {
    const int64_t count = nps_min64(end - at, NPS_STEP);
    NPS_TRY(nps_source_load(s->source, s->list, s->factors->targets[tensor], at, count));
    for (int64_t i = 0; i < count; i += NPS_CHUNK) {
      const int64_t n = nps_min64(count - i, NPS_CHUNK);
      nps_source_values(s->source, i, n, x);
      narrow(s->factors, x, n, tau);
      each(ctx, tensor, at + i, tau, n);
    }
  }
  return NPS_OK;
}

/* Calls a function for this rank's entries, chunk by chunk, in order. */
static nps_err_t walk(const stretch_t *s, chunk_fn *each, void *ctx) {
  int64_t before = 0;
  for (int t = s->first; t < s->end; t++) {
    if (!is_rest(s->factors, t)) continue;
    const int64_t count = s->factors->targets[t]->count;
    const int64_t first = nps_max64(0, s->from - before), end = nps_min64(count, s->to - before);
    if (first < end) NPS_TRY(walk_tensor(s, t, first, end, each, ctx));
    before += count;
  }
  return NPS_OK;
}

/* ---- finding the rule ---- */

typedef struct {
  nps_select_t *select;
  int pass;
  int64_t ties;   /* at the threshold, of this rank */
  int64_t wanted; /* which of them is the last that is kept, from 1; 0 or less: none of this rank's */
  int64_t place[2];
  uint32_t threshold;
} finding_t;

static void count_chunk(void *ctx, int tensor, int64_t first, const float *x, int64_t n) {
  finding_t *f = ctx;
  (void)tensor, (void)first;
  nps_select_count(f->select, f->pass, x, n);
}

static void count_ties(void *ctx, int tensor, int64_t first, const float *x, int64_t n) {
  finding_t *f = ctx;
  (void)tensor, (void)first;
  f->ties += nps_select_count_ties(f->select, x, n);
}

static void find_place(void *ctx, int tensor, int64_t first, const float *x, int64_t n) {
  finding_t *f = ctx;
  for (int64_t i = 0; i < n && f->wanted > 0; i++) {
    if (nps_magnitude_bits(x[i]) != f->threshold || --f->wanted > 0) continue;
    f->place[0] = tensor;
    f->place[1] = first + i;
  }
}

/* Where the last entry at the threshold lies that is kept. Collective. */
static nps_err_t find_last(const nps_comm_t *comm, const stretch_t *s, finding_t *f, nps_rest_rule_t *rule) {
  nps_err_t err = walk(s, count_ties, f);
  int64_t before = f->ties;
  nps_comm_exscan_i64(comm, &before, 1);
  f->wanted = nps_select_ties(f->select) - before;
  f->threshold = rule->threshold;
  if (err == NPS_OK && f->wanted > 0 && f->wanted <= f->ties) err = walk(s, find_place, f);
  nps_comm_sum_i64(comm, f->place, 2);
  rule->last_tensor = (int)f->place[0];
  rule->last_index = f->place[1];
  return nps_comm_agree(comm, err);
}

/* The rule of the tensors [first, end) of a list together. Collective. */
static nps_err_t find_rule(const nps_comm_t *comm, stretch_t *s, nps_select_t *select, double density,
                           nps_rest_rule_t *rule) {
  int64_t entries = 0;
  finding_t f = {.select = select};
  for (int t = s->first; t < s->end; t++)
    if (is_rest(s->factors, t)) entries += s->factors->targets[t]->count;
  const int64_t ranks = nps_comm_size(comm), rank = nps_comm_rank(comm);
  s->from = entries / ranks * rank + nps_min64(entries % ranks, rank);
  s->to = s->from + entries / ranks + (rank < entries % ranks);
  *rule = (nps_rest_rule_t){.keep = (int64_t)floor(density * (double)entries), .last_tensor = s->end};
  if (rule->keep == 0 || rule->keep == entries) return NPS_OK;
  nps_select_start(select, rule->keep);
  for (f.pass = 0; f.pass < 2; f.pass++) {
    NPS_TRY(nps_comm_agree(comm, walk(s, count_chunk, &f)));
    nps_select_reduce(select, f.pass, comm);
  }
  rule->threshold = nps_select_threshold(select);
  return find_last(comm, s, &f, rule);
}

static nps_err_t find_rules(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *f, int list,
                            nps_source_t *source, nps_select_t *select) {
  nps_rest_rule_t *rules = f->rules + (int64_t)list * f->tensors;
  const bool whole = f->scope == NPS_SCOPE_MODEL;
  stretch_t s = {.factors = f, .source = source, .list = list, .end = f->tensors};
  if (whole) NPS_TRY(find_rule(comm, &s, select, spec->density[list], &rules[0]));
  for (int t = 0; t < f->tensors; t++) {
    if (whole) rules[t] = rules[0];
    if (whole || !is_rest(f, t)) continue;
    s.first = t;
    s.end = t + 1;
    NPS_TRY(find_rule(comm, &s, select, spec->density[list], &rules[t]));
  }
  return NPS_OK;
}

nps_err_t nps_rest_find(const nps_comm_t *comm, const nps_factors_spec_t *spec, nps_factors_t *f) {
  nps_source_t *source = NULL;
  nps_select_t *select = nps_select_new();
  nps_err_t err = nps_comm_agree(comm, nps_source_new(spec, &source));
  for (int i = 0; i < f->lists && err == NPS_OK; i++) err = find_rules(comm, spec, f, i, source, select);
  nps_select_free(select);
  nps_source_free(source);
  return err;
}

int64_t nps_rest_kept(const nps_factors_t *f, int list) {
  const nps_rest_rule_t *rules = f->rules + (int64_t)list * f->tensors;
  int64_t kept = 0;
  if (f->scope == NPS_SCOPE_MODEL) return f->tensors > 0 ? rules[0].keep : 0;
  for (int t = 0; t < f->tensors; t++)
    if (is_rest(f, t)) kept += rules[t].keep;
  return kept;
}

/* ---- applying it ---- */

/* x ← fl32(fl32(weight)·x) where it is kept, else 0. */
static void prune(const nps_rest_rule_t *rule, int tensor, int64_t first, int64_t n, double weight, float *x) {
  const float by = (float)weight;
  int64_t with_ties = n; /* entries up to the last tie that is kept */
  if (tensor > rule->last_tensor) with_ties = 0;
  if (tensor == rule->last_tensor) with_ties = nps_max64(0, nps_min64(n, rule->last_index + 1 - first));
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = nps_magnitude_bits(x[i]);
    const bool kept = rule->keep > 0 && (bits > rule->threshold || (bits == rule->threshold && i < with_ties));
    x[i] = kept ? by * x[i] : 0;
  }
}

static void update_of_sum(const nps_factors_t *f, const nps_weighting_t *w, const nps_rest_rule_t *rule, int tensor,
                          int64_t first, int64_t n, float *const *tau, double *out) {
  float x[NPS_CHUNK];
  memset(out, 0, (size_t)n * sizeof *out);
  for (int m = 0; m < f->models; m++)
    for (int64_t i = 0; i < n; i++) out[i] += f->lambda[m] * (double)tau[m][i];
  narrow(f, out, n, x);
  prune(rule, tensor, first, n, w->rest[0], x);
  for (int64_t i = 0; i < n; i++) out[i] = x[i];
}

void nps_rest_update(const nps_factors_t *f, const nps_weighting_t *w, int first_list, int tensor, int64_t first,
                     int64_t n, float *const *tau, double *out) {
  if (f->sum) {
    update_of_sum(f, w, &f->rules[tensor], tensor, first, n, tau, out);
    return;
  }
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0)
      prune(&f->rules[(int64_t)(first_list + i) * f->tensors + tensor], tensor, first, n, w->rest[i], tau[i]);
  nps_fuse(w->models, (const float *const *)tau, w->lambda, w->normalize, n, out);
}
