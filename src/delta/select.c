#include "nps/delta.h"
#include "radix.h"

#include <stdlib.h>
#include <string.h>

#define ABOVE_ALL UINT32_MAX

/* Copies of the histogram that are counted in turn, so that equal neighbours do not wait for each other's stores. */
#define COPIES 2

struct nps_select {
  int64_t keep;
  uint32_t high;      /* bin of the k-th largest, after pass 0; ABOVE_ALL when nothing is kept */
  int64_t in_bin;     /* how many entries of that bin are kept */
  uint32_t threshold; /* after pass 1 */
  int64_t ties;       /* entries at the threshold that are kept, over all ranks */
  int64_t ties_left;  /* of those, what this rank may still keep */
  int64_t histogram[COPIES][NPS_HIGH_BINS];
};

nps_select_t *nps_select_new(void) { return nps_xcalloc(1, sizeof(nps_select_t)); }

void nps_select_free(nps_select_t *select) { free(select); }

size_t nps_select_bytes(void) { return sizeof(nps_select_t); }

void nps_select_start(nps_select_t *select, int64_t keep) { *select = (nps_select_t){.keep = keep}; }

NPS_VECTOR_CLONES
void nps_high_bins(const float *x, int64_t n, uint16_t *bin) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    bin[i] = (uint16_t)((bits & NPS_MAGNITUDE) >> NPS_LOW_BITS);
  }
}

static void count_high(nps_select_t *select, const float *x, int64_t n) {
  uint16_t bin[NPS_CHUNK];
  int64_t *even = select->histogram[0], *odd = select->histogram[1];
  int64_t i = 0;
  nps_high_bins(x, n, bin);
  for (; i + 2 <= n; i += 2) {
    even[bin[i]]++;
    odd[bin[i + 1]]++;
  }
  if (i < n) even[bin[i]]++;
}

/* Marks the entries of the bin whose lower bits are not 0. @return how many have lower bits 0 */
NPS_VECTOR_CLONES
static int64_t mark_bin(const float *x, int64_t n, uint32_t high, uint8_t *mark) {
  uint32_t zeros = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    bits &= NPS_MAGNITUDE;
    mark[i] = (bits >> NPS_LOW_BITS == high) & (bits != high << NPS_LOW_BITS);
    zeros += bits == high << NPS_LOW_BITS;
  }
  return zeros;
}

/* Few entries lie in the bin, and of differences between bfloat16 values, which seldom need more than the upper bits, most
 * at its start: these are counted at once, the others found by their marks, eight at a time. */
static void count_low(nps_select_t *select, const float *x, int64_t n) {
  uint8_t mark[NPS_CHUNK + 8];
  select->histogram[0][0] += mark_bin(x, n, select->high, mark);
  memset(mark + n, 0, 8);
  for (int64_t at = 0; at < n; at += 8) {
    uint64_t eight;
    memcpy(&eight, mark + at, sizeof eight);
    for (; eight; eight &= eight - 1)
      select->histogram[0][nps_magnitude_bits(x[at + __builtin_ctzll(eight) / 8]) & (NPS_LOW_BINS - 1)]++;
  }
}

void nps_select_count(nps_select_t *select, int pass, const float *x, int64_t n) {
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    int64_t count = n - at < NPS_CHUNK ? n - at : NPS_CHUNK;
    if (pass == 0)
      count_high(select, x + at, count);
    else
      count_low(select, x + at, count);
  }
}

/* Finds the bin that holds the k-th largest; with fewer than k entries, the lowest that has any.
 * @return the bin, or ABOVE_ALL when nothing is kept; *rest: how many of the bin's entries belong to the k largest */
static uint32_t find_bin(const int64_t *histogram, int64_t k, int64_t *rest) {
  uint32_t found = ABOVE_ALL;
  int64_t above = 0;
  *rest = 0;
  for (uint32_t bin = NPS_HIGH_BINS; bin-- > 0 && above < k;) {
    if (histogram[bin] == 0) continue;
    found = bin;
    *rest = k - above < histogram[bin] ? k - above : histogram[bin];
    above += histogram[bin];
  }
  return found;
}

void nps_select_reduce(nps_select_t *select, int pass, const nps_comm_t *comm) {
  int64_t *sum = select->histogram[0], *own = select->histogram[1];
  const bool shared = nps_comm_size(comm) > 1;
  if (pass == 0) {
    for (int i = 0; i < NPS_HIGH_BINS; i++) sum[i] += own[i];
    if (shared) nps_comm_sum_i64(comm, sum, NPS_HIGH_BINS);
    select->high = find_bin(sum, select->keep, &select->in_bin);
    memset(sum, 0, NPS_HIGH_BINS * sizeof *sum);
    return;
  }
  memcpy(own, sum, NPS_HIGH_BINS * sizeof *own);
  if (shared) nps_comm_sum_i64(comm, sum, NPS_LOW_BINS);
  uint32_t low = select->high == ABOVE_ALL ? ABOVE_ALL : find_bin(sum, select->in_bin, &select->ties);
  select->threshold = low == ABOVE_ALL ? ABOVE_ALL : select->high << NPS_LOW_BITS | low;
  int64_t before = low == ABOVE_ALL ? 0 : own[low];
  if (shared)
    nps_comm_exscan_i64(comm, &before, 1);
  else
    before = 0;
  nps_select_set_ties(select, select->ties > before ? select->ties - before : 0);
}

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

void nps_select_set_ties(nps_select_t *select, int64_t ties) { select->ties_left = ties; }

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
