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

#if defined(__x86_64__) && defined(__GNUC__)

#define AVX2 __attribute__((target("avx2")))
#define VECTORS 4 /* of four blocks: a 32-bit word each in the lower half of a 64-bit lane, as products need */
#define GROUP (16 * VECTORS) /* words computed side by side */

/* The keys of all rounds. */
typedef struct {
  __m256i k0[ROUNDS], k1[ROUNDS];
} round_keys_t;

AVX2 static void spread_keys(uint64_t key, round_keys_t *keys) {
  uint32_t key_0 = (uint32_t)key, key_1 = (uint32_t)(key >> 32);
  for (int round = 0; round < ROUNDS; round++) {
    keys->k0[round] = _mm256_set1_epi64x(key_0);
    keys->k1[round] = _mm256_set1_epi64x(key_1);
    key_0 += WEYL_0;
    key_1 += WEYL_1;
  }
}

/* The lower words of the 64-bit lanes: in each half of 128 bits two of x, then two of y. */
AVX2 static inline __m256i lower_words(__m256i x, __m256i y) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(y), 0x88));
}

/* One group, whose blocks' numbers have the same upper word: what their first rounds have in common is then made once for
 * all groups. Each half of 128 bits has words 0 of two blocks and then their words 1 (ab), words 2 and then 3 (cd). Written
 * by hand, as compilers make this ten times slower: the upper halves of the lanes need no masking here. */
AVX2 static inline __attribute__((always_inline)) void philox_group(const round_keys_t *keys, uint32_t lane,
                                                                    __m256i high, uint64_t first_block,
                                                                    __m256i ab[VECTORS], __m256i cd[VECTORS]) {
  const __m256i multiplier_0 = _mm256_set1_epi64x((long long)MULTIPLIER_0);
  const __m256i multiplier_1 = _mm256_set1_epi64x((long long)MULTIPLIER_1);
  __m256i a[VECTORS], b[VECTORS], c[VECTORS], d[VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    a[v] = _mm256_add_epi64(_mm256_set1_epi64x((long long)first_block + 4 * v), _mm256_set_epi64x(3, 2, 1, 0));
    b[v] = high;
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
    ab[v] = lower_words(a[v], b[v]);
    cd[v] = lower_words(c[v], d[v]);
  }
}

/* The first whole groups of nps_rng_words(). Returns how many words that are. */
AVX2 static int64_t words_of_groups(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  round_keys_t keys;
  spread_keys(key, &keys);
  const __m256i high = _mm256_set1_epi64x((long long)((uint64_t)first / 4 >> 32));
  int64_t at = 0;
  for (; at + GROUP <= n; at += GROUP) {
    __m256i ab[VECTORS], cd[VECTORS], *to = (__m256i *)(void *)(out + at);
    philox_group(&keys, lane, high, (uint64_t)(first + at) / 4, ab, cd);
    for (int v = 0; v < VECTORS; v++) {
      const __m256i ac = _mm256_unpacklo_epi32(ab[v], cd[v]), bd = _mm256_unpackhi_epi32(ab[v], cd[v]);
      const __m256i even = _mm256_unpacklo_epi32(ac, bd), odd = _mm256_unpackhi_epi32(ac, bd);
      _mm256_storeu_si256(to + 2 * v, _mm256_permute2x128_si256(even, odd, 0x20));
      _mm256_storeu_si256(to + 2 * v + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
  }
  return at;
}

/* 16 bits, one a byte: which words are below the limit, in the order of philox_group()'s vectors; unsigned numbers are
 * compared as signed ones of the other top bit. */
AVX2 static inline __m256i compare(__m256i ab, __m256i cd, uint32_t limit) {
  const __m256i top = _mm256_set1_epi32(INT32_MIN), most = _mm256_set1_epi32((int)(limit ^ 0x80000000u));
  return _mm256_packs_epi32(_mm256_cmpgt_epi32(most, _mm256_xor_si256(ab, top)),
                            _mm256_cmpgt_epi32(most, _mm256_xor_si256(cd, top)));
}

/* The same of nps_rng_below(). */
AVX2 static int64_t below_of_groups(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t limit,
                                    uint8_t *bits) {
  const __m256i in_order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6, 1, 3, 5,
                                            7, 8, 10, 12, 14, 9, 11, 13, 15);
  round_keys_t keys;
  spread_keys(key, &keys);
  const __m256i high = _mm256_set1_epi64x((long long)((uint64_t)first / 4 >> 32));
  int64_t at = 0;
  for (; at + GROUP <= n; at += GROUP) {
    __m256i ab[VECTORS], cd[VECTORS];
    philox_group(&keys, lane, high, (uint64_t)(first + at) / 4, ab, cd);
    for (int v = 0; v < VECTORS; v += 2) {
      const __m256i below = _mm256_packs_epi16(compare(ab[v], cd[v], limit), compare(ab[v + 1], cd[v + 1], limit));
      const __m256i ordered = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(below, in_order), 0xd8);
      const int some = _mm256_movemask_epi8(ordered);
      memcpy(bits + at / 8 + 2 * v, &some, sizeof some);
    }
  }
  return at;
}

/* Whether words are made in groups: not where the lower words of the blocks' numbers run over. */
static bool has_groups(int64_t first, int64_t n) {
  return __builtin_cpu_supports("avx2") && (uint64_t)first / 4 >> 32 == ((uint64_t)first + (uint64_t)n) / 4 >> 32;
}

#else

static bool has_groups(int64_t first, int64_t n) {
  (void)first, (void)n;
  return false;
}
static int64_t words_of_groups(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  (void)key, (void)lane, (void)first, (void)n, (void)out;
  return 0;
}
static int64_t below_of_groups(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t limit, uint8_t *bits) {
  (void)key, (void)lane, (void)first, (void)n, (void)limit, (void)bits;
  return 0;
}

#endif

void nps_rng_words(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t *out) {
  int64_t at = has_groups(first, n) ? words_of_groups(key, lane, first, n, out) : 0;
  philox_blocks(key, lane, (uint64_t)(first + at) / 4, (n - at) / 4, out + at);
  at += (n - at) / 4 * 4;
  if (at == n) return;
  uint32_t rest[4];
  philox_blocks(key, lane, (uint64_t)(first + at) / 4, 1, rest);
  memcpy(out + at, rest, (size_t)(n - at) * sizeof *out);
}

void nps_rng_below(uint64_t key, uint32_t lane, int64_t first, int64_t n, uint32_t limit, uint8_t *bits) {
  for (int64_t at = has_groups(first, n) ? below_of_groups(key, lane, first, n, limit, bits) : 0; at < n; at += 8) {
    uint32_t word[8];
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
