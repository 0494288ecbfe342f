/* The arithmetic of the task-arithmetic family against its definition, entry by entry. */
#include "../nps_check.h"
#include "combine.h"

#include <math.h>

enum { MOST_MODELS = 6, N = 43 };

static float tau[MOST_MODELS][N];
static float *rows[MOST_MODELS];
static const double weight[MOST_MODELS] = {0.3, 0.3, -0.7, 1.1, 0.25, 2};
static const double scale[MOST_MODELS] = {1.9, 2, 2.1, 0.5, 1, 3};

/* Entries of both signs, zeros of both signs, and models that cancel. */
static void fill(void) {
  uint32_t x = 7;
  for (int m = 0; m < MOST_MODELS; m++) {
    rows[m] = tau[m];
    for (int i = 0; i < N; i++) {
      x = x * 1664525u + 1013904223u;
      tau[m][i] = x >> 29 == 0 ? 0.0f : x >> 29 == 1 ? -0.0f : (float)((int)(x >> 20) - 2048) / 512;
    }
  }
  tau[0][5] = 1, tau[1][5] = -1;
}

static double expected(const nps_combination_t *c, int i) {
  double value[MOST_MODELS], elected = 0, sum = 0, divisor = 0;
  for (int m = 0; m < c->models; m++) {
    value[m] = c->weight[m] * ((c->scale ? c->scale[m] : 1) * (double)c->tau[m][i]);
    elected += value[m];
  }
  if (!c->consensus) return elected;
  for (int m = 0; m < c->models; m++) {
    if (elected >= 0 ? value[m] <= 0 : value[m] >= 0) continue;
    sum += value[m];
    divisor += c->weight[m];
  }
  return c->normalize ? c->lambda * sum / (divisor == 0 ? 1 : divisor) : sum;
}

START_TEST(sums_are_those_of_the_definition) {
  fill();
  for (int models = 1; models <= MOST_MODELS; models++)
    for (int n = 0; n <= N; n++)
      for (int form = 0; form < 8; form++) {
        const nps_combination_t c = {.models = models,
                                     .tau = rows,
                                     .weight = weight,
                                     .scale = form & 1 ? scale : NULL,
                                     .consensus = form & 2,
                                     .normalize = form & 4,
                                     .lambda = 0.7};
        double out[N + 1];
        out[n] = -1;
        nps_combine(&c, n, out);
        for (int i = 0; i < n; i++)
          ck_assert_msg(out[i] == expected(&c, i), "%d models, form %d, entry %d of %d: %.17g", models, form, i, n,
                        out[i]);
        ck_assert(out[n] == -1);
      }
}
END_TEST

enum { BITS = 107 };
static uint8_t stays[(BITS + 7) / 8];

static void fill_bits(void) {
  for (int i = 0; i < (BITS + 7) / 8; i++) stays[i] = (uint8_t)(0x9d * (i + 1));
}

START_TEST(entries_without_their_bit_are_dropped) {
  fill_bits();
  for (int n = 0; n <= BITS; n++) {
    float x[BITS + 1];
    int kept = 0;
    for (int i = 0; i < BITS + 1; i++) x[i] = (float)(i + 1);
    const int64_t found = nps_drop(x, stays, n);
    for (int i = 0; i < BITS + 1; i++) {
      const bool stay = i >= n || stays[i / 8] >> (i % 8) & 1;
      ck_assert(x[i] == (stay ? (float)(i + 1) : 0));
      kept += i < n && stay;
    }
    ck_assert_int_eq(found, kept);
  }
}
END_TEST

/* Magnitudes so different that another order of additions gives other bits. */
START_TEST(magnitudes_of_all_and_of_those_that_stay_are_added) {
  fill_bits();
  for (int n = 0; n <= BITS; n++) {
    nps_lanes_t all = {{0}}, kept = {{0}};
    double expected_all[16] = {0}, expected_kept[16] = {0};
    float x[BITS];
    for (int i = 0; i < BITS; i++) x[i] = ldexpf((float)(i % 2 ? 37 * i + 1 : -41 * i), i * 29 % 70 - 35);
    nps_add_magnitudes(&all, &kept, x, stays, n);
    for (int i = 0; i < n; i++) {
      expected_all[i % 16] += fabs((double)x[i]);
      if (stays[i / 8] >> (i % 8) & 1) expected_kept[i % 16] += fabs((double)x[i]);
    }
    ck_assert_mem_eq(all.lane, expected_all, sizeof expected_all);
    ck_assert_mem_eq(kept.lane, expected_kept, sizeof expected_kept);
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("combine");
  tcase_add_test(cases, sums_are_those_of_the_definition);
  tcase_add_test(cases, entries_without_their_bit_are_dropped);
  tcase_add_test(cases, magnitudes_of_all_and_of_those_that_stay_are_added);
  return run_tests("combine", cases);
}
