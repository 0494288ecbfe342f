#include "nps/rng.h"

#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

/* Constants of Philox4x32 (Salmon et al. 2011). */
#define MULTIPLIER_0 UINT64_C(0xD2511F53)
#define MULTIPLIER_1 UINT64_C(0xCD9E8D57)
#define WEYL_0 0x9E3779B9u
#define WEYL_1 0xBB67AE85u
#define ROUNDS 10

static void philox_blocks(uint64_t key, uint32_t lane, uint64_t first_block, int64_t blocks, uint32_t *out) {
  for (int64_t i = 0; i < blocks; i++) {
    const uint64_t block = first_block + (uint64_t)i;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), lane, 0};
    nps_philox4x32(counter, (uint32_t[]){(uint32_t)key, (uint32_t)(key >> 32)}, out + 4 * i);
  }
}

/* Blocks computed side by side. */
#define WIDTH 8

#if defined(__x86_64__) && defined(__GNUC__)

#define VECTORS 2 /* of four blocks: a 32-bit word each in the lower half of a 64-bit lane, as the products need */

static bool has_wide_vectors(void) { return __builtin_cpu_supports("avx2"); }

/* The keys of all rounds. */
typedef struct {
  __m256i k0[ROUNDS], k1[ROUNDS];
} group_keys_t;

__attribute__((target("avx2"))) static void spread_keys(uint64_t key, group_keys_t *keys) {
  uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
  for (int round = 0; round < ROUNDS; round++) {
    keys->k0[round] = _mm256_set1_epi64x(key_0);
    keys->k1[round] = _mm256_set1_epi64x(key_1);
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
}

/* Written by hand, as compilers make this ten times slower: the upper halves of the lanes need no masking here. */
__attribute__((target("avx2"))) static void philox_group(const group_keys_t *keys, uint32_t lane, uint64_t first_block,
                                                         uint32_t out[4 * WIDTH]) {
  const __m256i multiplier_0 = _mm256_set1_epi64x((long long)MULTIPLIER_0);
  const __m256i multiplier_1 = _mm256_set1_epi64x((long long)MULTIPLIER_1);
  __m256i a[VECTORS], b[VECTORS], c[VECTORS], d[VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    a[v] = _mm256_add_epi64(_mm256_set1_epi64x((long long)first_block + 4 * v), _mm256_set_epi64x(3, 2, 1, 0));
    b[v] = _mm256_srli_epi64(a[v], 32);
    c[v] = _mm256_set1_epi64x(lane);
    d[v] = _mm256_setzero_si256();
  }
#pragma GCC unroll 10
  for (int round = 0; round < ROUNDS; round++) {
    const __m256i k0 = keys->k0[round], k1 = keys->k1[round];
    for (int v = 0; v < VECTORS; v++) {
      const __m256i p = _mm256_mul_epu32(a[v], multiplier_0), q = _mm256_mul_epu32(c[v], multiplier_1);
      a[v] = _mm256_xor_si256(_mm256_srli_epi64(q, 32), _mm256_xor_si256(b[v], k0));
      b[v] = q;
      c[v] = _mm256_xor_si256(_mm256_srli_epi64(p, 32), _mm256_xor_si256(d[v], k1));
      d[v] = p;
    }
  }
  for (int v = 0; v < VECTORS; v++) {
    const __m256i ab = _mm256_blend_epi32(a[v], _mm256_slli_epi64(b[v], 32), 0xaa);
    const __m256i cd = _mm256_blend_epi32(c[v], _mm256_slli_epi64(d[v], 32), 0xaa);
    const __m256i even = _mm256_unpacklo_epi64(ab, cd), odd = _mm256_unpackhi_epi64(ab, cd);
    __m256i *to = (__m256i *)(void *)(out + 16 * v);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

__attribute__((target("avx2"))) static uint32_t group_below(const uint32_t word[4 * WIDTH], uint32_t limit) {
  const __m256i top = _mm256_set1_epi32(INT32_MIN), most = _mm256_xor_si256(_mm256_set1_epi32((int)limit), top);
  uint32_t bits = 0;
  for (int v = 0; v < 4; v++) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)word + v), top);
    bits |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(most, x))) << (8 * v);
  }
  return bits;
}

#else

typedef uint64_t group_keys_t;

static bool has_wide_vectors(void) { return false; }
static void spread_keys(uint64_t key, group_keys_t *keys) { *keys = key; }
static uint32_t group_below(const uint32_t word[4 * WIDTH], uint32_t limit) {
  uint32_t bits = 0;
  for (int i = 0; i < 4 * WIDTH; i++) bits |= (uint32_t)(word[i] < limit) << i;
  return bits;
}
static void philox_group(const group_keys_t *keys, uint32_t lane, uint64_t first_block, uint32_t out[4 * WIDTH]) {
  philox_blocks(*keys, lane, first_block, WIDTH, out);
}

#endif

void nps_rng_words(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  uint64_t block = (uint64_t)first / 4;
  int64_t at = 0;
  if (has_wide_vectors()) {
    group_keys_t keys;
    spread_keys(key, &keys);
    for (; at + 4 * WIDTH <= n; at += 4 * WIDTH, block += WIDTH) philox_group(&keys, lane, block, out + at);
  }
  philox_blocks(key, lane, block, (n - at) / 4, out + at);
  at += (n - at) / 4 * 4;
  if (at == n) return;
  uint32_t rest[4];
  philox_blocks(key, lane, (uint64_t)(first + at) / 4, 1, rest);
  memcpy(out + at, rest, (size_t)(n - at) * sizeof *out);
}

void nps_rng_below(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t limit, uint8_t *bits) {
  uint32_t word[4 * WIDTH];
  int64_t at = 0;
  if (has_wide_vectors()) {
    group_keys_t keys;
    spread_keys(key, &keys);
    for (; at + 4 * WIDTH <= n; at += 4 * WIDTH) {
      philox_group(&keys, lane, (uint64_t)(first + at) / 4, word);
      const uint32_t some = group_below(word, limit);
      for (int b = 0; b < WIDTH / 2; b++) bits[at / 8 + b] = (uint8_t)(some >> (8 * b));
    }
  }
  for (; at < n; at += 8) {
    const int64_t count = n - at < 8 ? n - at : 8;
    nps_rng_words(key, lane, first + at, count, word);
    bits[at / 8] = 0;
    for (int i = 0; i < count; i++) bits[at / 8] |= (uint8_t)((word[i] < limit) << i);
  }
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
