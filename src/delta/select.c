#include "nps/delta.h"
#include "radix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ABOVE_ALL UINT32_MAX

/* Copies of the histogram that are counted in turn, so that equal neighbours do not wait for each other's stores. */
#define COPIES 2

/* Most bins of pass 0 that pass 1 looks into: their magnitudes have as many different bits as there are counters. */
#define BRACKET 4
#define COUNTERS (BRACKET * NPS_LOW_BINS)

/* How many standard deviations of a part's quantile the bracket reaches, when pass 0 sees only a part. */
#define DEVIATIONS 4

struct nps_select {
  int64_t keep;
  int64_t entries;         /* over all ranks, where pass 0 sees a part of them; else 0 */
  uint32_t least;          /* magnitude bits at which the bracket begins, after pass 0 */
  int bins;                /* its width; 0: nothing is kept */
  int64_t above;           /* entries above the bracket */
  bool found, missed;      /* after pass 1 */
  uint32_t threshold;      /* when found */
  int64_t ties;            /* entries at the threshold that are kept, over all ranks */
  int64_t ties_here;       /* of those, what this rank may keep */
  int64_t ties_left;       /* what it may still keep */
  int64_t used;            /* of the counters: the others are 0 */
  int64_t count[COUNTERS]; /* pass 0: COPIES histograms; pass 1: by the bits from `least` on */
};

_Static_assert(COUNTERS == COPIES * NPS_HIGH_BINS, "both passes use the same counters");

nps_select_t *nps_select_new(void) { return nps_xcalloc(1, sizeof(nps_select_t)); }

void nps_select_free(nps_select_t *select) { free(select); }

size_t nps_select_bytes(void) { return sizeof(nps_select_t); }

void nps_select_start(nps_select_t *select, int64_t keep) {
  memset(select->count, 0, (size_t)select->used * sizeof *select->count);
  memset(select, 0, offsetof(nps_select_t, count));
  select->keep = keep;
}

void nps_select_sample(nps_select_t *select, int64_t entries) { select->entries = entries; }

bool nps_select_missed(const nps_select_t *select) { return select->missed; }

/* ---- pass 0: the bins ---- */

NPS_VECTOR_CLONES
void nps_high_bins(const float *x, int64_t n, uint16_t *bin) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    bin[i] = (uint16_t)((bits & NPS_MAGNITUDE) >> NPS_LOW_BITS);
  }
}

static void count_bins(nps_select_t *select, const float *x, int64_t n) {
  uint16_t bin[NPS_CHUNK];
  int64_t *even = select->count, *odd = select->count + NPS_HIGH_BINS;
  int64_t i = 0;
  nps_high_bins(x, n, bin);
  for (; i + 2 <= n; i += 2) {
    even[bin[i]]++;
    odd[bin[i + 1]]++;
  }
  if (i < n) even[bin[i]]++;
}

/* ---- pass 1: the bits within the bracket ---- */

#define LANES 8
#define GROUP 32 /* entries after which it is asked whether one of them needs a closer look */

typedef int32_t lanes_t __attribute__((vector_size(4 * LANES)));

typedef struct {
  int32_t first, width;    /* magnitude bits */
  lanes_t above;           /* entries above it */
  lanes_t starts[BRACKET]; /* entries at the start of its bins */
} bracket_t;

/* Counts a group of entries. @return whether some of them lie within the bracket at no start of a bin */
static inline __attribute__((always_inline)) bool look_at_group(const float *x, const int bins, bracket_t *bracket) {
  lanes_t within = {0};
  for (int i = 0; i < GROUP; i += LANES) {
    lanes_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits = (bits & (int32_t)NPS_MAGNITUDE) - bracket->first;
    const lanes_t above = bits >= bracket->width;
    bracket->above -= above;
    for (int b = 0; b < bins; b++) bracket->starts[b] -= bits == b * NPS_LOW_BINS;
    within |= (bits >= 0) & ~above & ((bits & (NPS_LOW_BINS - 1)) != 0);
  }
  int64_t pair[LANES / 2];
  memcpy(pair, &within, sizeof pair);
  return (pair[0] | pair[1] | pair[2] | pair[3]) != 0;
}

/* Counts by all bits the entries within the bracket that are at no start of a bin. */
static void count_within(nps_select_t *select, const float *x, int64_t n) {
  const uint32_t width = (uint32_t)select->bins * NPS_LOW_BINS;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = nps_magnitude_bits(x[i]) - select->least;
    if (bits < width && bits % NPS_LOW_BINS != 0) select->count[bits]++;
  }
}

static inline __attribute__((always_inline)) void look_at(nps_select_t *select, const float *x, int64_t n,
                                                          const int bins) {
  bracket_t bracket = {.first = (int32_t)select->least, .width = bins * NPS_LOW_BINS};
  for (int64_t at = 0; at < n; at += GROUP)
    if (look_at_group(x + at, bins, &bracket)) count_within(select, x + at, GROUP);
  for (int i = 0; i < LANES; i++) select->above += bracket.above[i];
  for (int b = 0; b < bins; b++)
    for (int i = 0; i < LANES; i++) select->count[b * NPS_LOW_BINS] += bracket.starts[b][i];
}

NPS_VECTOR_CLONES
static void look_at_groups(nps_select_t *select, const float *x, int64_t n) {
  switch (select->bins) {
  case 1:
    look_at(select, x, n, 1);
    break;
  case 2:
    look_at(select, x, n, 2);
    break;
  case 3:
    look_at(select, x, n, 3);
    break;
  default:
    look_at(select, x, n, BRACKET);
  }
}

/* Few entries lie within the bracket, and of differences between bfloat16 values, which seldom need more than the upper
 * bits, most at the start of a bin: these are counted at once, the others one by one. */
static void count_bits(nps_select_t *select, const float *x, int64_t n) {
  const int64_t whole = n / GROUP * GROUP;
  look_at_groups(select, x, whole);
  for (int64_t i = whole; i < n; i++) {
    const uint32_t bits = nps_magnitude_bits(x[i]);
    if (bits < select->least) continue;
    if (bits - select->least < (uint32_t)select->bins * NPS_LOW_BINS)
      select->count[bits - select->least]++;
    else
      select->above++;
  }
}

void nps_select_count(nps_select_t *select, int pass, const float *x, int64_t n) {
  if (select->found || (pass == 1 && select->bins == 0)) return;
  select->used = pass == 0 ? COUNTERS : select->bins * NPS_LOW_BINS;
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    int64_t count = n - at < NPS_CHUNK ? n - at : NPS_CHUNK;
    if (pass == 1)
      count_bits(select, x + at, count);
    else
      count_bins(select, x + at, count);
  }
}

/* ---- putting together ---- */

/* Finds the counter that holds the k-th largest; with fewer than k entries, the lowest that is not 0.
 * @return the counter, or ABOVE_ALL when nothing is kept; *rest: how many of its entries belong to the k largest */
static uint32_t find_counter(const int64_t *count, uint32_t counters, int64_t k, int64_t *rest) {
  uint32_t found = ABOVE_ALL;
  int64_t above = 0;
  *rest = 0;
  for (uint32_t i = counters; i-- > 0 && above < k;) {
    if (count[i] == 0) continue;
    found = i;
    *rest = k - above < count[i] ? k - above : count[i];
    above += count[i];
  }
  return found;
}

static uint32_t bin_of(const nps_select_t *select, uint32_t bins, double k) {
  int64_t rest;
  return find_counter(select->count, bins, k < 1 ? 1 : (int64_t)k, &rest);
}

/* How many bins there are up to the last that is not empty. */
static uint32_t bins_in_use(const nps_select_t *select) {
  enum { AT_ONCE = 64 };
  uint32_t bins = NPS_HIGH_BINS;
  for (; bins > 0; bins -= AT_ONCE) {
    int64_t any = 0;
    for (int i = 1; i <= AT_ONCE; i++) any |= select->count[bins - (uint32_t)i];
    if (any) break;
  }
  return bins;
}

/* Where pass 0 saw all entries: the bin of the k-th largest. Else the bins in which it lies if the part is like the whole,
 * give or take some standard deviations. */
static void choose_bracket(nps_select_t *select) {
  const uint32_t bins = bins_in_use(select);
  int64_t entries = 0;
  for (uint32_t i = 0; i < bins; i++) entries += select->count[i];
  const double seen = (double)entries;
  const bool part = select->entries > 0;
  const double k = part ? (double)select->keep / (double)select->entries * seen : (double)select->keep;
  const double more = part ? DEVIATIONS * sqrt(fabs(k * (1 - k / fmax(seen, 1)))) + 1 : 0;
  if (select->keep == 0 || seen == 0) return;
  uint32_t high = bin_of(select, bins, k - more), low = bin_of(select, bins, ceil(k + more));
  const uint32_t middle = bin_of(select, bins, k);
  if (high - low >= BRACKET && middle > low) low = middle - 1;
  if (high - low >= BRACKET) high = low + BRACKET - 1;
  select->least = low << NPS_LOW_BITS;
  select->bins = (int)(high - low) + 1;
}

NPS_VECTOR_CLONES
static void add_copies(int64_t *count) {
  for (int i = 0; i < NPS_HIGH_BINS; i++) count[i] += count[NPS_HIGH_BINS + i];
}

static void reduce_bins(nps_select_t *select, const nps_comm_t *comm) {
  add_copies(select->count);
  if (nps_comm_size(comm) > 1) nps_comm_sum_i64(comm, select->count, NPS_HIGH_BINS);
  choose_bracket(select);
  memset(select->count, 0, (size_t)select->used * sizeof *select->count);
  select->used = 0;
}

/* Takes the threshold from the counts of all ranks. @return its counter, or ABOVE_ALL when nothing is kept */
static uint32_t find_threshold(nps_select_t *select) {
  const uint32_t counters = (uint32_t)select->bins * NPS_LOW_BINS;
  int64_t within = 0;
  for (uint32_t i = 0; i < counters; i++) within += select->count[i];
  const bool too_low = select->above >= select->keep && select->keep > 0;
  const bool too_high = select->above + within < select->keep && select->least > 0;
  select->missed = select->entries > 0 && (too_low || too_high || select->bins == 0) && select->keep > 0;
  select->found = !select->missed;
  const uint32_t at = find_counter(select->count, counters, select->keep - select->above, &select->ties);
  select->threshold = at == ABOVE_ALL ? ABOVE_ALL : select->least + at;
  return at;
}

static void reduce_bits(nps_select_t *select, const nps_comm_t *comm) {
  const bool shared = nps_comm_size(comm) > 1;
  const int64_t counters = (int64_t)select->bins * NPS_LOW_BINS;
  int64_t *own = NULL, before = 0;
  if (shared) {
    own = nps_xcalloc((size_t)counters, sizeof *own);
    memcpy(own, select->count, (size_t)counters * sizeof *own);
    nps_comm_sum_i64(comm, select->count, counters);
    nps_comm_sum_i64(comm, &select->above, 1);
  }
  const uint32_t at = find_threshold(select);
  if (shared) {
    before = at == ABOVE_ALL ? 0 : own[at];
    nps_comm_exscan_i64(comm, &before, 1);
  }
  free(own);
  nps_select_set_ties(select, select->ties > before ? select->ties - before : 0);
}

void nps_select_reduce(nps_select_t *select, int pass, const nps_comm_t *comm) {
  if (select->found) return;
  select->used = pass == 0 ? COUNTERS : select->bins * NPS_LOW_BINS; /* other ranks' counts come here too */
  if (pass == 0)
    reduce_bins(select, comm);
  else
    reduce_bits(select, comm);
}

void nps_select_restart(nps_select_t *select) { nps_select_start(select, select->keep); }

NPS_VECTOR_CLONES
static int64_t count_equal(const float *x, int64_t n, uint32_t threshold) {
  uint32_t equal = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    equal += (bits & NPS_MAGNITUDE) == threshold;
  }
  return equal;
}

int64_t nps_select_count_ties(const nps_select_t *select, const float *x, int64_t n) {
  return count_equal(x, n, select->threshold);
}

uint32_t nps_select_threshold(const nps_select_t *select) { return select->threshold; }

int64_t nps_select_ties(const nps_select_t *select) { return select->ties; }

void nps_select_set_ties(nps_select_t *select, int64_t ties) {
  select->ties_here = ties;
  nps_select_rewind(select);
}

void nps_select_rewind(nps_select_t *select) { select->ties_left = select->ties_here; }

/* Keeps magnitudes whose bits are at least `least`. */
NPS_VECTOR_CLONES
static int64_t keep_from(float *x, int64_t n, uint32_t least) {
  uint32_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    uint32_t stays = (bits & NPS_MAGNITUDE) >= least;
    bits &= 0u - stays;
    memcpy(&x[i], &bits, sizeof bits);
    kept += stays;
  }
  return kept;
}

/* Sets to zero, in `out`, the latest entries at the threshold. */
static void drop_ties(const float *x, int64_t n, uint32_t threshold, int64_t surplus, float *out) {
  for (int64_t i = n; surplus > 0; i--)
    if (nps_magnitude_bits(x[i - 1]) == threshold) out[i - 1] = 0, surplus--;
}

/* Takes the ties of a chunk out of those that may still be kept. @return how many of the chunk's are too many */
static int64_t take_ties(nps_select_t *select, const float *x, int64_t n) {
  const int64_t ties = count_equal(x, n, select->threshold);
  const int64_t surplus = ties > select->ties_left ? ties - select->ties_left : 0;
  select->ties_left -= ties - surplus;
  return surplus;
}

int64_t nps_select_keep(nps_select_t *select, float *x, int64_t n) {
  const uint32_t threshold = select->threshold;
  if (threshold == ABOVE_ALL) {
    memset(x, 0, (size_t)n * sizeof *x);
    return 0;
  }
  if (select->ties_left == 0) return keep_from(x, n, threshold + 1);
  const int64_t surplus = take_ties(select, x, n);
  if (surplus > 0) drop_ties(x, n, threshold, surplus, x);
  return threshold > 0 ? keep_from(x, n, threshold) : n - surplus;
}

NPS_VECTOR_CLONES
static int64_t mark_from(const float *x, int64_t n, uint32_t least, float *keep) {
  uint32_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    const uint32_t stays = (bits & NPS_MAGNITUDE) >= least;
    keep[i] = stays ? 1.0f : 0.0f;
    kept += stays;
  }
  return kept;
}

int64_t nps_select_mark(nps_select_t *select, const float *x, int64_t n, float *keep) {
  const uint32_t threshold = select->threshold;
  if (threshold == ABOVE_ALL || select->ties_left == 0)
    return mark_from(x, n, threshold == ABOVE_ALL ? ABOVE_ALL : threshold + 1, keep);
  const int64_t surplus = take_ties(select, x, n), kept = mark_from(x, n, threshold, keep) - surplus;
  if (surplus > 0) drop_ties(x, n, threshold, surplus, keep);
  return kept;
}
