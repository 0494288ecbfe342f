#include "nps/delta.h"

#include <stdlib.h>
#include <string.h>

void nps_block_sums_start(nps_block_sums_t *sums, int64_t count) {
  int64_t blocks = (count + NPS_BLOCK - 1) / NPS_BLOCK;
  if (blocks > sums->blocks || !sums->block) sums->block = nps_xrealloc(sums->block, (size_t)blocks, sizeof(double));
  sums->blocks = blocks;
  memset(sums->block, 0, (size_t)blocks * sizeof(double));
  sums->lanes = (nps_lanes_t){{0}};
}

void nps_block_sums_advance(nps_block_sums_t *sums, int64_t first, int64_t n, bool piece_ends) {
  if ((first + n) % NPS_BLOCK != 0 && !piece_ends) return;
  sums->block[first / NPS_BLOCK] = nps_lanes_sum(&sums->lanes);
  sums->lanes = (nps_lanes_t){{0}};
}

double nps_block_sums_total(nps_block_sums_t *sums, const nps_comm_t *comm) {
  if (nps_comm_size(comm) > 1) nps_comm_sum_f64(comm, sums->block, sums->blocks); /* one rank's is not zero: exact */
  double total = 0;
  for (int64_t i = 0; i < sums->blocks; i++) total += sums->block[i];
  return total;
}

void nps_block_sums_free(nps_block_sums_t *sums) {
  free(sums->block);
  *sums = (nps_block_sums_t){0};
}
