#include "../nps_check_mpi.h"
#include "nps/delta.h"

#include <math.h>

enum { N = 9001, MOST_SUBSPACES = 256, KINDS = 5 };

/* Different ones, many ties, mostly zeros, all equal, all in one bin of the upper bits. */
static float entry(int kind, uint64_t *s) {
  const float sign = next_random(s) % 2 ? 1.0f : -1.0f;
  const uint64_t r = next_random(s);
  if (kind == 0) return sign * (float)r * 1e-12f;
  if (kind == 1) return sign * (float)(r % 5) * 0.25f;
  if (kind == 2) return r % 100 == 0 ? sign * 0x1p-149f * (float)(r % 9) : sign * 0.0f;
  if (kind == 3) return sign * 3.0f;
  return sign * (1 + (float)(r % 1000) * 0x1p-23f);
}

static int by_magnitude(const void *a, const void *b) {
  const float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
  return x < y ? -1 : x > y;
}

/* Shares with gaps: odd ranks' are small, the last rank has the rest. */
static int64_t share_begins(int r) { return r == size ? N : N / 2 / size * r + (r % 2) * 100; }

static bool thresholds_are_right(nps_partition_t *partition, int subspaces, int kind, int64_t n) {
  static float x[N];
  uint64_t seed = 17 + (uint64_t)kind;
  for (int i = 0; i < N; i++) x[i] = entry(kind, &seed);
  int64_t first = share_begins(rank) < n ? share_begins(rank) : n;
  int64_t end = share_begins(rank + 1) < n ? share_begins(rank + 1) : n;
  nps_partition_start(partition, n);
  for (int pass = 0; pass < 2; pass++) {
    nps_partition_count(partition, pass, x + first, end - first);
    nps_partition_reduce(partition, pass, comm);
  }
  const int64_t *histogram = nps_partition_histogram(partition);
  int64_t counted = 0;
  for (int i = 0; i < 65536; i++) counted += histogram[i];
  qsort(x, (size_t)n, sizeof *x, by_magnitude);
  bool right = counted == n;
  for (int m = 1; m < subspaces; m++)
    right = right && nps_partition_thresholds(partition)[m - 1] == fabsf(x[m * n / subspaces]);
  return right;
}

START_TEST(thresholds_are_those_of_sorted_magnitudes) {
  const int subspaces[] = {1, 2, 3, 8, MOST_SUBSPACES};
  nps_partition_t *partition = nps_partition_new(subspaces[_i]);
  const int64_t counts[] = {N, 1, 5, 3000};
  for (int kind = 0; kind < KINDS; kind++)
    for (int k = 0; k < 4; k++)
      ck_assert_msg(everywhere(thresholds_are_right(partition, subspaces[_i], kind, counts[k])),
                    "%d subspaces, kind %d, %lld entries", subspaces[_i], kind, (long long)counts[k]);
  nps_partition_free(partition);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("partition");
  tcase_add_loop_test(cases, thresholds_are_those_of_sorted_magnitudes, 0, 5);
  return end_mpi(run_tests_everywhere("partition", cases));
}
