#include "sha256.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_SHA_INSTRUCTIONS 1
#include <cpuid.h>
#include <immintrin.h>
#endif

#define BLOCK 64

struct nps_sha {
  EVP_MD_CTX *portable;      /* NULL: the rest is used */
  uint32_t state[8];         /* after all whole blocks */
  uint64_t bytes;            /* so far */
  unsigned char rest[BLOCK]; /* the block that has begun */
};

/* ---- whole blocks ---- */

#ifdef HAVE_SHA_INSTRUCTIONS

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t round_constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static bool has_instructions(void) {
  unsigned a, b, c, d, leaf_7_b;
  if (!__get_cpuid_count(7, 0, &a, &leaf_7_b, &c, &d) || !__get_cpuid(1, &a, &b, &c, &d)) return false;
  return (leaf_7_b & bit_SHA) && (c & bit_SSE4_1) && (c & bit_SSSE3);
}

#define SHA_TARGET __attribute__((target("sha,sse4.1,ssse3")))

/* The instructions want the words a … h as (a, b, e, f) and (c, d, g, h), the first uppermost. */
SHA_TARGET static inline void split_state(const uint32_t *state, __m128i *abef, __m128i *cdgh) {
  const __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)state), 0xb1);
  const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(const void *)(state + 4)), 0x1b);
  *abef = _mm_alignr_epi8(abcd, efgh, 8);
  *cdgh = _mm_blend_epi16(efgh, abcd, 0xf0);
}

SHA_TARGET static inline void join_state(__m128i abef, __m128i cdgh, uint32_t *state) {
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((__m128i *)(void *)state, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i *)(void *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* FIPS 180-4, 6.2.2, of `streams` streams in turn, four rounds of each at a time. */
SHA_TARGET static inline __attribute__((always_inline)) void
hash_streams(const int streams, uint32_t *const *state, const unsigned char *const *bytes, size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i abef[2], cdgh[2];
  for (int s = 0; s < streams; s++) split_state(state[s], &abef[s], &cdgh[s]);
  for (size_t block = 0; block < blocks; block++) {
    __m128i w[2][4], abef_before[2], cdgh_before[2];
    for (int s = 0; s < streams; s++) {
      const void *from = bytes[s] + block * BLOCK;
      for (int i = 0; i < 4; i++) w[s][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from + i), big_endian);
      abef_before[s] = abef[s];
      cdgh_before[s] = cdgh[s];
    }
#pragma GCC unroll 16
    for (int four = 0; four < 16; four++)
      for (int s = 0; s < streams; s++) {
        __m128i *oldest = &w[s][four % 4];
        const __m128i newest = w[s][(four + 3) % 4];
        const __m128i k = _mm_load_si128((const __m128i *)(const void *)round_constants + four);
        const __m128i wk = _mm_add_epi32(*oldest, k);
        cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], wk);
        abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32(wk, 0x0e));
        if (four >= 12) continue;
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(*oldest, w[s][(four + 1) % 4]),
                                          _mm_alignr_epi8(newest, w[s][(four + 2) % 4], 4));
        *oldest = _mm_sha256msg2_epu32(sum, newest);
      }
    for (int s = 0; s < streams; s++) {
      abef[s] = _mm_add_epi32(abef[s], abef_before[s]);
      cdgh[s] = _mm_add_epi32(cdgh[s], cdgh_before[s]);
    }
  }
  for (int s = 0; s < streams; s++) join_state(abef[s], cdgh[s], state[s]);
}

SHA_TARGET static void hash_one(uint32_t *state, const unsigned char *bytes, size_t blocks) {
  hash_streams(1, &state, &bytes, blocks);
}

SHA_TARGET static void hash_two(uint32_t *const *state, const unsigned char *const *bytes, size_t blocks) {
  hash_streams(2, state, bytes, blocks);
}

#else

static const uint32_t initial[8];
static bool has_instructions(void) { return false; }
static void hash_one(uint32_t *state, const unsigned char *bytes, size_t blocks) {
  (void)state, (void)bytes, (void)blocks;
}
static void hash_two(uint32_t *const *state, const unsigned char *const *bytes, size_t blocks) {
  (void)state, (void)bytes, (void)blocks;
}

#endif

/* ---- streams of any length ---- */

static _Noreturn void openssl_failed(void) { nps_fatal("SHA-256 of the OpenSSL library does not work"); }

nps_sha_t *nps_sha_new(bool portable) {
  nps_sha_t *sha = nps_xcalloc(1, sizeof *sha);
  memcpy(sha->state, initial, sizeof initial);
  if (!portable && has_instructions()) return sha;
  sha->portable = EVP_MD_CTX_new();
  if (!sha->portable || EVP_DigestInit_ex(sha->portable, EVP_sha256(), NULL) != 1) openssl_failed();
  return sha;
}

/* Takes the bytes that the block that has begun still needs. @return how many, at most n */
static size_t complete_block(nps_sha_t *sha, const unsigned char *bytes, size_t n) {
  const size_t have = sha->bytes % BLOCK;
  if (have == 0 || n == 0) return 0;
  const size_t taken = n < BLOCK - have ? n : BLOCK - have;
  memcpy(sha->rest + have, bytes, taken);
  sha->bytes += taken;
  if (have + taken == BLOCK) hash_one(sha->state, sha->rest, 1);
  return taken;
}

static void add_whole_blocks(nps_sha_t *sha, const unsigned char *bytes, size_t n) {
  const size_t whole = n / BLOCK * BLOCK;
  hash_one(sha->state, bytes, whole / BLOCK);
  memcpy(sha->rest, bytes + whole, n - whole);
  sha->bytes += n;
}

void nps_sha_add(nps_sha_t *sha, const void *bytes, size_t n) {
  if (sha->portable) {
    if (EVP_DigestUpdate(sha->portable, bytes, n) != 1) openssl_failed();
    return;
  }
  const size_t taken = complete_block(sha, bytes, n);
  if (taken < n) add_whole_blocks(sha, (const unsigned char *)bytes + taken, n - taken);
}

void nps_sha_add_two(nps_sha_t *one, const void *bytes_of_one, nps_sha_t *other, const void *bytes_of_other, size_t n) {
  if (one->portable || other->portable) {
    nps_sha_add(one, bytes_of_one, n);
    nps_sha_add(other, bytes_of_other, n);
    return;
  }
  const size_t x = complete_block(one, bytes_of_one, n), y = complete_block(other, bytes_of_other, n);
  const size_t both = (n - (x > y ? x : y)) / BLOCK * BLOCK;
  const unsigned char *bytes[] = {(const unsigned char *)bytes_of_one + x, (const unsigned char *)bytes_of_other + y};
  hash_two((uint32_t *[]){one->state, other->state}, bytes, both / BLOCK);
  one->bytes += both;
  other->bytes += both;
  nps_sha_add(one, bytes[0] + both, n - x - both);
  nps_sha_add(other, bytes[1] + both, n - y - both);
}

/* A 1 bit, zeros, and the length in bits, big-endian, at the end of a block. */
static void pad(nps_sha_t *sha) {
  unsigned char padding[2 * BLOCK] = {0x80};
  const uint64_t bits = sha->bytes * 8;
  const size_t have = sha->bytes % BLOCK, n = (have < BLOCK - 8 ? BLOCK : 2 * BLOCK) - have;
  for (int i = 0; i < 8; i++) padding[n - 1 - (size_t)i] = (unsigned char)(bits >> (8 * i));
  nps_sha_add(sha, padding, n);
}

void nps_sha_end(nps_sha_t *sha, unsigned char digest[NPS_SHA_BYTES]) {
  if (sha->portable) {
    if (EVP_DigestFinal_ex(sha->portable, digest, NULL) != 1) openssl_failed();
  } else {
    pad(sha);
    for (int i = 0; i < NPS_SHA_BYTES; i++) digest[i] = (unsigned char)(sha->state[i / 4] >> (24 - 8 * (i % 4)));
  }
  nps_sha_free(sha);
}

void nps_sha_free(nps_sha_t *sha) {
  if (!sha) return;
  EVP_MD_CTX_free(sha->portable);
  free(sha);
}
