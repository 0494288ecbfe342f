/* Time and peak memory of one decomposition on all ranks: mpirun -n RANKS dsvd_bench ROWS COLUMNS LEADING [METHOD [ROW_RANKS BLOCK]]
 * (LEADING 0: all triples; METHOD: gram, randomised, lapack). The matrix is noise and 8 larger directions. One line: shape,
 * leading, method, ranks, seconds, the most any rank's memory grew in MiB (without and with the matrix and what it had before),
 * residual, orthogonality, the prediction's seconds and MiB. */
#include "nps/blas.h"
#include "nps/comm_mpi.h"
#include "nps/rng.h"
#include "nps/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static double peak_mib(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)usage.ru_maxrss / 1024;
}

static void fill(nps_dmat_t *a) {
  uint32_t *words = nps_xcalloc((size_t)a->columns, sizeof *words);
  for (int64_t i = 0; i < a->local_rows; i++) {
    const int64_t row = nps_dmat_row(a, i);
    nps_rng_words(7, (uint32_t)row, 0, a->columns, words);
    for (int64_t j = 0; j < a->local_columns; j++) {
      const int64_t column = nps_dmat_column(a, j);
      double x = (double)words[column] / 4294967296.0 - 0.5;
      for (int k = 1; k <= 8; k++) x += cos((double)(k * row)) * sin((double)(k * k * column)) / k;
      a->local[i * a->local_columns + j] = 1e-3 * x;
    }
  }
  free(words);
}

static nps_svd_method_t method_of(const char *name) {
  for (nps_svd_method_t m = NPS_SVD_AUTO; m <= NPS_SVD_LAPACK; m++)
    if (strcmp(name, nps_svd_method_name(m)) == 0) return m;
  nps_fatal("no method is called %s", name);
}

int main(int argc, char **argv) {
  if (argc < 4) nps_fatal("usage: dsvd_bench ROWS COLUMNS LEADING [METHOD [ROW_RANKS BLOCK]]");
  MPI_Init(&argc, &argv);
  nps_blas_start();
  nps_comm_t *comm = nps_comm_from_mpi(MPI_COMM_WORLD);
  const int ranks = nps_comm_size(comm);
  const int64_t rows = atoll(argv[1]), columns = atoll(argv[2]), leading = atoll(argv[3]);
  const nps_svd_method_t method = argc > 4 ? method_of(argv[4]) : NPS_SVD_GRAM;
  nps_grid_t *grid = argc > 6 ? nps_grid_new_shaped(comm, atoi(argv[5]), atoi(argv[6])) : nps_grid_new(comm);
  nps_dmat_t a;
  nps_dsvd_t s;
  if (nps_dmat_new(grid, rows, columns, &a) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
  fill(&a);
  const double before = peak_mib();
  nps_comm_barrier(comm);
  const double begin = nps_now();
  const nps_svd_options_t options = {.leading = leading, .method = method, .approximate = method == NPS_SVD_RANDOMISED};
  if (nps_svd_on_grid(&a, &options, &s) != NPS_OK) nps_fatal("%s", nps_problem_text(0));
  double most[3] = {nps_now() - begin, peak_mib() - before, peak_mib()};
  nps_comm_max_f64(comm, most, 3);
  const int64_t result =
      8 * (nps_dmat_most_local(s.svd.count, rows, ranks) + nps_dmat_most_local(s.svd.count, columns, ranks));
  if (nps_comm_rank(comm) == 0)
    printf("%lldx%lld %lld %s %d  %.2f s  %.0f MiB %.0f MiB  %.1e %.1e  predicted %.2f s %.0f MiB\n", (long long)rows,
           (long long)columns, (long long)leading, nps_svd_method_name(s.svd.method), ranks, most[0], most[1], most[2],
           s.svd.residual, s.svd.orthogonality, nps_svd_grid_seconds(rows, columns, leading, s.svd.method, ranks),
           (double)(result + nps_svd_grid_bytes(rows, columns, leading, s.svd.method, ranks)) / 1048576);
  nps_dsvd_free(&s);
  nps_dmat_free(&a);
  nps_grid_free(grid);
  nps_comm_free(comm);
  MPI_Finalize();
  return 0;
}
