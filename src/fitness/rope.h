/** @file rope.h
 *  Rotary positions (RoPE: Su et al., arXiv 2104.09864) and their scalings for longer texts: linear, dynamic (NTK-aware),
 *  llama3, and yarn (Peng et al., arXiv 2309.00071), as transformers computes them. Everything here is local. */
#ifndef NPS_FITNESS_ROPE_H
#define NPS_FITNESS_ROPE_H

#include "fitness_internal.h"

typedef enum { NPS_ROPE_DEFAULT, NPS_ROPE_LINEAR, NPS_ROPE_DYNAMIC, NPS_ROPE_LLAMA3, NPS_ROPE_YARN } nps_rope_kind_t;

typedef struct nps_rope {
  nps_rope_kind_t kind;
  double theta;     /**< number c of a head's first half is turned by θ^(−2c/width) a place */
  double factor;    /**< of all scalings */
  double most;      /**< dynamic: max_position_embeddings */
  double original;  /**< llama3, yarn: places before the scaling */
  double low, high; /**< llama3: low_freq_factor, high_freq_factor; yarn: beta_slow, beta_fast */
  double attention; /**< factor of cosine and sine */
  bool truncate;    /**< yarn: bounds of the ramp are whole numbers */
} nps_rope_t;

/** Read rope_theta, and rope_parameters or rope_scaling, of a config. Records problems.
 *  @param positions  max_position_embeddings where the config has none */
nps_err_t nps_rope_read(const nps_net_t *net, const json_t *config, int64_t positions, nps_rope_t *rope);

/** Make the table of angles.
 *  @param width  of a head; @param tokens  of a text, which dynamic scaling depends on
 *  @param[out] cosine, sine  [positions][width/2] */
void nps_rope_table(const nps_rope_t *rope, int64_t width, int64_t tokens, int64_t positions, float *cosine,
                    float *sine);

#endif
