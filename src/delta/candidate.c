/* Candidates in memory: which entries of every model are kept, found exactly from the histograms of the subspaces, or which
 * singular triples, and the weights that come of it. */
#include "radix.h"
#include "store.h"

#include "nps/factors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bits of a score that no finite entry exceeds. */
#define MOST_BITS 0x7f800000u

/* Bins of the histogram that a score is sought with. */
enum { SEEK_BITS = 16, SEEK_BINS = 1 << SEEK_BITS };

/* Which entries of a model (scope tensor: of one tensor of it) are kept: those whose score exceeds the threshold, and those
 * that equal it up to a position. */
typedef struct {
  bool known;
  double density;     /* what the rule was made for, with the row of priorities */
  bool nothing;       /* no entry is kept */
  uint32_t threshold; /* bits of the score */
  int last_tensor;    /* where the last entry at the threshold lies that is kept */
  int64_t last_index;
} rule_t;

struct nps_candidate {
  const nps_store_t *store;
  const nps_subspaces_t *subspaces;
  bool round;
  float *weights;   /* [elements] tensor after tensor */
  int64_t *offset;  /* [tensors] */
  rule_t *rules;    /* [models][rows] */
  double *priority; /* [models][subspaces] that the rules were made for */
  float *q;         /* [models][NPS_CHUNK] */
  float **rows;     /* [models] into q */
  int64_t *seek;    /* [SEEK_BINS] */

  const nps_factors_t *factors; /* partition singular; else NULL */
  nps_taking_t *taking;
  nps_assembly_t *assembly;
  nps_err_t err; /* of reading factors back */
};

/* ---- bounds on the threshold from the histograms ---- */

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* The least magnitude, as bits, whose score under a priority is at least t. */
static uint32_t least_magnitude(float priority, uint32_t t) {
  if (t == 0) return 0;
  if (priority == 0) return MOST_BITS;
  const float score = float_of(t);
  uint32_t u = nps_magnitude_bits((float)((double)score / (double)priority));
  if (u > MOST_BITS) u = MOST_BITS;
  while (u > 0 && priority * float_of(u - 1) >= score) u--;
  while (u < MOST_BITS && priority * float_of(u) < score) u++;
  return u;
}

/* Bounds on how many entries of subspace m have a magnitude of at least u. */
static void bound_count(const nps_subspaces_t *s, int model, int m, uint32_t u, int64_t *least, int64_t *most) {
  const int64_t *below = s->below + (int64_t)model * s->subspaces;
  const int64_t *cumulative = s->cumulative + (int64_t)model * (NPS_HIGH_BINS + 1);
  const float *thresholds = nps_subspaces_thresholds(s, model, 0);
  const int64_t first = below[m], end = m + 1 < s->subspaces ? below[m + 1] : nps_store_elements(s->store);
  const uint32_t bin = u >> NPS_LOW_BITS;
  int64_t low = cumulative[bin], high = u % NPS_LOW_BINS ? cumulative[bin + 1] : low; /* entries below u */
  if (m > 0 && u <= nps_magnitude_bits(thresholds[m - 1])) low = high = first;
  if (m + 1 < s->subspaces && u >= nps_magnitude_bits(thresholds[m])) low = high = end;
  if (low < first) low = first;
  if (high < first) high = first;
  if (low > end) low = end;
  if (high > end) high = end;
  *least += end - high;
  *most += end - low;
}

/* Bounds on how many entries have a score of at least t. */
static void bound_kept(const nps_subspaces_t *s, int model, const double *priority, uint32_t t, int64_t *least,
                       int64_t *most) {
  *least = *most = 0;
  for (int m = 0; m < s->subspaces; m++) bound_count(s, model, m, least_magnitude((float)priority[m], t), least, most);
}

/* The largest t with at least `keep` entries by one of the bounds. */
static uint32_t bisect(const nps_subspaces_t *s, int model, const double *priority, int64_t keep, bool by_most) {
  uint32_t good = 0, bad = MOST_BITS + 1;
  while (bad - good > 1) {
    const uint32_t middle = good + (bad - good) / 2;
    int64_t least, most;
    bound_kept(s, model, priority, middle, &least, &most);
    if ((by_most ? most : least) >= keep)
      good = middle;
    else
      bad = middle;
  }
  return good;
}

/* ---- looking at the scores ---- */

static void score_chunk(const nps_candidate_t *c, int model, int tensor, const double *weight, const double *priority,
                        int64_t first, int64_t n, float *value, float *score) {
  float tau[NPS_CHUNK];
  const nps_subspaces_t *s = c->subspaces;
  nps_store_tau(c->store, model, tensor, first, n, tau);
  nps_subspace_apply(nps_subspaces_thresholds(s, model, tensor), s->subspaces, weight, priority, tau, n, value, score);
}

/* Marks scores whose bits lie in [low, high]. @return how many lie above */
NPS_VECTOR_CLONES
static int64_t mark_between(const float *score, int64_t n, uint32_t low, uint32_t high, uint8_t *mark) {
  uint32_t above = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &score[i], sizeof bits);
    mark[i] = (bits >= low) & (bits <= high);
    above += bits > high;
  }
  return above;
}

/* Counts the scores in [low, high] by their bits >> shift. @return how many lie above */
static int64_t seek_chunk(nps_candidate_t *c, const float *score, int64_t n, uint32_t low, uint32_t high, int shift) {
  uint8_t mark[NPS_CHUNK + 8];
  const int64_t above = mark_between(score, n, low, high, mark);
  memset(mark + n, 0, 8);
  for (int64_t at = 0; at < n; at += 8) {
    uint64_t eight;
    memcpy(&eight, mark + at, sizeof eight);
    for (; eight; eight &= eight - 1)
      c->seek[(nps_magnitude_bits(score[at + __builtin_ctzll(eight) / 8]) - low) >> shift]++;
  }
  return above;
}

/* Looks at all scores of the tensors [first, end). @return how many lie above `high` */
static int64_t seek(nps_candidate_t *c, int model, const double *priority, int first, int end, uint32_t low,
                    uint32_t high, int shift) {
  float score[NPS_CHUNK];
  int64_t above = 0;
  memset(c->seek, 0, SEEK_BINS * sizeof *c->seek);
  for (int t = first; t < end; t++) {
    const int64_t count = nps_store_count(c->store, t);
    for (int64_t at = 0; at < count; at += NPS_CHUNK) {
      const int64_t n = count - at < NPS_CHUNK ? count - at : NPS_CHUNK;
      score_chunk(c, model, t, NULL, priority, at, n, NULL, score);
      above += seek_chunk(c, score, n, low, high, shift);
    }
  }
  return above;
}

/* Finds the score of the last entry kept, which lies in [low, high]; few looks are needed, mostly one.
 * @param[out] kept   entries at it that are kept
 * @param[out] equal  entries at it */
static uint32_t find_threshold(nps_candidate_t *c, int model, const double *priority, int first, int end, int64_t keep,
                               uint32_t low, uint32_t high, int64_t *kept, int64_t *equal) {
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >= SEEK_BINS) shift++;
    int64_t above = seek(c, model, priority, first, end, low, high, shift);
    uint32_t bin = (high - low) >> shift;
    while (bin > 0 && above + c->seek[bin] < keep) above += c->seek[bin--];
    *kept = keep - above;
    *equal = c->seek[bin];
    low += bin << shift;
    if (shift == 0) return low;
    const uint32_t last = low + (((uint32_t)1 << shift) - 1);
    if (last < high) high = last;
  }
}

/* Finds the `wanted`-th entry whose score is the threshold, of the tensors [first, end). */
static void find_last(const nps_candidate_t *c, int model, const double *priority, int first, int end, int64_t wanted,
                      rule_t *rule) {
  float score[NPS_CHUNK];
  for (int t = first; t < end; t++) {
    const int64_t count = nps_store_count(c->store, t);
    for (int64_t at = 0; at < count; at += NPS_CHUNK) {
      const int64_t n = count - at < NPS_CHUNK ? count - at : NPS_CHUNK;
      score_chunk(c, model, t, NULL, priority, at, n, NULL, score);
      for (int64_t i = 0; i < n; i++) {
        if (nps_magnitude_bits(score[i]) != rule->threshold || --wanted > 0) continue;
        rule->last_tensor = t;
        rule->last_index = at + i;
        return;
      }
    }
  }
}

/* Makes the rule for the tensors [first, end) of a model. */
static void make_rule(nps_candidate_t *c, int model, const double *priority, double density, int first, int end,
                      rule_t *rule) {
  int64_t entries = 0, kept = 0, equal = 0;
  for (int t = first; t < end; t++) entries += nps_store_count(c->store, t);
  const int64_t keep = (int64_t)floor(density * (double)entries);
  *rule = (rule_t){.known = true, .density = density, .nothing = keep == 0, .last_tensor = end};
  if (keep == 0 || keep >= entries) return; /* threshold 0: all are kept */
  uint32_t low = 0, high = MOST_BITS;
  if (c->subspaces->scope == NPS_SCOPE_MODEL) {
    low = bisect(c->subspaces, model, priority, keep, false);
    high = bisect(c->subspaces, model, priority, keep, true);
  }
  rule->threshold = find_threshold(c, model, priority, first, end, keep, low, high, &kept, &equal);
  if (kept < equal) find_last(c, model, priority, first, end, kept, rule);
}

/* Brings the rules of a model up to date; those of the same priorities and density are there already. */
static void make_rules(nps_candidate_t *c, const nps_weighting_t *w, int model) {
  const nps_subspaces_t *s = c->subspaces;
  const size_t row_bytes = (size_t)s->subspaces * sizeof(double);
  const double *priority = w->priority + (int64_t)model * s->subspaces;
  double *made_for = c->priority + (int64_t)model * s->subspaces;
  rule_t *rules = c->rules + (int64_t)model * s->rows;
  if (rules[0].known && rules[0].density == w->density[model] && memcmp(made_for, priority, row_bytes) == 0) return;
  memcpy(made_for, priority, row_bytes);
  const int tensors = nps_store_tensors(c->store);
  if (s->scope == NPS_SCOPE_MODEL) {
    make_rule(c, model, priority, w->density[model], 0, tensors, &rules[0]);
    return;
  }
  for (int t = 0; t < tensors; t++) make_rule(c, model, priority, w->density[model], t, t + 1, &rules[t]);
}

/* ---- building ---- */

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
static void make_q(const nps_candidate_t *c, const nps_weighting_t *w, int model, int tensor, int64_t first, int64_t n,
                   float *q) {
  const nps_subspaces_t *s = c->subspaces;
  const rule_t *rule = &c->rules[(int64_t)model * s->rows + (s->scope == NPS_SCOPE_TENSOR ? tensor : 0)];
  float score[NPS_CHUNK];
  if (rule->nothing) {
    memset(q, 0, (size_t)n * sizeof *q);
    return;
  }
  score_chunk(c, model, tensor, w->weight + (int64_t)model * s->subspaces, w->priority + (int64_t)model * s->subspaces,
              first, n, q, score);
  int64_t with_ties = n; /* entries up to the last tie that is kept */
  if (tensor > rule->last_tensor) with_ties = 0;
  if (tensor == rule->last_tensor) with_ties = rule->last_index + 1 - first;
  with_ties = with_ties < 0 ? 0 : with_ties > n ? n : with_ties;
  keep_from(score, rule->threshold, with_ties, q);
  keep_from(score + with_ties, rule->threshold + 1, n - with_ties, q + with_ties);
}

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

/* Puts a chunk's update on top of the base. @param[in,out] sum  [n] */
static void put_chunk(nps_candidate_t *c, int tensor, int64_t first, int64_t n, double *sum) {
  double base[NPS_CHUNK];
  nps_tensor_widen(nps_store_dtype(c->store, -1, tensor), nps_store_raw(c->store, -1, tensor, first), n, base);
  add_base(base, n, sum);
  round_values(c, tensor, sum, n, c->weights + c->offset[tensor] + first);
}

static void build_chunk(nps_candidate_t *c, const nps_weighting_t *w, int tensor, int64_t first, int64_t n) {
  double sum[NPS_CHUNK];
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0) make_q(c, w, i, tensor, first, n, c->rows[i]);
  nps_fuse(w->models, (const float *const *)c->rows, w->lambda, w->normalize, n, sum);
  put_chunk(c, tensor, first, n, sum);
}

static void build_entries(nps_candidate_t *c, const nps_weighting_t *w) {
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0) make_rules(c, w, i);
  for (int t = 0; t < nps_store_tensors(c->store); t++) {
    const int64_t count = nps_store_count(c->store, t);
    for (int64_t first = 0; first < count; first += NPS_CHUNK)
      build_chunk(c, w, t, first, count - first < NPS_CHUNK ? count - first : NPS_CHUNK);
  }
}

/* ---- building from singular triples ---- */

static void build_rest_chunk(nps_candidate_t *c, const nps_weighting_t *w, int tensor, int64_t first, int64_t n) {
  double update[NPS_CHUNK];
  for (int i = 0; i < w->models; i++) nps_store_tau(c->store, i, tensor, first, n, c->rows[i]);
  nps_rest_update(c->factors, w, 0, tensor, first, n, c->rows, update);
  put_chunk(c, tensor, first, n, update);
}

/* @param update  of the matrix; NULL: a tensor of the rest */
static void build_tensor(nps_candidate_t *c, const nps_weighting_t *w, int tensor, const float *update) {
  const int64_t count = nps_store_count(c->store, tensor);
  double sum[NPS_CHUNK];
  for (int64_t first = 0; first < count; first += NPS_CHUNK) {
    const int64_t n = count - first < NPS_CHUNK ? count - first : NPS_CHUNK;
    if (!update) {
      build_rest_chunk(c, w, tensor, first, n);
      continue;
    }
    for (int64_t i = 0; i < n; i++) sum[i] = update[first + i];
    put_chunk(c, tensor, first, n, sum);
  }
}

static nps_err_t build_triples(nps_candidate_t *c, const nps_weighting_t *w) {
  nps_taking_make(c->taking, w, 0);
  for (int t = 0; t < nps_store_tensors(c->store); t++) {
    const int matrix = nps_factors_matrix(c->factors, t);
    const float *update = NULL;
    if (matrix >= 0) NPS_TRY(nps_assembly_matrix(c->assembly, c->taking, w, 0, matrix, &update));
    build_tensor(c, w, t, update);
  }
  return NPS_OK;
}

static bool has_result(const nps_weighting_t *w) {
  double total = 0;
  for (int i = 0; i < w->models; i++) total += w->lambda[i];
  return w->normalize != NPS_NORMALIZE_SUM || fabs(total) >= NPS_TINY_LAMBDA;
}

bool nps_candidate_build(nps_candidate_t *c, const nps_weighting_t *w) {
  if (!has_result(w)) return false;
  if (!c->factors)
    build_entries(c, w);
  else if ((c->err = nps_err_worse(c->err, build_triples(c, w))) != NPS_OK)
    return false;
  return nps_tensor_find_nonfinite(NPS_F32, c->weights, nps_store_elements(c->store)) < 0;
}

nps_err_t nps_candidate_error(const nps_candidate_t *c) { return c->err; }

void nps_candidate_take(nps_candidate_t *c, int model) {
  for (int t = 0; t < nps_store_tensors(c->store); t++) {
    const nps_dtype_t dtype = nps_store_dtype(c->store, model, t);
    const int64_t count = nps_store_count(c->store, t);
    float *out = c->weights + c->offset[t];
    if (dtype != NPS_F64) {
      nps_tensor_widen_f32(dtype, nps_store_raw(c->store, model, t, 0), count, out);
      continue;
    }
    narrow_plainly(nps_store_raw(c->store, model, t, 0), count, out);
  }
}

const float *nps_candidate_tensor(const nps_candidate_t *c, int tensor) { return c->weights + c->offset[tensor]; }

/* ---- set-up ---- */

int64_t nps_candidate_bytes(const nps_layout_t *layout) {
  int64_t elements = 0;
  for (int t = 0; t < layout->count; t++)
    if (layout->targets[t].action == NPS_ACTION_MERGE) elements += layout->targets[t].count;
  return elements * (int64_t)sizeof(float) + (int64_t)(SEEK_BINS * sizeof(int64_t));
}

static void make_entry_room(nps_candidate_t *c, size_t models) {
  c->rules = nps_xcalloc(models * (size_t)c->subspaces->rows, sizeof *c->rules);
  c->priority = nps_xcalloc(models * (size_t)c->subspaces->subspaces, sizeof *c->priority);
  c->seek = nps_xcalloc(SEEK_BINS, sizeof *c->seek);
}

nps_err_t nps_candidate_new(const nps_store_t *store, const nps_subspaces_t *subspaces, const nps_factors_t *factors,
                            bool round, nps_candidate_t **out) {
  const size_t models = (size_t)nps_store_models(store);
  nps_candidate_t *c = nps_xcalloc(1, sizeof *c);
  int64_t at = 0;
  c->store = store;
  c->subspaces = subspaces;
  c->factors = factors;
  c->round = round;
  c->offset = nps_xcalloc((size_t)nps_store_tensors(store), sizeof *c->offset);
  for (int t = 0; t < nps_store_tensors(store); t++) {
    c->offset[t] = at;
    at += nps_store_count(store, t);
  }
  if (!factors) make_entry_room(c, models);
  c->q = nps_xcalloc(models * NPS_CHUNK, sizeof *c->q);
  c->rows = nps_xcalloc(models, sizeof *c->rows);
  for (size_t i = 0; i < models; i++) c->rows[i] = c->q + i * NPS_CHUNK;
  nps_err_t err = nps_buffer_alloc((size_t)at * sizeof(float), "a candidate's weights", &c->weights);
  if (factors) c->taking = nps_taking_new(factors);
  if (factors && err == NPS_OK) err = nps_assembly_new(factors, &c->assembly);
  if (err == NPS_OK)
    *out = c;
  else
    nps_candidate_free(c);
  return err;
}

void nps_candidate_free(nps_candidate_t *c) {
  if (!c) return;
  free(c->weights);
  free(c->offset);
  free(c->rules);
  free(c->priority);
  free(c->q);
  free(c->rows);
  free(c->seek);
  nps_taking_free(c->taking);
  nps_assembly_free(c->assembly);
  free(c);
}
