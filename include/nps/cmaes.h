/** @file cmaes.h
 *  CMA-ES by ask and tell: no I/O, no MPI, no clock. Layer 2. Everything here is local.
 *
 *  Active CMA-ES with weighted recombination (Hansen, arXiv 1604.00772), sep-CMA-ES (Ros and Hansen, PPSN 2008) with a
 *  diagonal covariance, IPOP restarts (Auger and Hansen, CEC 2005), and plain random sampling for comparison. Minimises.
 *  Every random number is a function of (seed, stream, restart, generation, candidate, index). */
#ifndef NPS_CMAES_H
#define NPS_CMAES_H

#include "nps/base.h"

typedef enum nps_cmaes_kind {
  NPS_CMAES_FULL,  /**< full covariance; diagonal above NPS_CMAES_MAX_FULL variables */
  NPS_CMAES_SEP,   /**< diagonal covariance */
  NPS_CMAES_RANDOM /**< candidates ~ N(start, σ0² I), nothing is learnt */
} nps_cmaes_kind_t;

/** Most variables with a full covariance. */
#define NPS_CMAES_MAX_FULL 500

typedef struct nps_cmaes_options {
  nps_cmaes_kind_t kind;
  int variables;       /**< n, at least 1 */
  int population;      /**< λ; 0: 4 + ⌊3 ln n⌋; at least 2 */
  double sigma;        /**< σ0 > 0 */
  const double *start; /**< [n] m at the start; copied */
  const double *lower; /**< [n] bounds, or NULL: none; copied. Candidates are clipped for the evaluation */
  const double *upper; /**< [n] */
  uint64_t seed;
  uint64_t stream;         /**< tells searches under one seed apart */
  bool noisy;              /**< the fitness is an accuracy: tolx is 1e-4 σ0, else 1e-12 σ0 */
  int max_generations;     /**< 0: no limit; restarts included */
  int64_t max_evaluations; /**< 0: no limit; restarts included; counts what nps_cmaes_tell() was told */
  int patience;            /**< generations without a gain before the search stops; 0: by the formula */
  int restarts;            /**< IPOP: how often the search may begin anew with twice the population */
} nps_cmaes_options_t;

/** A candidate's result. What is not finite counts as failed. */
typedef struct nps_fitness_value {
  bool failed;
  double primary;   /**< to be minimised */
  double secondary; /**< decides between equals */
} nps_fitness_value_t;

/** Why a search ended. NPS_CMAES_STOPS(X) expands X(NAME, "text for people"). */
#define NPS_CMAES_STOPS(X)                                                                                             \
  X(NONE, "running")                                                                                                   \
  X(GENERATIONS, "all generations done")                                                                               \
  X(EVALUATIONS, "all evaluations used")                                                                               \
  X(TOLX, "steps became too small to matter")                                                                          \
  X(TOLUPX, "the step size exploded")                                                                                  \
  X(CONDITION, "the covariance became ill-conditioned")                                                                \
  X(PATIENCE, "no gain for long")                                                                                      \
  X(FLAT, "the fitness is flat")                                                                                       \
  X(FAILED, "every candidate failed in 20 generations in a row")

typedef enum nps_cmaes_stop {
#define X(name, text) NPS_CMAES_STOP_##name,
  NPS_CMAES_STOPS(X)
#undef X
} nps_cmaes_stop_t;

/** Give the text of a reason. The string is static. */
const char *nps_cmaes_stop_text(nps_cmaes_stop_t stop);

/** A search. Opaque. */
typedef struct nps_cmaes nps_cmaes_t;

/** Begin a search. Freed with nps_cmaes_free(). */
nps_cmaes_t *nps_cmaes_new(const nps_cmaes_options_t *options);
void nps_cmaes_free(nps_cmaes_t *cmaes);

/** Give the population λ of the generation in work (restarts change it). */
int nps_cmaes_population(const nps_cmaes_t *cmaes);

/** Draw the candidates of a generation; asked twice it gives the same.
 *  @param[out] x  [population][n] clipped to the bounds
 *  @return NPS_ERR_RUNTIME (recorded) when the eigendecomposition fails */
nps_err_t nps_cmaes_ask(nps_cmaes_t *cmaes, double *x);

/** Tell the results of the candidates asked for, and go on to the next generation (or restart).
 *  @param values  [population] */
void nps_cmaes_tell(nps_cmaes_t *cmaes, const nps_fitness_value_t *values);

/** Compare two results: < 0 where a is better. Failed ones are worst and alike. */
int nps_fitness_compare(const nps_fitness_value_t *a, const nps_fitness_value_t *b);

/** Tell whether and why the search has ended (after restarts). After NPS_CMAES_STOP_FAILED there is no result. */
nps_cmaes_stop_t nps_cmaes_stopped(const nps_cmaes_t *cmaes);

/** Give the generation (told so far, restarts included), evaluations, restarts so far. */
int nps_cmaes_generation(const nps_cmaes_t *cmaes);
int64_t nps_cmaes_evaluations(const nps_cmaes_t *cmaes);
int nps_cmaes_restarts(const nps_cmaes_t *cmaes);

/** Give σ, and the mean m clipped to the bounds: of the generation in work, or where the search has ended the last.
 *  @param[out] mean  [n] */
double nps_cmaes_sigma(const nps_cmaes_t *cmaes);
void nps_cmaes_mean(const nps_cmaes_t *cmaes, double *mean);

/** Give the covariance C [n][n], for tests and reports (diagonal for sep). @param[out] covariance  [n][n] */
void nps_cmaes_covariance(const nps_cmaes_t *cmaes, double *covariance);

/** Replace the normal numbers z, for the test with given numbers: draw(ctx, generation, candidate, index). NULL: own. */
void nps_cmaes_set_draw(nps_cmaes_t *cmaes, double (*draw)(void *ctx, int generation, int candidate, int index),
                        void *ctx);

#endif
