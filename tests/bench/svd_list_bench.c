/* Seconds for a list of 24 matrices of mixed shapes, all triples: on one rank, and on all.
 *     mpirun -n 2 svd_list_bench RUNS
 * Rank 0 prints medians, and how many times faster all ranks are, of the clock and of CPU time (of several ranks the largest),
 * which tells where other programs run beside. The runs alternate. */
#include "nps/comm_mpi.h"
#include "nps/rng.h"
#include "nps/svd.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MATRICES = 24, MOST_RUNS = 32 };

static const int64_t shapes[][3] = {/* rows, columns, how many */
                                    {1024, 1024, 2}, {768, 2304, 2}, {2304, 768, 1}, {768, 768, 5},
                                    {512, 1536, 3},  {1536, 512, 3}, {512, 512, 6},  {256, 900, 2}};

static nps_svd_job_t jobs[MATRICES];

static void list_matrices(void) {
  int count = 0;
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int64_t i = 0; i < shapes[s][2]; i++)
      jobs[count++] = (nps_svd_job_t){.rows = shapes[s][0], .columns = shapes[s][1], .work = 1};
  if (count != MATRICES) nps_fatal("%d matrices", count);
}

static nps_err_t load(void *ctx, int i, int64_t first, int64_t count, double *rows) {
  const int64_t columns = jobs[i].columns;
  (void)ctx;
  for (int64_t k = 0; k < count * columns; k++) {
    const int64_t at = first * columns + k;
    uint32_t word[4];
    nps_philox4x32((uint32_t[]){(uint32_t)at, (uint32_t)(at >> 32), (uint32_t)i, 0}, (uint32_t[]){7, 9}, word);
    rows[k] = ((double)word[0] + (double)word[1]) / 4294967296.0 - 1;
  }
  return NPS_OK;
}

static nps_err_t done(void *ctx, int i, int rank, nps_dsvd_t *svd) {
  (void)i;
  *(int *)ctx += rank == 0 && nps_grid_ranks(svd->u.grid) > 1;
  return NPS_OK;
}

typedef struct {
  double clock[MOST_RUNS], cpu[MOST_RUNS];
} seconds_t;

static void time_on(const nps_comm_t *comm, int run, int *shared, seconds_t *seconds) {
  const nps_svd_list_t list = {
      .jobs = jobs, .count = MATRICES, .memory = (int64_t)2 << 30, .load = load, .done = done, .ctx = shared};
  *shared = 0;
  const double begin = nps_now();
  const clock_t cpu = clock();
  if (nps_svd_list(comm, &list) != NPS_OK) nps_fatal("%s", nps_problem_count() ? nps_problem_text(0) : "failed");
  seconds->clock[run] = nps_now() - begin;
  seconds->cpu[run] = (double)(clock() - cpu) / CLOCKS_PER_SEC;
  nps_comm_max_f64(comm, &seconds->cpu[run], 1);
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

int main(int argc, char **argv) {
  seconds_t alone, together;
  MPI_Init(&argc, &argv);
  const int runs = argc > 1 ? atoi(argv[1]) : 3;
  nps_comm_t *all = nps_comm_from_mpi(MPI_COMM_WORLD), *self = nps_comm_self();
  int shared = 0;
  list_matrices();
  for (int r = 0; r < runs && r < MOST_RUNS; r++) {
    if (nps_comm_rank(all) == 0) time_on(self, r, &shared, &alone);
    nps_comm_barrier(all);
    time_on(all, r, &shared, &together);
  }
  int64_t groups = shared;
  nps_comm_sum_i64(all, &groups, 1);
  if (nps_comm_rank(all) == 0) {
    const double one = median(alone.clock, runs), many = median(together.clock, runs);
    const double one_cpu = median(alone.cpu, runs), many_cpu = median(together.cpu, runs);
    printf("%d matrices, %lld of them shared by a group of %d ranks\n", MATRICES, (long long)groups,
           nps_comm_size(all));
    printf("clock: one rank %.2f s, all %.2f s: %.2f times\n", one, many, one / many);
    printf("CPU time: one rank %.2f s, all %.2f s: %.2f times\n", one_cpu, many_cpu, one_cpu / many_cpu);
  }
  nps_comm_free(self);
  nps_comm_free(all);
  MPI_Finalize();
  return EXIT_SUCCESS;
}
