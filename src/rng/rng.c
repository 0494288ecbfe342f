#include "nps/rng.h"

#include <string.h>

/* Constants of Philox4x32 (Salmon et al. 2011). */
#define MULTIPLIER_0 UINT64_C(0xD2511F53)
#define MULTIPLIER_1 UINT64_C(0xCD9E8D57)
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u
#define ROUNDS 10

/* Blocks computed side by side. Their 32-bit words are the lower halves of 64-bit lanes, as the products need; what the
 * upper halves hold does not matter. */
#define WIDTH 32

NPS_VECTOR_CLONES
static void philox_group(uint64_t key, uint32_t lane, uint64_t first_block, uint32_t out[4 * WIDTH]) {
  uint64_t a[WIDTH], b[WIDTH], c[WIDTH], d[WIDTH];
  uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
  for (int i = 0; i < WIDTH; i++) {
    a[i] = (uint32_t)(first_block + (uint64_t)i);
    b[i] = (first_block + (uint64_t)i) >> 32;
    c[i] = lane;
    d[i] = 0;
  }
#pragma GCC unroll 10
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < WIDTH; i++) {
      uint64_t p = MULTIPLIER_0 * (uint32_t)a[i], q = MULTIPLIER_1 * (uint32_t)c[i];
      a[i] = (q >> 32) ^ b[i] ^ key_0;
      b[i] = q;
      c[i] = (p >> 32) ^ d[i] ^ key_1;
      d[i] = p;
    }
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
  for (int i = 0; i < WIDTH; i++) {
    out[4 * i] = (uint32_t)a[i];
    out[4 * i + 1] = (uint32_t)b[i];
    out[4 * i + 2] = (uint32_t)c[i];
    out[4 * i + 3] = (uint32_t)d[i];
  }
}

void nps_rng_words(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  uint64_t block = (uint64_t)first / 4;
  int64_t at = 0;
  for (; at + 4 * WIDTH <= n; at += 4 * WIDTH, block += WIDTH) philox_group(key, lane, block, out + at);
  if (at == n) return;
  uint32_t rest[4 * WIDTH];
  philox_group(key, lane, block, rest);
  memcpy(out + at, rest, (size_t)(n - at) * sizeof *out);
}

void nps_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t key_0 = key[0], key_1 = key[1];
  for (int round = 0; round < ROUNDS; round++) {
    uint64_t p = MULTIPLIER_0 * c[0], q = MULTIPLIER_1 * c[2];
    c[0] = (uint32_t)(q >> 32) ^ c[1] ^ key_0;
    c[1] = (uint32_t)q;
    c[2] = (uint32_t)(p >> 32) ^ c[3] ^ key_1;
    c[3] = (uint32_t)p;
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
  memcpy(out, c, sizeof c);
}
