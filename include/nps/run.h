/** @file run.h
 *  A run as phases: validate, plan, search, merge, write, report. Layer 7; besides cli the only reader of the recipe. */
#ifndef NPS_RUN_H
#define NPS_RUN_H

#include "nps/base.h"
#include "nps/comm.h"
#include "nps/config.h"

/** What is asked of a run, from the command line. Texts are borrowed. */
typedef struct nps_run_options {
  const char *config;
  const char *out; /**< output path; NULL: the config's output.path */
  const nps_override_t *overrides;
  int override_count;
  bool check;         /**< validate only */
  bool plan;          /**< show the plan only */
  int ranks;          /**< plan: for so many ranks; 0: those that are there */
  int ranks_per_node; /**< plan: 0: all on one node, where `ranks` is given */
  bool force;
  bool resume;                                /**< go on from the snapshot of an interrupted run, where there is one */
  bool (*stop)(void);                         /**< whether this rank was asked to stop; NULL: never */
  void (*guard_search)(const char *snapshot); /**< rank 0's is called when a search begins that is kept there, and with
                                                   NULL when it is over; NULL: is not called */
  const char *log;
  bool quiet;
  bool verbose;
} nps_run_options_t;

/** Run. Collective. Problems are printed, once.
 *  @return the same on every rank */
nps_err_t nps_run(const nps_comm_t *comm, const nps_run_options_t *options);

#endif
