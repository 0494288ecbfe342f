#include "nps/rng.h"

#include "nps/base.h"

/* Constants of Philox4x32 (Salmon et al. 2011). */
#define MULTIPLIER_0 0xD2511F53u
#define MULTIPLIER_1 0xCD9E8D57u
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u
#define ROUNDS 10

/* Blocks computed side by side, so that the compiler can put them into vector lanes. */
#define WIDTH 16

typedef struct {
  uint32_t word[4][WIDTH];
} blocks_t;

NPS_VECTOR_CLONES
static void philox_blocks(blocks_t *b, uint32_t key_0, uint32_t key_1) {
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < WIDTH; i++) {
      uint64_t p = (uint64_t)MULTIPLIER_0 * b->word[0][i];
      uint64_t q = (uint64_t)MULTIPLIER_1 * b->word[2][i];
      uint32_t c1 = b->word[1][i], c3 = b->word[3][i];
      b->word[0][i] = (uint32_t)(q >> 32) ^ c1 ^ key_0;
      b->word[1][i] = (uint32_t)q;
      b->word[2][i] = (uint32_t)(p >> 32) ^ c3 ^ key_1;
      b->word[3][i] = (uint32_t)p;
    }
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
}

void nps_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  blocks_t b = {0};
  for (int w = 0; w < 4; w++) b.word[w][0] = counter[w];
  philox_blocks(&b, key[0], key[1]);
  for (int w = 0; w < 4; w++) out[w] = b.word[w][0];
}

void nps_rng_words(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  uint64_t block = (uint64_t)first / 4;
  for (int64_t at = 0; at < n; at += 4 * WIDTH, block += WIDTH) {
    blocks_t b;
    for (int i = 0; i < WIDTH; i++) {
      b.word[0][i] = (uint32_t)(block + (uint64_t)i);
      b.word[1][i] = (uint32_t)((block + (uint64_t)i) >> 32);
      b.word[2][i] = lane;
      b.word[3][i] = 0;
    }
    philox_blocks(&b, (uint32_t)key, (uint32_t)(key >> 32));
    int64_t left = n - at;
    if (left >= 4 * WIDTH)
      for (int i = 0; i < 4 * WIDTH; i++) out[at + i] = b.word[i % 4][i / 4];
    else
      for (int i = 0; i < left; i++) out[at + i] = b.word[i % 4][i / 4];
  }
}
