/** @file rng.h
 *  Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). Layer 1. Everything here is local.
 *
 *  A number is a pure function of (key, counter), so that masks do not depend on the number of ranks. */
#ifndef NPS_RNG_H
#define NPS_RNG_H

#include "nps/base.h"

/** Compute one Philox4x32-10 block.
 *  @param counter  [4]
 *  @param key      [2]
 *  @param[out] out [4] */
void nps_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/** Fill an array with random words of a stream: word i of the stream is word i mod 4 of the block with counter
 *  (low 32 bits of ⌊i/4⌋, high 32 bits of ⌊i/4⌋, lane, 0) and key (low, high 32 bits of `key`).
 *  @param key    64-bit key
 *  @param lane   which of 2^32 streams of that key
 *  @param first  position of the first word, a multiple of 4
 *  @param n      number of words
 *  @param[out] out  [n] */
void nps_rng_words(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out);

/** Tell which of such words are below a limit.
 *  @param[out] bits  [(n + 7) / 8] bit i mod 8 of byte i div 8 is word i's; bits after the last word's are 0 */
void nps_rng_below(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t limit, uint8_t *bits);

#endif
