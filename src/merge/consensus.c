/* consensus: entries of the summed task vectors that matter to several tasks (Consensus Merging, Wang et al., ICML 2024,
 * arXiv 2405.07813). TALL-masks m_i = [|τ_i| > λ_i·|τ − τ_i|], τ = Σ τ_i, say where a task can be told from the sum; an entry
 * stays where enough of them agree. */
#include "combine.h"
#include "merge_internal.h"

#include <math.h>

enum { LAMBDA, MASK_LAMBDA, MIN_AGREE };

/* Adds 1 where a task's mask is set. */
NPS_VECTOR_CLONES
static void add_mask(const float *restrict tau, const double *restrict sum, double mask_lambda, int64_t n,
                     int32_t *restrict agree) {
  for (int64_t i = 0; i < n; i++) agree[i] += fabs((double)tau[i]) > mask_lambda * fabs(sum[i] - (double)tau[i]);
}

/* @return how many entries stay */
NPS_VECTOR_CLONES
static int64_t keep(const int32_t *restrict agree, int32_t least, double lambda, int64_t n, double *restrict sum) {
  int32_t kept = 0;
  for (int64_t i = 0; i < n; i++) {
    const bool stays = agree[i] >= least;
    sum[i] = stays ? lambda * sum[i] : 0;
    kept += stays;
  }
  return kept;
}

static void consensus_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                            int64_t *kept) {
  (void)state;
  int32_t agree[NPS_CHUNK];
  for (int64_t i = 0; i < chunk->count; i++) agree[i] = 0, out[i] = 0;
  for (int m = 0; m < tensor->models; m++) nps_add_task_vector(chunk->tau[m], chunk->count, out);
  for (int m = 0; m < tensor->models; m++)
    add_mask(chunk->tau[m], out, tensor->param[MASK_LAMBDA][m], chunk->count, agree);
  const int64_t stay =
      keep(agree, (int32_t)ceil(tensor->param[MIN_AGREE][0]), tensor->param[LAMBDA][0], chunk->count, out);
  for (int m = 0; m < tensor->models; m++) kept[m] += stay;
}

const nps_merge_method_t nps_method_consensus = {
    .name = "consensus",
    .summary = "base + λ × the summed task vectors, where they matter to several tasks",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 2,
    .params = {[LAMBDA] = {.name = "lambda", .fallback = 1, .least = -1e30, .most = 1e30},
               [MASK_LAMBDA] = {.name = "mask_lambda", .per_model = true, .fallback = 0.4, .least = 0, .most = 1e30},
               [MIN_AGREE] = {.name = "min_agree", .fallback = 2, .least = 0, .most = 1e6}},
    .param_count = 3,
    .element_seconds = 1e-9,
    .merge = consensus_merge,
};
