/* The code of blocks: what comes back, and what is refused. */
#include "../nps_check.h"
#include "block_code.h"

#include <math.h>

typedef struct {
  nps_text_t positions, values;
  float scales[NPS_BLOCK / NPS_UNIT];
  nps_block_row_t row;
} coded_t;

static coded_t encode(int bits, float *x, int64_t n) {
  coded_t c = {0};
  nps_block_coder_t *coder = nps_block_coder_new(bits);
  c.row = nps_block_encode(coder, x, n, &c.positions, &c.values, c.scales);
  nps_block_coder_free(coder);
  return c;
}

static const char *decode(int bits, const coded_t *c, int64_t n, float *x) {
  nps_block_coder_t *coder = nps_block_coder_new(bits);
  const char *wrong = nps_block_decode(coder, c->row, (const uint8_t *)c->positions.text,
                                       (const uint8_t *)c->values.text, c->scales, n, x);
  nps_block_coder_free(coder);
  return wrong;
}

static void free_coded(coded_t *c) {
  free(c->positions.text);
  free(c->values.text);
}

/* Of n entries about one of `every`, of both signs. */
static float *sparse(int64_t n, int every) {
  float *x = nps_xcalloc((size_t)n + 1, sizeof *x);
  uint32_t state = 12345;
  for (int64_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    if ((state >> 8) % (uint32_t)every == 0) x[i] = ((float)(state >> 8) / 8388608.0f - 1.0f) * 0.01f;
  }
  return x;
}

START_TEST(blocks_come_back) {
  static const int64_t counts[] = {1, 7, 1023, 1024, 1025, 40000, NPS_BLOCK};
  static const int every[] = {1, 2, 10, 1000, 1000000}, bits[] = {4, 8, 16};
  for (int i = 0; i < 7; i++)
    for (int j = 0; j < 5; j++)
      for (int b = 0; b < 3; b++) {
        const int64_t n = counts[i];
        float *x = sparse(n, every[j]), *exact = sparse(n, every[j]), *back = nps_xcalloc((size_t)n, sizeof *back);
        coded_t c = encode(bits[b], x, n);
        ck_assert_ptr_null(decode(bits[b], &c, n, back));
        ck_assert_mem_eq(x, back, (size_t)n * sizeof *x);
        for (int64_t k = 0; k < n; k++) /* half a step, and float32's own rounding */
          ck_assert(fabs((double)x[k] - (double)exact[k]) <= 0.503 * (double)c.scales[k / NPS_UNIT]);
        free_coded(&c);
        free(x);
        free(exact);
        free(back);
      }
}
END_TEST

/* The entropy of a mask of density p is H(p) bits an entry; Rice's code needs at most 4 % more here. */
START_TEST(positions_take_little_more_than_their_entropy) {
  static const int every[] = {2, 5, 10, 50};
  for (int j = 0; j < 4; j++) {
    float *x = sparse(NPS_BLOCK, every[j]);
    coded_t c = encode(8, x, NPS_BLOCK);
    const double p = (double)c.row.kept / NPS_BLOCK, entropy = -(p * log2(p) + (1 - p) * log2(1 - p));
    ck_assert(8.0 * c.row.position_bytes / NPS_BLOCK < 1.04 * entropy);
    free_coded(&c);
    free(x);
  }
}
END_TEST

START_TEST(nothing_kept_takes_no_bytes) {
  float x[2000] = {0};
  coded_t c = encode(8, x, 2000);
  ck_assert_int_eq(c.row.kept, 0);
  ck_assert_int_eq(c.row.position_bytes + c.row.value_bytes, 0);
  ck_assert_ptr_null(decode(8, &c, 2000, x));
  free_coded(&c);
}
END_TEST

START_TEST(infinity_is_told) {
  float x[3] = {1, INFINITY, 2}, back[3];
  coded_t c = encode(8, x, 3);
  ck_assert(!isfinite(x[0]) || !isfinite(x[1]));
  ck_assert_ptr_nonnull(decode(8, &c, 3, back));
  free_coded(&c);
}
END_TEST

/* Whatever is changed, with a checksum that fits: an error or a block, never a read or write outside. */
START_TEST(damaged_blocks_are_refused_or_stay_within) {
  enum { N = 3000 };
  float *x = sparse(N, 10), back[N];
  coded_t c = encode(8, x, N);
  nps_block_coder_t *coder = nps_block_coder_new(8);
  uint32_t state = 1;
  int refused = 0;
  for (int round = 0; round < 3000; round++) {
    coded_t d = c;
    uint8_t *positions = malloc((size_t)c.row.position_bytes), *values = malloc((size_t)c.row.value_bytes);
    memcpy(positions, c.positions.text, (size_t)c.row.position_bytes);
    memcpy(values, c.values.text, (size_t)c.row.value_bytes);
    state = state * 1664525u + 1013904223u;
    const int32_t r = (int32_t)(state >> 8);
    switch (round % 5) {
    case 0:
      positions[r % c.row.position_bytes] ^= (uint8_t)(1 << r % 7);
      break;
    case 1:
      values[r % c.row.value_bytes] ^= (uint8_t)(1 << r % 7);
      break;
    case 2:
      d.row.kept = r % 5 ? r % (2 * N) - 10 : r;
      break;
    case 3:
      d.row.position_bytes = r % c.row.position_bytes;
      break;
    default:
      d.row.value_bytes = r % c.row.value_bytes;
    }
    ck_assert_ptr_nonnull(nps_block_decode(coder, d.row, positions, values, c.scales, N, back));
    d.row.checksum = nps_block_checksum(d.row, positions, values, c.scales, N);
    refused += nps_block_decode(coder, d.row, positions, values, c.scales, N, back) != NULL;
    free(positions);
    free(values);
  }
  ck_assert_int_gt(refused, 1500);
  nps_block_coder_free(coder);
  free_coded(&c);
  free(x);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("block_code");
  tcase_add_test(cases, blocks_come_back);
  tcase_add_test(cases, positions_take_little_more_than_their_entropy);
  tcase_add_test(cases, nothing_kept_takes_no_bytes);
  tcase_add_test(cases, infinity_is_told);
  tcase_add_test(cases, damaged_blocks_are_refused_or_stay_within);
  return run_tests("block_code", cases);
}
