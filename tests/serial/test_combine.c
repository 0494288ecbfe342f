/* The arithmetic of the task-arithmetic family against its definition, entry by entry. */
#include "../nps_check.h"
#include "combine.h"

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

START_TEST(entries_without_their_bit_are_dropped) {
  for (int n = 0; n <= N; n++) {
    float x[N + 1];
    uint8_t stays[(N + 7) / 8];
    int kept = 0;
    for (int i = 0; i < N + 1; i++) x[i] = (float)(i + 1);
    for (int i = 0; i < (N + 7) / 8; i++) stays[i] = (uint8_t)(0x9d * (i + 1));
    const int64_t found = nps_drop(x, stays, n);
    for (int i = 0; i < N + 1; i++) {
      const bool stay = i >= n || stays[i / 8] >> (i % 8) & 1;
      ck_assert(x[i] == (stay ? (float)(i + 1) : 0));
      kept += i < n && stay;
    }
    ck_assert_int_eq(found, kept);
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("combine");
  tcase_add_test(cases, sums_are_those_of_the_definition);
  tcase_add_test(cases, entries_without_their_bit_are_dropped);
  return run_tests("combine", cases);
}
