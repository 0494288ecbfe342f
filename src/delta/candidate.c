/* Candidates: the weights that come of the entries that are kept, or of singular triples. */
#include "radix.h"
#include "store.h"

#include "nps/factors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct nps_candidate {
  const nps_store_t *store;
  const nps_subspaces_t *subspaces;
  const nps_rules_t *rules;
  bool round;
  int value_bits;                   /* 0: updates are not quantised */
  const nps_weighting_t *weighting; /* NULL: a stored model */
  int model;                        /* which */
  bool shaken;
  nps_shake_t shake;
  const nps_rule_t **rule; /* [models] of the weighting */
  float *q;                /* [models][NPS_CHUNK] */
  float **rows;            /* [models] into q */

  const nps_factors_t *factors; /* partition singular; else NULL */
  nps_taking_t *taking;
  nps_assembly_t *assembly;
  int matrix;          /* whose update is assembled; -1: none */
  const float *update; /* of it */
  nps_err_t err;       /* of reading factors back */
};

/* ---- entries ---- */

/* Sets to zero the values whose score is below a bound. */
NPS_VECTOR_CLONES
static void keep_from(const float *score, uint32_t least, int64_t n, float *value) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &score[i], sizeof bits);
    value[i] = bits >= least ? value[i] : 0.0f;
  }
}

/* q of a chunk: weighed values of the entries that are kept. */
static void make_q(const nps_candidate_t *c, int model, int tensor, int64_t first, int64_t n, float *q) {
  const nps_subspaces_t *s = c->subspaces;
  const nps_weighting_t *w = c->weighting;
  const nps_rule_t *rule = &c->rule[model][s->scope == NPS_SCOPE_TENSOR ? tensor : 0];
  const int64_t row = (int64_t)model * s->subspaces;
  float tau[NPS_CHUNK], score[NPS_CHUNK];
  if (rule->nothing) {
    memset(q, 0, (size_t)n * sizeof *q);
    return;
  }
  nps_store_tau(c->store, model, tensor, first, n, tau);
  nps_subspace_apply(nps_subspaces_thresholds(s, model, tensor), s->subspaces, w->weight + row, w->priority + row, tau,
                     n, q, score);
  int64_t with_ties = n; /* entries up to the last tie that is kept */
  if (tensor > rule->last_tensor) with_ties = 0;
  if (tensor == rule->last_tensor) with_ties = rule->last_index + 1 - first;
  with_ties = with_ties < 0 ? 0 : with_ties > n ? n : with_ties;
  keep_from(score, rule->threshold, with_ties, q);
  keep_from(score + with_ties, rule->threshold + 1, n - with_ties, q + with_ties);
}

static void update_of_entries(const nps_candidate_t *c, int tensor, int64_t first, int64_t n, double *update) {
  const nps_weighting_t *w = c->weighting;
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0) make_q(c, i, tensor, first, n, c->rows[i]);
  nps_fuse(w->models, (const float *const *)c->rows, w->lambda, w->normalize, n, update);
}

/* ---- singular triples ---- */

static void update_of_rest(const nps_candidate_t *c, int tensor, int64_t first, int64_t n, double *update) {
  for (int i = 0; i < c->weighting->models; i++) nps_store_tau(c->store, i, tensor, first, n, c->rows[i]);
  nps_rest_update(c->factors, c->weighting, 0, tensor, first, n, c->rows, update);
}

static bool assemble(nps_candidate_t *c, int matrix) {
  if (matrix < 0 || c->matrix == matrix) return true;
  c->matrix = -1;
  c->err = nps_err_worse(c->err, nps_assembly_matrix(c->assembly, c->taking, c->weighting, 0, matrix, &c->update));
  if (c->err == NPS_OK) c->matrix = matrix;
  return c->err == NPS_OK;
}

/* ---- values ---- */

NPS_VECTOR_CLONES
static void add_base(const double *base, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) out[i] = base[i] + out[i];
}

NPS_VECTOR_CLONES
static void narrow_plainly(const double *x, int64_t n, float *out) {
  for (int64_t i = 0; i < n; i++) out[i] = (float)x[i];
}

/* Rounds as the output will be. */
static void round_values(const nps_candidate_t *c, int tensor, const double *x, int64_t n, float *out) {
  const nps_dtype_t dtype = c->store->targets[tensor]->dtype;
  uint16_t stored[NPS_CHUNK];
  if (!c->round || dtype == NPS_F32 || dtype == NPS_F64) {
    narrow_plainly(x, n, out);
    return;
  }
  nps_tensor_narrow(x, n, dtype, stored);
  nps_tensor_widen_f32(dtype, stored, n, out);
}

/* The update as an archive stores it. @param[in,out] sum  [n] entries that share a scale */
static void quantise(int bits, int64_t n, double *sum) {
  float x[NPS_CHUNK];
  int16_t codes[NPS_CHUNK];
  narrow_plainly(sum, n, x);
  const float scale = nps_quantise(x, n, bits, codes);
  nps_dequantise(scale, codes, n, x);
  nps_tensor_widen(NPS_F32, x, n, sum);
}

/* Whether the update is that of a matrix, assembled and rounded already. */
static bool is_matrix(const nps_candidate_t *c, int tensor) {
  return c->factors && nps_factors_matrix(c->factors, tensor) >= 0;
}

static void make_update(const nps_candidate_t *c, int tensor, int64_t first, int64_t n, double *update) {
  if (!c->factors)
    update_of_entries(c, tensor, first, n, update);
  else if (!is_matrix(c, tensor))
    update_of_rest(c, tensor, first, n, update);
  else
    for (int64_t i = 0; i < n; i++) update[i] = c->update[first + i];
}

/* Puts a chunk's update on top of the base. */
static void make_chunk(const nps_candidate_t *c, int tensor, int64_t first, int64_t n, float *out) {
  double base[NPS_CHUNK], sum[NPS_CHUNK];
  make_update(c, tensor, first, n, sum);
  if (c->value_bits && !is_matrix(c, tensor)) quantise(c->value_bits, n, sum);
  nps_tensor_widen(nps_store_dtype(c->store, -1, tensor), nps_store_raw(c->store, -1, tensor, first), n, base);
  add_base(base, n, sum);
  round_values(c, tensor, sum, n, out);
}

static void take_values(const nps_candidate_t *c, int tensor, int64_t first, int64_t count, float *out) {
  const nps_dtype_t dtype = nps_store_dtype(c->store, c->model, tensor);
  const void *raw = nps_store_raw(c->store, c->model, tensor, first);
  if (dtype == NPS_F64)
    narrow_plainly(raw, count, out);
  else
    nps_tensor_widen_f32(dtype, raw, count, out);
}

/* Entries that share a scale are made together, whichever of them are wanted. */
static void make_quantised(const nps_candidate_t *c, int tensor, int64_t first, int64_t count, float *out) {
  const int64_t end = first + count;
  float unit[NPS_CHUNK];
  for (int64_t at = first; at < end;) {
    const int64_t begin = at / NPS_CHUNK * NPS_CHUNK;
    const int64_t size = nps_min64(nps_store_count(c->store, tensor) - begin, NPS_CHUNK);
    const int64_t n = nps_min64(end, begin + size) - at;
    make_chunk(c, tensor, begin, size, unit);
    memcpy(out + (at - first), unit + (at - begin), (size_t)n * sizeof *out);
    at += n;
  }
}

bool nps_candidate_make(nps_candidate_t *c, int tensor, int64_t first, int64_t count, float *out) {
  if (!c->weighting) {
    take_values(c, tensor, first, count, out);
    return true;
  }
  if (c->factors && !assemble(c, nps_factors_matrix(c->factors, tensor))) return false;
  if (c->value_bits)
    make_quantised(c, tensor, first, count, out);
  else
    for (int64_t at = 0; at < count; at += NPS_CHUNK)
      make_chunk(c, tensor, first + at, nps_min64(count - at, NPS_CHUNK), out + at);
  if (c->shaken) nps_shake(&c->shake, nps_store_name(c->store, tensor), first, count, out);
  return nps_tensor_find_nonfinite(NPS_F32, out, count) < 0;
}

nps_dtype_t nps_candidate_dtype(const nps_candidate_t *c, int tensor) {
  const nps_dtype_t stored =
      c->weighting ? c->store->targets[tensor]->dtype : nps_store_dtype(c->store, c->model, tensor);
  const bool is_exact = !c->weighting || (c->round && !c->shaken);
  return is_exact && nps_dtype_size(stored) == 2 ? stored : NPS_F32;
}

bool nps_weighting_has_result(const nps_weighting_t *w) {
  double total = 0;
  for (int i = 0; i < w->models; i++) total += w->lambda[i];
  return w->normalize != NPS_NORMALIZE_SUM || fabs(total) >= NPS_TINY_LAMBDA;
}

void nps_candidate_set(nps_candidate_t *c, const nps_weighting_t *w) {
  c->weighting = w;
  c->shaken = false;
  c->matrix = -1;
  if (c->factors) {
    nps_taking_make(c->taking, w, 0);
    return;
  }
  for (int i = 0; i < w->models; i++) c->rule[i] = w->lambda[i] != 0 ? nps_rules_of(c->rules, w, i) : NULL;
}

void nps_candidate_take(nps_candidate_t *c, int model) {
  c->weighting = NULL;
  c->model = model;
}

void nps_candidate_shake(nps_candidate_t *c, const nps_shake_t *shake) {
  c->shake = *shake;
  c->shaken = true;
}

nps_err_t nps_candidate_error(const nps_candidate_t *c) { return c->err; }

/* ---- set-up ---- */

nps_err_t nps_candidate_new(const nps_store_t *store, const nps_subspaces_t *subspaces, const nps_rules_t *rules,
                            const nps_factors_t *factors, bool round, int value_bits, nps_candidate_t **out) {
  const size_t models = (size_t)nps_store_models(store);
  nps_candidate_t *c = nps_xcalloc(1, sizeof *c);
  nps_err_t err = NPS_OK;
  *c = (nps_candidate_t){.store = store,
                         .subspaces = subspaces,
                         .rules = rules,
                         .round = round,
                         .value_bits = value_bits,
                         .model = -1,
                         .factors = factors,
                         .matrix = -1};
  c->rule = nps_xcalloc(models, sizeof *c->rule);
  c->q = nps_xcalloc(models * NPS_CHUNK, sizeof *c->q);
  c->rows = nps_xcalloc(models, sizeof *c->rows);
  for (size_t i = 0; i < models; i++) c->rows[i] = c->q + i * NPS_CHUNK;
  if (factors) c->taking = nps_taking_new(factors);
  if (factors) err = nps_assembly_new(factors, value_bits, &c->assembly);
  if (err == NPS_OK)
    *out = c;
  else
    nps_candidate_free(c);
  return err;
}

void nps_candidate_free(nps_candidate_t *c) {
  if (!c) return;
  free(c->rule);
  free(c->q);
  free(c->rows);
  nps_taking_free(c->taking);
  nps_assembly_free(c->assembly);
  free(c);
}
