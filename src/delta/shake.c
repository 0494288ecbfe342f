/* Random perturbations of weights. */
#include "nps/delta.h"
#include "nps/rng.h"

#include <string.h>

/* Elements of a block of random numbers: one bit each. */
enum { WORDS = 4, BITS = 32 * WORDS };

/* Streams above those of models. */
#define FIRST_LANE 0x80000000u

void nps_shake(const nps_shake_t *shake, const char *tensor, int64_t first, int64_t n, float *x) {
  const float factor[2] = {(float)(1 - shake->rho), (float)(1 + shake->rho)};
  const uint64_t key = shake->seed ^ nps_hash64(0, tensor, strlen(tensor));
  const uint32_t lane = FIRST_LANE + (uint32_t)shake->sample;
  for (int64_t at = first; at < first + n;) {
    const int64_t block = at / BITS, end = nps_min64((block + 1) * BITS, first + n);
    uint32_t word[WORDS];
    nps_rng_words(key, lane, block * WORDS, WORDS, word);
    for (; at < end; at++) x[at - first] *= factor[word[at % BITS / 32] >> at % 32 & 1];
  }
}
