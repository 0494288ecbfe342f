/* Prints the rate of single-precision matrix products on one core, GFLOP/s: the best of several of order 1024. */
#include "nps/blas.h"

#include <stdio.h>
#include <stdlib.h>

enum { ORDER = 1024, TRIES = 12 };

int main(void) {
  const size_t elements = (size_t)ORDER * ORDER;
  float *a = nps_xcalloc(elements, sizeof *a), *b = nps_xcalloc(elements, sizeof *b);
  float *c = nps_xcalloc(elements, sizeof *c);
  double best = 1e30;
  nps_blas_start();
  for (size_t i = 0; i < elements; i++) a[i] = b[i] = (float)(i % 7) - 3;
  for (int i = 0; i < TRIES; i++) {
    const double since = nps_now();
    nps_sgemm(true, ORDER, ORDER, ORDER, 1, a, ORDER, b, ORDER, 0, c, ORDER);
    const double seconds = nps_now() - since;
    if (seconds < best) best = seconds;
  }
  printf("%.1f\n", 2e-9 * ORDER * ORDER * ORDER / best);
  free(a);
  free(b);
  free(c);
  return 0;
}
