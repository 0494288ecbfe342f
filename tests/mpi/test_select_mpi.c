#include "../naive_select.h"
#include "../nps_check_mpi.h"
#include "nps/delta.h"

enum { N = 9001, MOST_RANKS = 64 };

static nps_select_t *selection;

/* Different ones, many ties, zeros of both signs with a few others, all equal, all in one bin of the upper bits. */
enum { DIFFERENT, TIES, ZEROS, EQUAL, ONE_BIN, KINDS };

static float entry(int kind, uint64_t *s) {
  const float sign = next_random(s) % 2 ? 1.0f : -1.0f;
  const uint64_t x = next_random(s);
  if (kind == DIFFERENT) return sign * (float)x * 1e-12f;
  if (kind == TIES) return sign * (float)(x % 5) * 0.25f;
  if (kind == ZEROS) return x % 100 == 0 ? sign * 0x1p-149f * (float)(x % 9) : sign * 0.0f;
  if (kind == EQUAL) return sign * 3.0f;
  return sign * (1 + (float)(x % 1000) * 0x1p-23f);
}

/* ---- cuts over the ranks ---- */

enum { EVEN, ALL_ON_FIRST, ALL_ON_LAST, RANDOM, EVERY_SECOND_EMPTY, CUTS };

static int compare_cuts(const void *a, const void *b) {
  return *(const int64_t *)a < *(const int64_t *)b ? -1 : *(const int64_t *)a > *(const int64_t *)b;
}

/* Rank r gets entries cut[r] to cut[r + 1]. */
static void cut_line(int how, uint64_t seed, int64_t *cut) {
  cut[0] = 0;
  for (int r = 1; r < size; r++) {
    if (how == EVEN) cut[r] = (int64_t)N * r / size;
    if (how == ALL_ON_FIRST) cut[r] = N;
    if (how == ALL_ON_LAST) cut[r] = 0;
    if (how == RANDOM) cut[r] = (int64_t)(next_random(&seed) % (N + 1));
    if (how == EVERY_SECOND_EMPTY) cut[r] = (int64_t)N * (r / 2 * 2) / size;
  }
  cut[size] = N;
  qsort(cut, (size_t)size + 1, sizeof *cut, compare_cuts);
}

/* ---- the tests ---- */

/* stride: pass 0 looks at one of so many. */
static bool selects_as_one_rank_does(int kind, int how, int64_t k, int stride, uint64_t seed) {
  static float found[N], expected[N];
  int64_t cut[MOST_RANKS + 1];
  cut_line(how, seed, cut);
  for (int i = 0; i < N; i++) found[i] = expected[i] = entry(kind, &seed);
  keep_slowly(expected, N, k);
  float *mine = found + cut[rank];
  const int64_t n = cut[rank + 1] - cut[rank];
  nps_select_start(selection, k);
  if (stride > 1) nps_select_sample(selection, N);
  for (int round = 0; round < 2; round++) {
    for (int pass = 0; pass < 2; pass++) {
      const int64_t seen = pass == 0 && round == 0 ? n / stride : n;
      if (seen > 0) nps_select_count(selection, pass, mine, seen); /* a rank without entries counts none */
      nps_select_reduce(selection, pass, comm);
    }
    if (!nps_select_missed(selection)) break;
    nps_select_restart(selection);
  }
  int64_t kept = 0;
  for (int64_t at = 0; at < n; at += NPS_CHUNK)
    kept += nps_select_keep(selection, mine + at, n - at < NPS_CHUNK ? n - at : NPS_CHUNK);
  nps_comm_sum_i64(comm, &kept, 1);
  return kept == k && memcmp(mine, expected + cut[rank], (size_t)n * sizeof *mine) == 0;
}

START_TEST(ranks_keep_what_one_rank_keeps) {
  const int64_t keeps[] = {0, 1, 2, N / 10, N / 2, N - 1, N};
  for (int how = 0; how < CUTS; how++)
    for (int k = 0; k < 7; k++)
      for (int stride = 1; stride <= 4; stride += 3) {
        bool same = selects_as_one_rank_does(_i, how, keeps[k], stride, 31 + (uint64_t)k);
        ck_assert_msg(everywhere(same), "kind %d, cut %d, %lld kept, stride %d", _i, how, (long long)keeps[k], stride);
      }
}
END_TEST

START_TEST(ties_go_to_the_first_ranks) {
  float x[4] = {2, 1, -2, 2};
  nps_select_start(selection, 4);
  for (int pass = 0; pass < 2; pass++) {
    nps_select_count(selection, pass, x, 4);
    nps_select_reduce(selection, pass, comm);
  }
  const int64_t ties = nps_select_ties(selection), own = nps_select_count_ties(selection, x, 4);
  const int64_t kept = nps_select_keep(selection, x, 4);
  /* One rank keeps all; the first of several its three 2s, the second its first. */
  const bool alone = size == 1;
  bool ok = ties == (alone ? 1 : 4) && own == (alone ? 1 : 3) && kept == (alone ? 4 : rank == 0 ? 3 : rank == 1);
  ok = ok && x[0] == (rank < 2 ? 2 : 0) && x[1] == (alone ? 1 : 0) && x[2] == (rank == 0 ? -2 : 0) &&
       x[3] == (rank == 0 ? 2 : 0);
  ck_assert(everywhere(ok));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  selection = nps_select_new();
  TCase *cases = tcase_create("select");
  tcase_add_loop_test(cases, ranks_keep_what_one_rank_keeps, 0, KINDS);
  tcase_add_test(cases, ties_go_to_the_first_ranks);
  int64_t failed = run_tests_everywhere("select", cases);
  nps_select_free(selection);
  return end_mpi(failed);
}
