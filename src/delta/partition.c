#include "nps/delta.h"

#include <stdlib.h>
#include <string.h>

/* A magnitude has 31 bits: 16 upper ones choose the bucket of pass 0, 15 lower ones its place there in pass 1. */
#define LOW_BITS 15
#define LOW_COUNT 32768
#define BUCKETS 65536
#define MAGNITUDE 0x7fffffffu

struct nps_partition {
  int subspaces;
  int64_t entries;
  float *thresholds;          /* [subspaces − 1] */
  int bucket_count;           /* different buckets that hold a threshold */
  int *bucket;                /* [bucket_count] which, ascending */
  int *bucket_of;             /* [subspaces − 1] index into bucket */
  int64_t *rank;              /* [subspaces − 1] how many entries of its bucket lie before the threshold */
  int64_t *low;               /* [bucket_count][LOW_COUNT] counts of pass 1 */
  int16_t slot[BUCKETS];      /* 1 + index into bucket, or 0 */
  int64_t histogram[BUCKETS]; /* counts of pass 0 */
};

nps_partition_t *nps_partition_new(int subspaces) {
  nps_partition_t *p = nps_xcalloc(1, sizeof *p);
  const size_t inner = (size_t)subspaces;
  p->subspaces = subspaces;
  p->thresholds = nps_xcalloc(inner, sizeof *p->thresholds);
  p->bucket = nps_xcalloc(inner, sizeof *p->bucket);
  p->bucket_of = nps_xcalloc(inner, sizeof *p->bucket_of);
  p->rank = nps_xcalloc(inner, sizeof *p->rank);
  p->low = nps_xcalloc(inner * LOW_COUNT, sizeof *p->low);
  return p;
}

void nps_partition_free(nps_partition_t *p) {
  if (!p) return;
  free(p->thresholds);
  free(p->bucket);
  free(p->bucket_of);
  free(p->rank);
  free(p->low);
  free(p);
}

size_t nps_partition_bytes(int subspaces) {
  return sizeof(nps_partition_t) +
         (size_t)subspaces * (LOW_COUNT * sizeof(int64_t) + sizeof(float) + 2 * sizeof(int) + sizeof(int64_t));
}

void nps_partition_start(nps_partition_t *p, int64_t entries) {
  p->entries = entries;
  p->bucket_count = 0;
  memset(p->low, 0, (size_t)p->subspaces * LOW_COUNT * sizeof *p->low);
  memset(p->slot, 0, sizeof p->slot);
  memset(p->histogram, 0, sizeof p->histogram);
}

static uint32_t magnitude_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & MAGNITUDE;
}

void nps_partition_count(nps_partition_t *p, int pass, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = magnitude_bits(x[i]);
    if (pass == 0) {
      p->histogram[bits >> LOW_BITS]++;
      continue;
    }
    const int slot = p->slot[bits >> LOW_BITS];
    if (slot > 0) p->low[(int64_t)(slot - 1) * LOW_COUNT + (bits & (LOW_COUNT - 1))]++;
  }
}

/* ⌊m·entries/subspaces⌋ without overflow. */
static int64_t threshold_rank(const nps_partition_t *p, int m) {
  return (int64_t)((__int128)m * p->entries / p->subspaces);
}

/* Finds the bucket of every threshold, and how far into it the threshold lies. */
static void find_buckets(nps_partition_t *p) {
  int64_t before = 0;
  int bucket = 0;
  for (int m = 1; m < p->subspaces; m++) {
    const int64_t rank = threshold_rank(p, m);
    while (bucket < BUCKETS - 1 && before + p->histogram[bucket] <= rank) before += p->histogram[bucket++];
    if (p->slot[bucket] == 0) {
      p->bucket[p->bucket_count] = bucket;
      p->slot[bucket] = (int16_t)++p->bucket_count;
    }
    p->bucket_of[m - 1] = p->slot[bucket] - 1;
    p->rank[m - 1] = rank - before;
  }
}

static float threshold_at(const nps_partition_t *p, int index) {
  const int64_t *low = p->low + (int64_t)p->bucket_of[index] * LOW_COUNT;
  int64_t left = p->rank[index];
  uint32_t at = 0;
  while (at < LOW_COUNT - 1 && low[at] <= left) left -= low[at++];
  const uint32_t bits = (uint32_t)p->bucket[p->bucket_of[index]] << LOW_BITS | at;
  float threshold;
  memcpy(&threshold, &bits, sizeof threshold);
  return threshold;
}

void nps_partition_reduce(nps_partition_t *p, int pass, const nps_comm_t *comm) {
  const bool shared = nps_comm_size(comm) > 1;
  if (pass == 0) {
    if (shared) nps_comm_sum_i64(comm, p->histogram, BUCKETS);
    find_buckets(p);
    return;
  }
  if (shared) nps_comm_sum_i64(comm, p->low, (int64_t)p->bucket_count * LOW_COUNT);
  for (int m = 0; m + 1 < p->subspaces; m++) p->thresholds[m] = threshold_at(p, m);
}

const float *nps_partition_thresholds(const nps_partition_t *p) { return p->thresholds; }

const int64_t *nps_partition_histogram(const nps_partition_t *p) { return p->histogram; }
