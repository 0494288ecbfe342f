#include "../nps_check.h"
#include "nps/rng.h"

/* The known answers for philox4x32-10 that come with Random123. */
START_TEST(blocks_are_the_published_ones) {
  static const struct {
    uint32_t counter[4], key[2], out[4];
  } known[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    uint32_t out[4];
    nps_philox4x32(known[i].counter, known[i].key, out);
    ck_assert_mem_eq(out, known[i].out, sizeof out);
  }
}
END_TEST

/* The definition, with 64-bit divisions for the halves of a product. */
static void philox_slowly(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  uint64_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
  const uint64_t two32 = (uint64_t)1 << 32;
  for (int round = 0; round < 10; round++) {
    uint64_t p = c[0] * 0xD2511F53u, q = c[2] * 0xCD9E8D57u;
    uint64_t next[4] = {(q / two32) ^ c[1] ^ k[0], q % two32, (p / two32) ^ c[3] ^ k[1], p % two32};
    memcpy(c, next, sizeof c);
    k[0] = (k[0] + 0x9E3779B9u) % two32;
    k[1] = (k[1] + 0xBB67AE85u) % two32;
  }
  for (int i = 0; i < 4; i++) out[i] = (uint32_t)c[i];
}

START_TEST(blocks_are_those_of_the_definition) {
  uint32_t x = 1;
  for (int i = 0; i < 2000; i++) {
    uint32_t words[6], out[4], expected[4];
    for (int j = 0; j < 6; j++) words[j] = x = x * 1664525u + 1013904223u;
    nps_philox4x32(words, words + 4, out);
    philox_slowly(words, words + 4, expected);
    ck_assert_mem_eq(out, expected, sizeof out);
  }
}
END_TEST

static uint32_t word_at(uint64_t key, uint32_t lane, int64_t position) {
  const uint64_t block = (uint64_t)position / 4;
  const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), lane, 0};
  const uint32_t keys[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
  uint32_t out[4];
  philox_slowly(counter, keys, out);
  return out[position % 4];
}

/* The last three lie around the positions at which the counter's lower word runs over, and at the far end. */
static const int64_t starts[] = {
    0, 4, 124, 128, 65536, (int64_t)1 << 33, ((int64_t)1 << 34) - 256, ((int64_t)1 << 34) + 4, INT64_MAX - 1023};

START_TEST(words_are_the_blocks_one_after_the_other) {
  const int64_t first = starts[_i];
  const int lengths[] = {0, 1, 3, 4, 5, 63, 64, 127, 128, 129, 131, 255, 256, 600};
  const uint64_t keys[] = {0, 1, UINT64_C(0x0123456789abcdef), UINT64_MAX};
  const uint32_t lanes[] = {0, 1, 7, UINT32_MAX};
  for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
    for (int k = 0; k < 4; k++) {
      uint32_t out[601];
      out[lengths[l]] = 0x5a5a5a5a;
      nps_rng_words(keys[k], lanes[k], first, lengths[l], out);
      for (int i = 0; i < lengths[l]; i++) ck_assert_uint_eq(out[i], word_at(keys[k], lanes[k], first + i));
      ck_assert_uint_eq(out[lengths[l]], 0x5a5a5a5a);
    }
}
END_TEST

START_TEST(words_do_not_depend_on_the_cut) {
  enum { N = 5000 };
  const int64_t first = ((int64_t)1 << 34) - 2400;
  static uint32_t whole[N], parts[N];
  nps_rng_words(42, 9, first, N, whole);
  uint32_t x = 7;
  for (int repeat = 0; repeat < 100; repeat++) {
    memset(parts, 0, sizeof parts);
    for (int at = 0; at < N;) {
      x = x * 1664525u + 1013904223u;
      int n = 4 * (int)(1 + (x >> 16) % (repeat < 50 ? 10 : 200));
      if (n > N - at) n = N - at;
      nps_rng_words(42, 9, first + at, n, parts + at);
      at += n;
    }
    ck_assert_mem_eq(parts, whole, sizeof whole);
  }
}
END_TEST

START_TEST(words_below_a_limit_are_marked) {
  enum { N = 201 };
  const int64_t first = _i ? ((int64_t)1 << 34) - 64 : 64; /* where the counter's lower word runs over, and elsewhere */
  const uint32_t limits[] = {0, 1, 0x7fffffff, 0x80000000, 0xccccccccu, 0xffffffffu};
  for (int n = 0; n <= N; n++)
    for (int l = 0; l < 6; l++) {
      uint8_t bits[(N + 7) / 8];
      memset(bits, 0xff, sizeof bits);
      nps_rng_below(17, 3, first, n, limits[l], bits);
      for (int i = 0; i < (n + 7) / 8 * 8; i++)
        ck_assert_int_eq(bits[i / 8] >> (i % 8) & 1, i < n && word_at(17, 3, first + i) < limits[l]);
    }
}
END_TEST

/* A gross check that nothing was lost on the way to the array: 16 standard deviations. */
START_TEST(bits_are_balanced) {
  enum { N = 1 << 16 };
  static uint32_t words[N];
  nps_rng_words(2026, 0, 0, N, words);
  for (int bit = 0; bit < 32; bit++) {
    int ones = 0;
    for (int i = 0; i < N; i++) ones += (int)(words[i] >> bit & 1u);
    ck_assert_int_le(abs(ones - N / 2), 16 * 128);
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("rng");
  tcase_add_test(cases, blocks_are_the_published_ones);
  tcase_add_test(cases, blocks_are_those_of_the_definition);
  tcase_add_loop_test(cases, words_are_the_blocks_one_after_the_other, 0, (int)(sizeof starts / sizeof *starts));
  tcase_add_test(cases, words_do_not_depend_on_the_cut);
  tcase_add_loop_test(cases, words_below_a_limit_are_marked, 0, 2);
  tcase_add_test(cases, bits_are_balanced);
  return run_tests("rng", cases);
}
