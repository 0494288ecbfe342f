/** @file cmaes_internal.h
 *  What the files of this module share. */
#ifndef NPS_CMAES_INTERNAL_H
#define NPS_CMAES_INTERNAL_H

#include "nps/cmaes.h"

/** The constants of a population (Hansen, arXiv 1604.00772, table 1). */
typedef struct nps_cmaes_params {
  int n, lambda, mu;
  double *weight; /**< [lambda] w_i: sum 1 over i ≤ μ, sum −α over the others; owned */
  double mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, alpha;
  double chi;   /**< E‖N(0, I)‖ */
  int interval; /**< generations between eigendecompositions */
} nps_cmaes_params_t;

/** Compute the constants. @param diagonal  of sep-CMA-ES */
void nps_cmaes_params_set(nps_cmaes_params_t *params, int n, int lambda, bool diagonal);

/** Draw normal number `index` of a candidate: a function of its arguments alone. */
double nps_cmaes_normal(uint64_t seed, uint64_t stream, int restart, int generation, int candidate, int index);

/** What the stop rules remember of a run between restarts. */
typedef struct nps_cmaes_watch {
  bool has_best;
  nps_fitness_value_t best; /**< of this run */
  int improved;             /**< generation of the last gain of the best */
  bool ever_improved;       /**< something was better than the first generation's best */
  int flat;                 /**< generations in a row that were flat */
  int failed;               /**< generations in a row in which every candidate failed */
} nps_cmaes_watch_t;

struct nps_cmaes {
  nps_cmaes_options_t options; /**< with copies of the arrays */
  bool diagonal;
  nps_cmaes_params_t params;
  int generation; /**< g of this run */
  int told;       /**< generations told, restarts included */
  int64_t evaluations;
  int restart;
  double sigma;
  double *mean;       /**< [n] */
  double *path_sigma; /**< [n] */
  double *path_c;     /**< [n] */
  double *covariance; /**< [n][n], or [n] when diagonal */
  double *root;       /**< A: [n][n], or [n] */
  double condition;   /**< of C, as last decomposed */
  int decomposed;     /**< generation of the decomposition, −1: none */
  double *z, *y;      /**< [lambda][n] of the generation in work */
  bool asked;
  nps_cmaes_watch_t watch;
  nps_cmaes_stop_t stop;
  double (*draw)(void *ctx, int generation, int candidate, int index);
  void *draw_ctx;
};

/** Look at a generation's ranked results. @param order  [lambda] best first */
void nps_cmaes_observe(nps_cmaes_t *cmaes, const nps_fitness_value_t *values, const int *order, bool all_failed);

/** Tell whether this run has to end, and why. */
nps_cmaes_stop_t nps_cmaes_check(const nps_cmaes_t *cmaes);

/** Whether a restart may follow. */
bool nps_cmaes_may_restart(const nps_cmaes_t *cmaes, nps_cmaes_stop_t stop);

#endif
