/** @file radix.h
 *  The bits of a float32's magnitude as histograms count them: the upper 16 of the 31 choose the bin of pass 0, the lower 15
 *  that of pass 1. Magnitudes are ordered like their bits. */
#ifndef NPS_DELTA_RADIX_H
#define NPS_DELTA_RADIX_H

#include "nps/base.h"

#include <string.h>

#define NPS_MAGNITUDE 0x7fffffffu
#define NPS_LOW_BITS 15
#define NPS_LOW_BINS 32768
#define NPS_HIGH_BINS 65536

static inline uint32_t nps_magnitude_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & NPS_MAGNITUDE;
}

/** Give the bins of pass 0. Local. */
void nps_high_bins(const float *x, int64_t n, uint16_t *bin);

#endif
