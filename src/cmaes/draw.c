#include "cmaes_internal.h"

#include "nps/rng.h"

#include <math.h>

#define TWO_PI 6.283185307179586476925286766559

/* A number in (0, 1] from 53 bits. */
static double uniform(uint32_t high, uint32_t low) {
  const uint64_t bits = ((uint64_t)high << 32 | low) >> 11;
  return ((double)bits + 1) * 0x1p-53;
}

/* Spreads the bits of a number over all 64 (the finaliser of SplitMix64). */
static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
  return x ^ x >> 31;
}

/* Box and Muller: one Philox block gives two normal numbers, those of an even index and the next. */
double nps_cmaes_normal(uint64_t seed, uint64_t stream, int restart, int generation, int candidate, int index) {
  const uint64_t mixed = mix(seed + UINT64_C(0x9e3779b97f4a7c15) * (stream + 1));
  const uint32_t key[2] = {(uint32_t)mixed, (uint32_t)(mixed >> 32)};
  const uint32_t counter[4] = {(uint32_t)index / 2, (uint32_t)candidate, (uint32_t)generation, (uint32_t)restart};
  uint32_t word[4];
  nps_philox4x32(counter, key, word);
  const double radius = sqrt(-2 * log(uniform(word[0], word[1]))), angle = TWO_PI * uniform(word[2], word[3]);
  return index % 2 == 0 ? radius * cos(angle) : radius * sin(angle);
}
