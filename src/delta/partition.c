#include "nps/delta.h"
#include "radix.h"

#include <stdlib.h>
#include <string.h>

/* Copies of the histogram that are counted in turn, so that equal neighbours do not wait for each other's stores. */
#define COPIES 2

/* Entry of slot_of for the bins in which no threshold lies; at most NPS_MAX_SUBSPACES - 1 others are used. */
#define NO_SLOT UINT8_MAX

typedef struct {
  int slot;     /* of the bin of pass 0 in which it lies */
  int64_t rank; /* its position among the entries of that bin, from 0 */
} wanted_t;

struct nps_partition {
  int thresholds;
  int64_t entries;
  float *threshold; /* [thresholds] after pass 1 */
  wanted_t *wanted; /* [thresholds] after pass 0 */
  uint32_t *high;   /* [slots] bins of pass 0 in which thresholds lie */
  int slots;
  int64_t *low; /* [slots][NPS_LOW_BINS] */
  int64_t histogram[COPIES][NPS_HIGH_BINS];
  uint8_t slot_of[NPS_HIGH_BINS];
};

nps_partition_t *nps_partition_new(int subspaces) {
  const size_t thresholds = (size_t)subspaces - 1;
  nps_partition_t *p = nps_xcalloc(1, sizeof *p);
  p->thresholds = subspaces - 1;
  p->threshold = nps_xcalloc(thresholds, sizeof *p->threshold);
  p->wanted = nps_xcalloc(thresholds, sizeof *p->wanted);
  p->high = nps_xcalloc(thresholds, sizeof *p->high);
  p->low = nps_xcalloc(thresholds * NPS_LOW_BINS, sizeof *p->low);
  return p;
}

void nps_partition_free(nps_partition_t *partition) {
  if (!partition) return;
  free(partition->threshold);
  free(partition->wanted);
  free(partition->high);
  free(partition->low);
  free(partition);
}

size_t nps_partition_bytes(int subspaces) {
  const size_t each = sizeof(float) + sizeof(wanted_t) + sizeof(uint32_t) + NPS_LOW_BINS * sizeof(int64_t);
  return sizeof(nps_partition_t) + (size_t)(subspaces - 1) * each;
}

void nps_partition_start(nps_partition_t *partition, int64_t entries) {
  partition->entries = entries;
  memset(partition->histogram, 0, sizeof partition->histogram);
}

/* ---- counting ---- */

static void count_high(nps_partition_t *p, const uint16_t *bin, int64_t n) {
  int64_t *even = p->histogram[0], *odd = p->histogram[1];
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    even[bin[i]]++;
    odd[bin[i + 1]]++;
  }
  if (i < n) even[bin[i]]++;
}

static void count_low(nps_partition_t *p, const float *x, const uint16_t *bin, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint8_t slot = p->slot_of[bin[i]];
    if (slot != NO_SLOT) p->low[slot * NPS_LOW_BINS + (nps_magnitude_bits(x[i]) & (NPS_LOW_BINS - 1))]++;
  }
}

void nps_partition_count(nps_partition_t *partition, int pass, const float *x, int64_t n) {
  uint16_t bin[NPS_CHUNK];
  for (int64_t at = 0; at < n; at += NPS_CHUNK) {
    const int64_t count = n - at < NPS_CHUNK ? n - at : NPS_CHUNK;
    nps_high_bins(x + at, count, bin);
    if (pass == 0)
      count_high(partition, bin, count);
    else
      count_low(partition, x + at, bin, count);
  }
}

/* ---- putting together ---- */

/* Moves *bin on to the bin of an entry by its rank, *before counting the entries that lie in the bins before. Stays in the
 * last bin when there is no such entry. */
static void seek_bin(const int64_t *histogram, uint32_t bins, int64_t rank, uint32_t *bin, int64_t *before) {
  while (*bin + 1 < bins && *before + histogram[*bin] <= rank) *before += histogram[(*bin)++];
}

static void give_slots(nps_partition_t *p) {
  uint32_t bin = 0;
  int64_t before = 0;
  p->slots = 0;
  memset(p->slot_of, NO_SLOT, sizeof p->slot_of);
  for (int i = 0; i < p->thresholds; i++) {
    const int64_t rank = p->entries * (i + 1) / (p->thresholds + 1);
    seek_bin(p->histogram[0], NPS_HIGH_BINS, rank, &bin, &before);
    if (p->slot_of[bin] == NO_SLOT) {
      p->slot_of[bin] = (uint8_t)p->slots;
      p->high[p->slots++] = bin;
    }
    p->wanted[i] = (wanted_t){.slot = p->slot_of[bin], .rank = rank - before};
  }
  memset(p->low, 0, (size_t)p->slots * NPS_LOW_BINS * sizeof *p->low);
}

static void find_thresholds(nps_partition_t *p) {
  uint32_t low = 0;
  int64_t before = 0;
  for (int i = 0; i < p->thresholds; i++) {
    const wanted_t *wanted = &p->wanted[i];
    if (i == 0 || wanted->slot != p->wanted[i - 1].slot) low = 0, before = 0;
    seek_bin(p->low + (int64_t)wanted->slot * NPS_LOW_BINS, NPS_LOW_BINS, wanted->rank, &low, &before);
    const uint32_t bits = p->high[wanted->slot] << NPS_LOW_BITS | low;
    memcpy(&p->threshold[i], &bits, sizeof bits);
  }
}

void nps_partition_reduce(nps_partition_t *partition, int pass, const nps_comm_t *comm) {
  const bool shared = nps_comm_size(comm) > 1;
  if (pass == 0) {
    int64_t *sum = partition->histogram[0], *odd = partition->histogram[1];
    for (int i = 0; i < NPS_HIGH_BINS; i++) sum[i] += odd[i];
    if (shared) nps_comm_sum_i64(comm, sum, NPS_HIGH_BINS);
    give_slots(partition);
  } else {
    if (shared) nps_comm_sum_i64(comm, partition->low, (int64_t)partition->slots * NPS_LOW_BINS);
    find_thresholds(partition);
  }
}

const float *nps_partition_thresholds(const nps_partition_t *partition) { return partition->threshold; }

const int64_t *nps_partition_histogram(const nps_partition_t *partition) { return partition->histogram[0]; }
