/* What a decomposition on a grid takes. docs/svd.md tells how the numbers were measured. */
#include "svd_internal.h"

/* The part of its ranks' speed that a grid makes use of, and the seconds of messages for a row of the eigenproblem (of the
 * subspace, with all its iterations). */
#define EFFICIENCY 0.7
#define ROW_SECONDS 8e-5

/* How much more work a grid has than one rank: pdgesvd is another algorithm than dgesdd; subspaces are sought in float64. */
static double more_work(nps_svd_method_t method) {
  return method == NPS_SVD_LAPACK ? 20 : method == NPS_SVD_RANDOMISED ? 2 : 1;
}

static int64_t wanted(int64_t all, int64_t leading) { return leading > 0 ? nps_min64(leading, all) : all; }

double nps_svd_grid_seconds(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks) {
  const int64_t n = nps_min64(rows, columns), subspace = nps_min64(n, wanted(n, leading) + NPS_SVD_OVERSAMPLE);
  const double alone = nps_svd_seconds(rows, columns, leading, method);
  if (ranks == 1) return alone;
  const double work = more_work(method) * alone / (EFFICIENCY * ranks);
  return work + ROW_SECONDS * (double)(method == NPS_SVD_RANDOMISED ? 8 * subspace : n);
}

/* At the most, besides the matrix and all its vectors. gram: what lies below the first triple, its Gram matrix and eigenvectors,
 * and twice that to find them. */
int64_t nps_svd_grid_bytes(int64_t rows, int64_t columns, int64_t leading, nps_svd_method_t method, int ranks) {
  if (ranks == 1) return nps_svd_bytes(rows, columns, leading, method);
  const int64_t n = nps_min64(rows, columns), m = nps_max64(rows, columns), l = wanted(n, leading) + NPS_SVD_OVERSAMPLE;
  const int64_t square = nps_dmat_most_local(n, n, ranks), flat = nps_dmat_most_local(n, m, ranks);
  if (method == NPS_SVD_RANDOMISED)
    return 8 * (3 * nps_dmat_most_local(l, m, ranks) + 2 * nps_dmat_most_local(l, n, ranks) +
                4 * nps_dmat_most_local(l, l, ranks));
  return 8 * (method == NPS_SVD_LAPACK ? 2 * flat + 2 * square : 4 * square + flat);
}
