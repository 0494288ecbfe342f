/* What a decomposition on a grid takes. */
#include "svd_internal.h"

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* A grid of two ranks takes this part of one rank's time; every doubling of the ranks again, as long as blocks suffice. */
#define EACH_DOUBLING 0.6

/* Messages of a decomposition: seconds a column of the eigensolver. */
#define COLUMN_SECONDS 5e-5

double nps_svd_grid_seconds(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks) {
  double seconds = nps_svd_seconds(rows, columns, leading, method);
  if (ranks == 1) return seconds;
  for (int r = 1; r < ranks; r *= 2) seconds *= EACH_DOUBLING;
  return seconds + COLUMN_SECONDS * (double)min64(rows, columns);
}

int64_t nps_svd_grid_bytes(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks) {
  if (ranks == 1) return nps_svd_bytes(rows, columns, leading, method);
  const int64_t n = min64(rows, columns), m = max64(rows, columns);
  const int64_t square = 8 * nps_dmat_most_local(n, n, ranks), flat = 8 * nps_dmat_most_local(n, m, ranks);
  return 4 * square + flat;
}
