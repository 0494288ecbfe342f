/* SHA-256 against OpenSSL's, which has no part in the code under test where the processor has SHA instructions. */
#include "../nps_check.h"
#include "sha256.h"

#include <openssl/evp.h>

enum { MOST = 1000 };

static unsigned char text[2][MOST + 1];

static bool is_right(nps_sha_t *sha, const unsigned char *bytes, size_t n) {
  unsigned char found[NPS_SHA_BYTES], expected[NPS_SHA_BYTES];
  nps_sha_end(sha, found);
  return EVP_Digest(bytes, n, expected, NULL, EVP_sha256(), NULL) == 1 && memcmp(found, expected, sizeof found) == 0;
}

/* Parts end at all positions within a block of 64 bytes. */
START_TEST(any_length_in_any_two_parts) {
  for (size_t n = 0; n <= 200; n++)
    for (size_t first = 0; first <= n; first++) {
      nps_sha_t *sha = nps_sha_new(_i);
      nps_sha_add(sha, text[0], first);
      nps_sha_add(sha, text[0] + first, n - first);
      ck_assert_msg(is_right(sha, text[0], n), "%d bytes, the first %d apart", (int)n, (int)first);
    }
}
END_TEST

/* Two streams of which each has some bytes before the stretch they share, and some after it. */
static bool two_are_right(bool portable, size_t x, size_t y, size_t n, size_t after) {
  nps_sha_t *one = nps_sha_new(portable), *other = nps_sha_new(portable);
  nps_sha_add(one, text[0], x);
  nps_sha_add(other, text[1], y);
  nps_sha_add_two(one, text[0] + x, other, text[1] + y, n);
  nps_sha_add(one, text[0] + x + n, after);
  nps_sha_add(other, text[1] + y + n, 2 * after);
  const bool first = is_right(one, text[0], x + n + after);
  return is_right(other, text[1], y + n + 2 * after) && first;
}

START_TEST(two_streams_do_not_disturb_each_other) {
  const size_t lengths[] = {0, 1, 55, 63, 64, 65, 127, 128, 129, 500};
  for (size_t x = 0; x <= 70; x++)
    for (size_t y = 0; y <= 70; y++)
      for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        ck_assert_msg(two_are_right(_i, x, y, lengths[i], (x + y) % 80), "%d and %d bytes, then %d of both", (int)x,
                      (int)y, (int)lengths[i]);
}
END_TEST

/* Lengths around 2^32 bits. */
START_TEST(a_long_stream) {
  const size_t part = (size_t)64 << 20, parts = 8;
  unsigned char *zeros = nps_xcalloc(part, 1), found[NPS_SHA_BYTES], expected[NPS_SHA_BYTES];
  nps_sha_t *one = nps_sha_new(_i), *other = nps_sha_new(_i);
  EVP_MD_CTX *reference = EVP_MD_CTX_new();
  ck_assert_int_eq(EVP_DigestInit_ex(reference, EVP_sha256(), NULL), 1);
  for (size_t i = 0; i < parts; i++) {
    nps_sha_add_two(one, zeros, other, zeros, part);
    EVP_DigestUpdate(reference, zeros, part);
  }
  nps_sha_add(one, text[0], 3);
  EVP_DigestUpdate(reference, text[0], 3);
  ck_assert_int_eq(EVP_DigestFinal_ex(reference, expected, NULL), 1);
  nps_sha_end(one, found);
  ck_assert_mem_eq(found, expected, sizeof found);
  nps_sha_free(other);
  EVP_MD_CTX_free(reference);
  free(zeros);
}
END_TEST

int main(void) {
  uint64_t seed = 1;
  for (size_t i = 0; i <= MOST; i++)
    for (int s = 0; s < 2; s++) text[s][i] = (unsigned char)next_random(&seed);
  TCase *cases = tcase_create("sha256");
  tcase_add_loop_test(cases, any_length_in_any_two_parts, 0, 2);
  tcase_add_loop_test(cases, two_streams_do_not_disturb_each_other, 0, 2);
  tcase_add_test(cases, a_long_stream);
  return run_tests("sha256", cases);
}
