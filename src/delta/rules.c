/* Which entries of every model are kept, found exactly from the histograms of the subspaces and a look or two at the data. */
#include "radix.h"
#include "store.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bits of a score that no finite entry exceeds. */
#define MOST_BITS 0x7f800000u

/* Bins of the histogram that a score is sought with; behind them what lies above. */
enum { SEEK_BITS = 16, SEEK_BINS = 1 << SEEK_BITS };

/* The rules of one model, and what they were made for. */
typedef struct {
  int model;
  double density;
  double *priority; /* [subspaces] */
  nps_rule_t *rule; /* [rows]; NULL: to be found */
  bool wanted;
} entry_t;

struct nps_rules {
  const nps_comm_t *all, *copy;
  const nps_store_t *store;
  const nps_subspaces_t *subspaces;
  entry_t *entries; /* [count] */
  int count;
  int64_t *seek; /* [SEEK_BINS + 1] */
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

/* What is looked at: the tensors [first, end) of a model, by the ranks of a communicator. */
typedef struct {
  nps_rules_t *rules;
  const nps_comm_t *comm; /* NULL: this rank has them all */
  int model, first, end;
  const double *priority;
} look_t;

static void add_up(const look_t *l, int64_t *x, int64_t n) {
  if (l->comm && nps_comm_size(l->comm) > 1) nps_comm_sum_i64(l->comm, x, n);
}

/* Scores a chunk of at most NPS_CHUNK entries. */
static void score_chunk(const look_t *l, int tensor, int64_t first, int64_t n, float *score) {
  float tau[NPS_CHUNK];
  const nps_subspaces_t *s = l->rules->subspaces;
  nps_store_tau(l->rules->store, l->model, tensor, first, n, tau);
  nps_subspace_apply(nps_subspaces_thresholds(s, l->model, tensor), s->subspaces, NULL, l->priority, tau, n, NULL,
                     score);
}

typedef void scores_fn(void *ctx, int tensor, int64_t first, const float *score, int64_t n);

static void walk_tensor(const look_t *l, int tensor, scores_fn *each, void *ctx) {
  const int64_t count = nps_store_count(l->rules->store, tensor);
  float score[NPS_CHUNK];
  for (int64_t at = 0; at < count; at += NPS_CHUNK) {
    const int64_t n = nps_min64(count - at, NPS_CHUNK);
    score_chunk(l, tensor, at, n, score);
    each(ctx, tensor, at, score, n);
  }
}

/* Calls a function for every chunk that this rank counts. */
static void walk(const look_t *l, scores_fn *each, void *ctx) {
  for (int t = l->first; t < l->end; t++)
    if (nps_store_counts(l->rules->store, t)) walk_tensor(l, t, each, ctx);
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

typedef struct {
  int64_t *bins, *above;
  uint32_t low, high;
  int shift;
} seeking_t;

/* Counts the scores in [low, high] by their bits >> shift, and those above. */
static void seek_chunk(void *ctx, int tensor, int64_t first, const float *score, int64_t n) {
  const seeking_t *s = ctx;
  uint8_t mark[NPS_CHUNK + 8];
  (void)tensor, (void)first;
  *s->above += mark_between(score, n, s->low, s->high, mark);
  memset(mark + n, 0, 8);
  for (int64_t at = 0; at < n; at += 8) {
    uint64_t eight;
    memcpy(&eight, mark + at, sizeof eight);
    for (; eight; eight &= eight - 1)
      s->bins[(nps_magnitude_bits(score[at + __builtin_ctzll(eight) / 8]) - s->low) >> s->shift]++;
  }
}

/* Looks at all scores. @return how many lie above `high` */
static int64_t seek(const look_t *l, uint32_t low, uint32_t high, int shift) {
  int64_t *bins = l->rules->seek;
  const int64_t used = ((high - low) >> shift) + 1;
  seeking_t s = {bins, bins + used, low, high, shift};
  memset(bins, 0, (size_t)(used + 1) * sizeof *bins);
  walk(l, seek_chunk, &s);
  add_up(l, bins, used + 1);
  return bins[used];
}

/* Finds the score of the last entry kept, which lies in [low, high]; few looks are needed, mostly one.
 * @param[out] kept   entries at it that are kept
 * @param[out] equal  entries at it */
static uint32_t find_threshold(const look_t *l, int64_t keep, uint32_t low, uint32_t high, int64_t *kept,
                               int64_t *equal) {
  const int64_t *bins = l->rules->seek;
  for (;;) {
    int shift = 0;
    while ((high - low) >> shift >= SEEK_BINS) shift++;
    int64_t above = seek(l, low, high, shift);
    uint32_t bin = (high - low) >> shift;
    while (bin > 0 && above + bins[bin] < keep) above += bins[bin--];
    *kept = keep - above;
    *equal = bins[bin];
    low += bin << shift;
    if (shift == 0) return low;
    const uint32_t last = low + (((uint32_t)1 << shift) - 1);
    if (last < high) high = last;
  }
}

/* ---- ties ---- */

typedef struct {
  uint32_t threshold;
  int64_t *ties;  /* [tensors looked at] */
  int first;      /* of them */
  int64_t wanted; /* the tie that is sought, from 1 */
  int64_t found;  /* its index */
} tying_t;

static void count_ties(void *ctx, int tensor, int64_t first, const float *score, int64_t n) {
  const tying_t *t = ctx;
  int64_t ties = 0;
  (void)first;
  for (int64_t i = 0; i < n; i++) ties += nps_magnitude_bits(score[i]) == t->threshold;
  t->ties[tensor - t->first] += ties;
}

static void find_tie(void *ctx, int tensor, int64_t first, const float *score, int64_t n) {
  tying_t *t = ctx;
  (void)tensor;
  for (int64_t i = 0; i < n && t->wanted > 0; i++)
    if (nps_magnitude_bits(score[i]) == t->threshold && --t->wanted == 0) t->found = first + i;
}

/* Finds the `wanted`-th entry whose score is the threshold. */
static void find_last(const look_t *l, int64_t wanted, nps_rule_t *rule) {
  const int tensors = l->end - l->first;
  tying_t t = {.threshold = rule->threshold, .first = l->first, .wanted = wanted};
  t.ties = nps_xcalloc((size_t)tensors, sizeof *t.ties);
  walk(l, count_ties, &t);
  add_up(l, t.ties, tensors);
  int at = 0;
  while (at + 1 < tensors && t.ties[at] < t.wanted) t.wanted -= t.ties[at++];
  rule->last_tensor = l->first + at;
  if (nps_store_counts(l->rules->store, rule->last_tensor)) walk_tensor(l, rule->last_tensor, find_tie, &t);
  add_up(l, &t.found, 1);
  rule->last_index = t.found;
  free(t.ties);
}

/* ---- rules ---- */

static nps_rule_t make_rule(const look_t *l, double density) {
  const nps_subspaces_t *s = l->rules->subspaces;
  int64_t entries = 0, kept = 0, equal = 0;
  for (int t = l->first; t < l->end; t++) entries += nps_store_count(l->rules->store, t);
  const int64_t keep = (int64_t)floor(density * (double)entries);
  nps_rule_t rule = {.nothing = keep == 0, .last_tensor = l->end};
  if (keep == 0 || keep >= entries) return rule; /* threshold 0: all are kept */
  uint32_t low = 0, high = MOST_BITS;
  if (s->scope == NPS_SCOPE_MODEL) {
    low = bisect(s, l->model, l->priority, keep, false);
    high = bisect(s, l->model, l->priority, keep, true);
  }
  rule.threshold = find_threshold(l, keep, low, high, &kept, &equal);
  if (kept < equal) find_last(l, kept, &rule);
  return rule;
}

/* The rules of the tensors that this rank knows of: with scope tensor those that it counts. */
static void make_rules(nps_rules_t *r, const entry_t *e, nps_rule_t *out) {
  look_t look = {.rules = r, .model = e->model, .priority = e->priority, .end = nps_store_tensors(r->store)};
  if (r->subspaces->scope == NPS_SCOPE_MODEL) {
    look.comm = r->copy;
    out[0] = make_rule(&look, e->density);
    return;
  }
  for (int t = 0; t < nps_store_tensors(r->store); t++) {
    if (!nps_store_counts(r->store, t)) continue;
    look.first = t;
    look.end = t + 1;
    out[t] = make_rule(&look, e->density);
  }
}

/* ---- what is known ---- */

nps_rules_t *nps_rules_new(const nps_comm_t *all, const nps_comm_t *copy, const nps_store_t *store,
                           const nps_subspaces_t *subspaces) {
  nps_rules_t *r = nps_xcalloc(1, sizeof *r);
  *r = (nps_rules_t){.all = all, .copy = copy, .store = store, .subspaces = subspaces};
  r->seek = nps_xcalloc(SEEK_BINS + 1, sizeof *r->seek);
  return r;
}

static void drop(entry_t *e) {
  free(e->priority);
  free(e->rule);
}

void nps_rules_free(nps_rules_t *r) {
  if (!r) return;
  for (int i = 0; i < r->count; i++) drop(&r->entries[i]);
  free(r->entries);
  free(r->seek);
  free(r);
}

int64_t nps_rules_bytes(int models, int subspaces) {
  const int64_t histograms = (int64_t)models * (NPS_HIGH_BINS + 1) * (int64_t)sizeof(int64_t);
  return histograms + SEEK_BINS * (int64_t)sizeof(int64_t) + (int64_t)nps_partition_bytes(subspaces);
}

static entry_t *find(const nps_rules_t *r, const nps_weighting_t *w, int model) {
  const double *priority = w->priority + (int64_t)model * w->subspaces;
  for (int i = 0; i < r->count; i++) {
    entry_t *e = &r->entries[i];
    if (e->model == model && e->density == w->density[model] &&
        memcmp(e->priority, priority, (size_t)w->subspaces * sizeof *priority) == 0)
      return e;
  }
  return NULL;
}

const nps_rule_t *nps_rules_of(const nps_rules_t *r, const nps_weighting_t *w, int model) {
  const entry_t *e = find(r, w, model);
  return e ? e->rule : NULL;
}

static void want(nps_rules_t *r, const nps_weighting_t *w, int model) {
  entry_t *e = find(r, w, model);
  if (!e) {
    const size_t bytes = (size_t)w->subspaces * sizeof(double);
    r->entries = nps_xrealloc(r->entries, (size_t)r->count + 1, sizeof *r->entries);
    e = &r->entries[r->count++];
    *e = (entry_t){.model = model, .density = w->density[model], .priority = nps_xcalloc(1, bytes)};
    memcpy(e->priority, w->priority + (int64_t)model * w->subspaces, bytes);
  }
  e->wanted = true;
}

/* Forgets the entries that are not wanted or not known. */
static void forget(nps_rules_t *r, bool unknown) {
  int kept = 0;
  for (int i = 0; i < r->count; i++) {
    if (unknown ? r->entries[i].rule != NULL : r->entries[i].wanted)
      r->entries[kept++] = r->entries[i];
    else
      drop(&r->entries[i]);
  }
  r->count = kept;
}

/* ---- all ranks ---- */

/* Whether this rank is the one that tells others a rule. */
static bool tells(const nps_rules_t *r, int row) {
  return r->subspaces->scope == NPS_SCOPE_TENSOR ? nps_store_counts(r->store, row) : nps_comm_rank(r->copy) == 0;
}

static void pack(const nps_rules_t *r, const nps_rule_t *rule, int64_t (*out)[4]) {
  for (int row = 0; row < r->subspaces->rows; row++) {
    if (!tells(r, row)) continue;
    out[row][0] = rule[row].nothing;
    out[row][1] = rule[row].threshold;
    out[row][2] = rule[row].last_tensor;
    out[row][3] = rule[row].last_index;
  }
}

static nps_rule_t *unpack(const nps_rules_t *r, const int64_t (*in)[4]) {
  nps_rule_t *rule = nps_xcalloc((size_t)r->subspaces->rows, sizeof *rule);
  for (int row = 0; row < r->subspaces->rows; row++)
    rule[row] = (nps_rule_t){in[row][0] != 0, (uint32_t)in[row][1], (int)in[row][2], in[row][3]};
  return rule;
}

static bool is_stopped(const nps_rules_t *r, bool (*stop)(void *ctx), void *ctx) {
  int64_t stopped = stop && stop(ctx);
  nps_comm_sum_i64(r->all, &stopped, 1);
  return stopped > 0;
}

/* One entry for each copy. */
static void find_some(nps_rules_t *r, entry_t *entries, int count) {
  const int rows = r->subspaces->rows, own = r->store->copy;
  int64_t(*told)[4] = nps_xcalloc((size_t)(count * rows), sizeof *told);
  if (own >= 0 && own < count) {
    nps_rule_t *rule = nps_xcalloc((size_t)rows, sizeof *rule);
    make_rules(r, &entries[own], rule);
    pack(r, rule, told + (int64_t)own * rows);
    free(rule);
  }
  nps_comm_sum_i64(r->all, told[0], (int64_t)count * rows * 4); /* one rank's is not zero */
  for (int i = 0; i < count; i++) entries[i].rule = unpack(r, (const int64_t(*)[4])told + (int64_t)i * rows);
  free(told);
}

bool nps_rules_find(nps_rules_t *r, const nps_weighting_t *const *weightings, int count, bool (*stop)(void *ctx),
                    void *ctx) {
  bool stopped = false;
  for (int i = 0; i < r->count; i++) r->entries[i].wanted = false;
  for (int i = 0; i < count; i++)
    for (int model = 0; model < weightings[i]->models; model++)
      if (weightings[i]->lambda[model] != 0) want(r, weightings[i], model);
  forget(r, false);
  int first = 0; /* known ones come first */
  while (first < r->count && r->entries[first].rule) first++;
  while (first < r->count && !(stopped = is_stopped(r, stop, ctx))) {
    const int some = (int)nps_min64(r->count - first, r->store->copies);
    find_some(r, r->entries + first, some);
    first += some;
  }
  forget(r, true);
  return !stopped;
}
