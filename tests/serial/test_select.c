#include "../naive_select.h"
#include "../nps_check_mpi.h"
#include "nps/delta.h"

static nps_select_t *selection; /* used again and again, as in a merge */

static float of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* ---- kinds of entries ---- */

static float normal_like(uint64_t *s) {
  return (float)((double)(next_random(s) + next_random(s)) / 2147483648.0 - 1) * 0.01f;
}

static float few_different(uint64_t *s) { return (float)((int)(next_random(s) % 7) - 3) * 0.125f; }

static float zero(uint64_t *s) { return next_random(s) % 2 ? 0.0f : -0.0f; }

static float equal(uint64_t *s) { return next_random(s) % 2 ? 1.5f : -1.5f; }

/* Subnormals, zeros of both signs, and a few others. */
static float tiny(uint64_t *s) {
  uint32_t bits = (uint32_t)next_random(s) % 6 ? (uint32_t)next_random(s) % 5000 : 0x3f800000u;
  return of_bits(bits | (next_random(s) % 2 ? 0x80000000u : 0));
}

/* All in one bin of the upper bits. */
static float near_one(uint64_t *s) { return of_bits(0x3f800000u + (uint32_t)next_random(s) % 0x8000u); }

/* At and around the borders between bins. */
static float at_borders(uint64_t *s) {
  return of_bits((uint32_t)(next_random(s) % 4 * 0x8000u + 0x3f800000u - 1 + next_random(s) % 3));
}

/* Any finite bits, the largest number included. */
static float anything(uint64_t *s) {
  uint32_t bits = (uint32_t)(next_random(s) << 1);
  return (bits & 0x7f800000u) == 0x7f800000u ? of_bits(0x7f7fffffu) : of_bits(bits);
}

typedef float entry_fn(uint64_t *state);
static entry_fn *const kinds[] = {normal_like, few_different, zero, equal, tiny, near_one, at_borders, anything};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- the selection under test ---- */

/* Pass 0 is shown one of `stride` entries. */
static void count_part(const float *x, int64_t n, int stride, int64_t chunk) {
  if (stride > 1)
    for (int64_t at = 0; at < n; at += stride) nps_select_count(selection, 0, x + at, 1);
  for (int pass = 0; pass < 2; pass++) {
    for (int64_t at = 0; (pass == 1 || stride == 1) && at < n; at += chunk)
      nps_select_count(selection, pass, x + at, n - at < chunk ? n - at : chunk);
    nps_select_reduce(selection, pass, comm);
  }
}

static void count_all(const float *x, int64_t n, int64_t chunk) { count_part(x, n, 1, chunk); }

static void find_threshold(int64_t k, const float *x, int64_t n, int64_t chunk) {
  nps_select_start(selection, k);
  count_all(x, n, chunk);
}

static int64_t keep_all(float *x, int64_t n, int64_t chunk) {
  int64_t kept = 0;
  for (int64_t at = 0; at < n; at += chunk) kept += nps_select_keep(selection, x + at, n - at < chunk ? n - at : chunk);
  return kept;
}

enum { MOST = 7001 };

static bool selects_as_sorting_does(entry_fn *kind, uint64_t seed, int64_t n, int64_t k, int64_t chunk) {
  float expected[MOST], found[MOST] = {0}, again[MOST] = {0};
  for (int64_t i = 0; i < n; i++) expected[i] = found[i] = again[i] = kind(&seed);
  find_threshold(k, found, n, chunk);
  int64_t kept = keep_all(found, n, chunk);
  nps_select_rewind(selection);
  const int64_t kept_again = keep_all(again, n, chunk);
  keep_slowly(expected, n, k);
  return kept == (k < n ? k : n) && kept_again == kept && memcmp(found, expected, (size_t)n * sizeof *found) == 0 &&
         memcmp(again, expected, (size_t)n * sizeof *again) == 0;
}

START_TEST(what_is_kept_is_what_sorting_keeps) {
  const int64_t lengths[] = {1, 2, 17, 2048, 2049, MOST}, chunks[] = {1, 100, NPS_CHUNK};
  for (int l = 0; l < 6; l++) {
    const int64_t n = lengths[l], keeps[] = {0, 1, n / 10, n / 3, n / 2, n - 1, n};
    for (int k = 0; k < 7; k++)
      for (int c = 0; c < 3; c++)
        ck_assert_msg(selects_as_sorting_does(kinds[_i], 7 + (uint64_t)l, n, keeps[k], chunks[c]),
                      "kind %d: %lld of %lld, chunks of %lld", _i, (long long)keeps[k], (long long)n,
                      (long long)chunks[c]);
  }
}
END_TEST

START_TEST(every_count_of_a_small_array_is_right) {
  for (int64_t n = 0; n <= 12; n++)
    for (int64_t k = 0; k <= n; k++)
      for (uint64_t seed = 0; seed < 3; seed++)
        ck_assert_msg(selects_as_sorting_does(kinds[_i], seed, n, k, 5), "kind %d: %lld of %lld, seed %d", _i,
                      (long long)k, (long long)n, (int)seed);
}
END_TEST

/* Pass 0 looks at a part; where pass 1 misses, both are made again. */
static bool part_is_enough(entry_fn *kind, uint64_t seed, int64_t k, int stride, int64_t chunk) {
  float expected[MOST], found[MOST];
  for (int64_t i = 0; i < MOST; i++) expected[i] = found[i] = kind(&seed);
  nps_select_start(selection, k);
  nps_select_sample(selection, MOST);
  count_part(found, MOST, stride, chunk);
  if (nps_select_missed(selection)) {
    nps_select_restart(selection);
    count_all(found, MOST, chunk);
  }
  const int64_t kept = keep_all(found, MOST, chunk);
  keep_slowly(expected, MOST, k);
  return !nps_select_missed(selection) && kept == k && memcmp(found, expected, sizeof found) == 0;
}

START_TEST(a_part_leads_to_the_same_selection) {
  const int64_t keeps[] = {0, 1, 2, MOST / 100, MOST / 3, MOST / 2, MOST - 1, MOST};
  const int strides[] = {2, 3, 16, 1000};
  for (int k = 0; k < 8; k++)
    for (int s = 0; s < 4; s++)
      ck_assert_msg(part_is_enough(kinds[_i], 11 + (uint64_t)k, keeps[k], strides[s], s == 1 ? 100 : NPS_CHUNK),
                    "kind %d: %d kept, one of %d looked at", _i, (int)keeps[k], strides[s]);
}
END_TEST

/* What pass 0 sees tells nothing about what pass 1 sees: too large, too small, or all different. */
START_TEST(a_bracket_that_misses_is_noticed) {
  enum { N = 4096 };
  float seen[N], x[N], expected[N];
  const float factors[] = {1e-3f, 1e3f, 1.02f};
  uint64_t seed = 3;
  for (int i = 0; i < N; i++) x[i] = expected[i] = normal_like(&seed), seen[i] = x[i] * factors[_i];
  nps_select_start(selection, N / 2);
  nps_select_sample(selection, N);
  nps_select_count(selection, 0, seen, N);
  nps_select_reduce(selection, 0, comm);
  nps_select_count(selection, 1, x, N);
  nps_select_reduce(selection, 1, comm);
  ck_assert(nps_select_missed(selection));
  nps_select_restart(selection);
  count_all(x, N, NPS_CHUNK);
  ck_assert(!nps_select_missed(selection));
  ck_assert_int_eq(keep_all(x, N, NPS_CHUNK), N / 2);
  keep_slowly(expected, N, N / 2);
  ck_assert_mem_eq(x, expected, sizeof x);
}
END_TEST

/* A part of many entries hits, so that the time of the second round is saved. */
START_TEST(a_large_part_hits) {
  enum { N = 1 << 20 };
  float *x = nps_xcalloc(N, sizeof *x);
  uint64_t seed = 5;
  for (int i = 0; i < N; i++) x[i] = (float)((double)(next_random(&seed) + next_random(&seed)) / 2147483648.0 - 1);
  const int64_t keeps[] = {N / 20, N / 2, N - N / 20};
  for (int k = 0; k < 3; k++) {
    nps_select_start(selection, keeps[k]);
    nps_select_sample(selection, N);
    count_part(x, N, 4, NPS_CHUNK);
    ck_assert(!nps_select_missed(selection));
  }
  free(x);
}
END_TEST

START_TEST(more_than_there_are_means_all) {
  ck_assert(selects_as_sorting_does(kinds[_i], 5, 100, 101, 30));
  ck_assert(selects_as_sorting_does(kinds[_i], 6, 100, 1000000, 30));
  ck_assert(selects_as_sorting_does(kinds[_i], 6, 0, 1, 30));
}
END_TEST

START_TEST(ties_are_counted) {
  float x[] = {1, -2, 3, 2, -1, 2, 0, 2};
  find_threshold(3, x, 8, 3);
  ck_assert_int_eq(nps_select_ties(selection), 2);
  ck_assert_int_eq(nps_select_count_ties(selection, x, 8), 4);
  ck_assert_int_eq(nps_select_count_ties(selection, x + 3, 2), 1);
  find_threshold(0, x, 8, 3);
  ck_assert_int_eq(nps_select_ties(selection), 0);
  ck_assert_int_eq(nps_select_count_ties(selection, x, 8), 0);
}
END_TEST

/* Two tensors that lie in the file in another order than their names have: ties go to the first name. */
START_TEST(ties_can_be_shared_out_in_another_order) {
  enum { A = 700, B = 500 };
  uint64_t seed = 21;
  for (int64_t k = 0; k <= A + B; k += 50) {
    float file[A + B], expected[A + B];
    for (int i = 0; i < A + B; i++) file[i] = few_different(&seed);
    memcpy(expected, file + A, B * sizeof *file);
    memcpy(expected + B, file, A * sizeof *file);
    keep_slowly(expected, A + B, k);
    find_threshold(k, file, A + B, NPS_CHUNK);
    const int64_t ties = nps_select_ties(selection), of_b = nps_select_count_ties(selection, file + A, B);
    nps_select_set_ties(selection, ties > of_b ? ties - of_b : 0);
    int64_t kept = keep_all(file, A, 64);
    nps_select_set_ties(selection, ties);
    kept += keep_all(file + A, B, 64);
    ck_assert_int_eq(kept, k);
    ck_assert_mem_eq(file + A, expected, B * sizeof *file);
    ck_assert_mem_eq(file, expected + B, A * sizeof *file);
  }
}
END_TEST

/* τ = fl32(θ − θ0), whatever the stored types. */
START_TEST(task_vectors_are_rounded_differences) {
  enum { N = 333 };
  const nps_dtype_t types[] = {NPS_F64, NPS_F32, NPS_F16, NPS_BF16};
  const nps_dtype_t base_dtype = types[_i];
  uint64_t seed = 3;
  double value[N], wide_base[N], wide[N];
  char base[N * 8], stored[4][N * 8];
  const void *tuned[4];
  float tau[4][N], *out[4];
  for (int i = 0; i < N; i++) value[i] = (double)normal_like(&seed) * (1 + 0x1p-30);
  nps_tensor_narrow(value, N, base_dtype, base);
  nps_tensor_widen(base_dtype, base, N, wide_base);
  for (int m = 0; m < 4; m++) {
    for (int i = 0; i < N; i++) value[i] = (double)normal_like(&seed) * (1 + 0x1p-31);
    nps_tensor_narrow(value, N, types[m], stored[m]);
    tuned[m] = stored[m];
    out[m] = tau[m];
  }
  nps_delta_form(base_dtype, base, 4, types, tuned, N, out);
  for (int m = 0; m < 4; m++) {
    int wrong = 0;
    nps_tensor_widen(types[m], stored[m], N, wide);
    for (int i = 0; i < N; i++) wrong += tau[m][i] != (float)(wide[i] - wide_base[i]);
    ck_assert_int_eq(wrong, 0);
  }
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  selection = nps_select_new();
  TCase *cases = tcase_create("select");
  tcase_add_loop_test(cases, what_is_kept_is_what_sorting_keeps, 0, KINDS);
  tcase_add_loop_test(cases, every_count_of_a_small_array_is_right, 0, KINDS);
  tcase_add_loop_test(cases, more_than_there_are_means_all, 0, KINDS);
  tcase_add_loop_test(cases, a_part_leads_to_the_same_selection, 0, KINDS);
  tcase_add_loop_test(cases, a_bracket_that_misses_is_noticed, 0, 3);
  tcase_add_test(cases, a_large_part_hits);
  tcase_add_test(cases, ties_are_counted);
  tcase_add_test(cases, ties_can_be_shared_out_in_another_order);
  tcase_add_loop_test(cases, task_vectors_are_rounded_differences, 0, 4);
  int64_t failed = run_tests_everywhere("select", cases);
  nps_select_free(selection);
  return end_mpi(failed);
}
