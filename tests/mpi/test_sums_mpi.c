#include "../nps_check_mpi.h"
#include "nps/delta.h"

#include <float.h>
#include <math.h>

enum { MOST = 9 * NPS_BLOCK };

static float *x; /* [MOST] */

/* Values of very different sizes, so that another order of additions gives other bits. */
static void set_up(void) {
  uint64_t state = 5;
  x = nps_xcalloc(MOST, sizeof *x);
  for (int i = 0; i < MOST; i++)
    x[i] = (float)ldexp((double)next_random(&state) - 1073741824.0, (int)(next_random(&state) % 30) - 45);
}

static void tear_down(void) { free(x); }

/* The definition: lanes over each block, then the blocks in order. */
static double sum_slowly(int64_t count) {
  double total = 0;
  for (int64_t at = 0; at < count; at += NPS_BLOCK) {
    nps_lanes_t lanes = {{0}};
    for (int64_t i = at; i < count && i < at + NPS_BLOCK; i++) lanes.lane[(i - at) % 16] += (double)x[i] * (double)x[i];
    total += nps_lanes_sum(&lanes);
  }
  return total;
}

/* This rank's stretch, from block `first` to block `last`. */
static void add_blocks(nps_block_sums_t *sums, int64_t count, int64_t first, int64_t last, int64_t chunk) {
  const int64_t end = last * NPS_BLOCK < count ? last * NPS_BLOCK : count;
  for (int64_t at = first * NPS_BLOCK, n; at < end; at += n) {
    n = NPS_BLOCK - at % NPS_BLOCK;
    if (n > chunk) n = chunk;
    if (n > end - at) n = end - at;
    nps_lanes_add_squares(&sums->lanes, x + at, n);
    nps_block_sums_advance(sums, at, n, at + n == end);
  }
}

static const int64_t counts[] = {
    0, 1, 1000, NPS_BLOCK, NPS_BLOCK + 1, 3 * NPS_BLOCK - 16, 5 * NPS_BLOCK + 12345, MOST, 2 * NPS_BLOCK + 5, 7};
enum { COUNTS = sizeof counts / sizeof *counts };

static int64_t clamp(int64_t v, int64_t most) { return v < most ? v : most; }

/* Where rank r's blocks start: even, all on the first rank, all on the last, random. */
enum { EVEN, ALL_ON_FIRST, ALL_ON_LAST, RANDOM, CUTS };

static int64_t first_block(int how, int r, int64_t blocks, uint64_t seed) {
  if (r == 0 || r == size) return r ? blocks : 0;
  if (how == EVEN) return blocks * r / size;
  if (how == ALL_ON_FIRST) return blocks;
  if (how == ALL_ON_LAST) return 0;
  int64_t at = 0;
  for (int i = 0; i < r; i++) at += (int64_t)(next_random(&seed) % 4);
  return clamp(at, blocks);
}

START_TEST(totals_are_the_same_bits_for_any_cut) {
  const int64_t chunks[] = {16, 1600, NPS_CHUNK, NPS_BLOCK};
  nps_block_sums_t sums = {0};
  bool same = true;
  for (int c = 0; c < COUNTS; c++) {
    const double expected = sum_slowly(counts[c]);
    const int64_t blocks = (counts[c] + NPS_BLOCK - 1) / NPS_BLOCK;
    for (int k = 0; k < 4; k++) {
      const uint64_t seed = (uint64_t)(c * 10 + k);
      nps_block_sums_start(&sums, counts[c]);
      add_blocks(&sums, counts[c], first_block(_i, rank, blocks, seed), first_block(_i, rank + 1, blocks, seed),
                 chunks[k]);
      double total = nps_block_sums_total(&sums, comm);
      same = same && memcmp(&total, &expected, sizeof total) == 0;
    }
  }
  nps_block_sums_free(&sums);
  ck_assert(everywhere(same));
}
END_TEST

START_TEST(totals_are_close_to_the_exact_sum) {
  long double exact = 0;
  for (int i = 0; i < MOST; i++) exact += (long double)x[i] * (long double)x[i];
  nps_block_sums_t sums = {0};
  nps_block_sums_start(&sums, MOST);
  add_blocks(&sums, MOST, 9 * rank / size, 9 * (rank + 1) / size, NPS_CHUNK);
  const long double error = fabsl((long double)nps_block_sums_total(&sums, comm) - exact);
  nps_block_sums_free(&sums);
  ck_assert(everywhere(error <= exact * (NPS_BLOCK / 16 + 4 + 9) * (long double)DBL_EPSILON / 2));
}
END_TEST

/* Only the ranks that hold part of a tensor add it up. */
START_TEST(a_part_of_the_ranks_can_share_a_tensor) {
  const int64_t count = 4 * NPS_BLOCK + 99, blocks = 5;
  const double expected = sum_slowly(count);
  nps_comm_t *part = NULL;
  bool same = true;
  const int first = size / 2, sharing = size - first;
  nps_comm_split(comm, rank >= first ? 0 : -1, &part);
  if (part) {
    const int r = rank - first;
    nps_block_sums_t sums = {0};
    nps_block_sums_start(&sums, count);
    add_blocks(&sums, count, blocks * r / sharing, blocks * (r + 1) / sharing, NPS_CHUNK);
    same = nps_block_sums_total(&sums, part) == expected;
    nps_block_sums_free(&sums);
  }
  nps_comm_free(part);
  ck_assert(everywhere(same));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("sums");
  tcase_add_unchecked_fixture(cases, set_up, tear_down);
  tcase_add_loop_test(cases, totals_are_the_same_bits_for_any_cut, 0, CUTS);
  tcase_add_test(cases, totals_are_close_to_the_exact_sum);
  tcase_add_test(cases, a_part_of_the_ranks_can_share_a_tensor);
  return end_mpi(run_tests_everywhere("sums", cases));
}
