#include "../nps_check_mpi.h"
#include "nps/delta.h"

#include <math.h>

enum { N = 2777, MODELS = 3, MOST = 20 };

static float x[N], value[N], score[N];

/* Magnitudes from a small set, so that many equal a threshold. */
static void fill_entries(uint64_t seed) {
  for (int i = 0; i < N; i++) x[i] = (float)((int)(next_random(&seed) % 41) - 20) * 0.0117f;
}

static int naive_subspace(const float *thresholds, int subspaces, float of) {
  int m = 0;
  for (int k = 0; k < subspaces - 1; k++) m += thresholds[k] <= fabsf(of);
  return m;
}

static void fill_tables(int subspaces, float *thresholds, double *weight, double *priority) {
  for (int m = 0; m < subspaces; m++) {
    weight[m] = m == 2 ? 0 : 1.1 - 0.37 * m;
    priority[m] = m == 3 ? 0 : 0.3 + 0.21 * m;
    if (m > 0) thresholds[m - 1] = (float)(m * 20 / subspaces) * 0.0117f;
  }
}

static bool same(float a, float b) { return memcmp(&a, &b, sizeof a) == 0; }

/* ---- weighing and scoring ---- */

START_TEST(entries_are_weighed_by_their_subspace) {
  const int counts[] = {1, 2, 7, 8, 9, 15, MOST};
  const int subspaces = counts[_i];
  float thresholds[MOST];
  double weight[MOST], priority[MOST];
  fill_entries(5);
  fill_tables(subspaces, thresholds, weight, priority);
  nps_subspace_apply(thresholds, subspaces, weight, priority, x, N, value, score);
  for (int i = 0; i < N; i++) {
    const int m = naive_subspace(thresholds, subspaces, x[i]);
    const volatile float w = (float)weight[m], a = (float)priority[m];
    ck_assert_msg(same(value[i], w * x[i]) && same(score[i], a * fabsf(x[i])), "%d subspaces, entry %d", subspaces, i);
  }
}
END_TEST

START_TEST(values_may_replace_entries_and_either_may_be_left_out) {
  float thresholds[MOST], in_place[N], only[N];
  double weight[MOST], priority[MOST];
  fill_entries(6);
  fill_tables(8, thresholds, weight, priority);
  nps_subspace_apply(thresholds, 8, weight, priority, x, N, value, score);
  memcpy(in_place, x, sizeof x);
  nps_subspace_apply(thresholds, 8, weight, priority, in_place, N, in_place, NULL);
  nps_subspace_apply(thresholds, 8, weight, priority, x, N, NULL, only);
  ck_assert(memcmp(in_place, value, sizeof value) == 0);
  ck_assert(memcmp(only, score, sizeof score) == 0);
}
END_TEST

START_TEST(equal_thresholds_leave_subspaces_empty) {
  const float thresholds[] = {0, 0.5f, 0.5f};
  const double weight[] = {10, 20, 30, 40};
  const float in[] = {0, -0.25f, 0.5f, -1};
  int64_t counts[4] = {0};
  nps_subspace_apply(thresholds, 4, weight, weight, in, 4, value, NULL);
  nps_subspace_count(thresholds, 4, in, NULL, 4, counts);
  ck_assert(value[0] == 0 && value[1] == -5 && value[2] == 20 && value[3] == -40);
  ck_assert(counts[0] == 0 && counts[1] == 2 && counts[2] == 0 && counts[3] == 2);
}
END_TEST

START_TEST(entries_are_counted_by_subspace) {
  float thresholds[MOST], keep[N];
  double weight[MOST], priority[MOST];
  int64_t all[MOST] = {7}, kept[MOST] = {0}, expected_all[MOST] = {7}, expected_kept[MOST] = {0};
  uint64_t seed = 3;
  fill_entries(7);
  fill_tables(MOST, thresholds, weight, priority);
  for (int i = 0; i < N; i++) {
    const int m = naive_subspace(thresholds, MOST, x[i]);
    keep[i] = next_random(&seed) % 3 == 0;
    expected_all[m]++;
    expected_kept[m] += keep[i] != 0;
  }
  nps_subspace_count(thresholds, MOST, x, NULL, N, all);
  nps_subspace_count(thresholds, MOST, x, keep, N, kept);
  ck_assert(memcmp(all, expected_all, sizeof all) == 0 && memcmp(kept, expected_kept, sizeof kept) == 0);
}
END_TEST

/* ---- putting together ---- */

static double naive_fuse(const float *const *q, const double *lambda, nps_normalize_t normalize, int i) {
  double sum = 0, all = 0, present = 0;
  for (int m = 0; m < MODELS; m++) {
    const volatile double product = lambda[m] * (double)q[m][i];
    sum += product;
    all += lambda[m];
    if (q[m][i] != 0) present += lambda[m];
  }
  if (normalize == NPS_NORMALIZE_SUM) return sum / all;
  if (normalize == NPS_NORMALIZE_COORDINATE) return present != 0 ? sum / present : 0;
  return sum;
}

START_TEST(models_are_put_together) {
  static float q[MODELS][NPS_CHUNK];
  const float *rows[] = {q[0], q[1], q[2]};
  const double lambda[] = {0.7, -0.7, 1.3};
  const nps_normalize_t normalize = (nps_normalize_t)_i;
  double out[NPS_CHUNK];
  uint64_t seed = 11;
  for (int m = 0; m < MODELS; m++)
    for (int i = 0; i < NPS_CHUNK; i++) q[m][i] = next_random(&seed) % 2 ? 0 : (float)next_random(&seed) * 1e-11f;
  nps_fuse(MODELS, rows, lambda, normalize, NPS_CHUNK, out);
  for (int i = 0; i < NPS_CHUNK; i++)
    ck_assert_msg(out[i] == naive_fuse(rows, lambda, normalize, i), "normalize %d, entry %d", _i, i);
}
END_TEST

START_TEST(a_model_without_lambda_has_no_part) {
  const float q[] = {1, 0, -3};
  const float *const rows[] = {q, NULL};
  const double lambda[] = {2, 0};
  double out[3];
  nps_fuse(2, rows, lambda, NPS_NORMALIZE_COORDINATE, 3, out);
  ck_assert(out[0] == 1 && out[1] == 0 && out[2] == -3);
}
END_TEST

/* ---- weightings, and marks of selected entries ---- */

START_TEST(a_copy_is_its_own) {
  nps_weighting_t *w = nps_weighting_new(2, 3);
  for (int i = 0; i < 6; i++) ck_assert(w->weight[i] == 1 && w->priority[i] == 1);
  for (int i = 0; i < 2; i++) ck_assert(w->lambda[i] == 1 && w->density[i] == 1);
  w->weight[5] = -2, w->priority[4] = 3, w->lambda[1] = 0.5, w->density[0] = 0.1;
  w->scope = NPS_SCOPE_TENSOR, w->normalize = NPS_NORMALIZE_SUM;
  nps_weighting_t *copy = nps_weighting_copy(w);
  w->weight[5] = 7;
  ck_assert(copy->models == 2 && copy->subspaces == 3 && copy->weight[5] == -2 && copy->priority[4] == 3);
  ck_assert(copy->lambda[1] == 0.5 && copy->density[0] == 0.1);
  ck_assert(copy->scope == NPS_SCOPE_TENSOR && copy->normalize == NPS_NORMALIZE_SUM);
  nps_weighting_free(w);
  nps_weighting_free(copy);
  nps_weighting_free(NULL);
}
END_TEST

/* Scores of which more are 0 than are dropped: the earliest are kept. */
START_TEST(zeros_may_be_kept) {
  nps_select_t *select = nps_select_new();
  const float scores[] = {0, 2, 0, 1, 0, 0};
  const float expected[][6] = {{0}, {0, 1}, {0, 1, 0, 1}, {1, 1, 0, 1}, {1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}};
  const int keeps[] = {0, 1, 2, 3, 4, 6};
  float keep[6];
  nps_select_start(select, keeps[_i]);
  for (int pass = 0; pass < 2; pass++) {
    nps_select_count(select, pass, scores, 6);
    nps_select_reduce(select, pass, comm);
  }
  const int64_t first = nps_select_mark(select, scores, 2, keep),
                rest = nps_select_mark(select, scores + 2, 4, keep + 2);
  ck_assert_int_eq(first + rest, keeps[_i]);
  ck_assert(memcmp(keep, expected[_i], sizeof keep) == 0);
  nps_select_free(select);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("weigh");
  tcase_add_loop_test(cases, entries_are_weighed_by_their_subspace, 0, 7);
  tcase_add_test(cases, values_may_replace_entries_and_either_may_be_left_out);
  tcase_add_test(cases, equal_thresholds_leave_subspaces_empty);
  tcase_add_test(cases, entries_are_counted_by_subspace);
  tcase_add_loop_test(cases, models_are_put_together, 0, 3);
  tcase_add_test(cases, a_model_without_lambda_has_no_part);
  tcase_add_test(cases, a_copy_is_its_own);
  tcase_add_loop_test(cases, zeros_may_be_kept, 0, 6);
  return end_mpi(run_tests_everywhere("weigh", cases));
}
