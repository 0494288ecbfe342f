/** @file nps_merge_options.h
 *  The command line of nps-merge. */
#ifndef NPS_MERGE_OPTIONS_H
#define NPS_MERGE_OPTIONS_H

#include "overrides.h"

/** What the user asked for. Texts belong to argv. */
typedef struct cli_merge_options {
  const char *config;
  const char *out;    /**< OUT or --output, NULL when neither is given */
  bool plan;          /**< --plan: show who does what, and exit */
  int ranks;          /**< --ranks, 0 when not given */
  int ranks_per_node; /**< --ranks-per-node, 0 when not given */
  bool check;         /**< --check: only validate */
  bool force;
  bool resume;     /**< --resume: go on from the snapshot */
  const char *log; /**< NULL: none */
  bool copy_tokenizer, no_copy_tokenizer;
  bool quiet;
  bool verbose;
  cli_overrides_t overrides; /**< --set in their order; owned */
  const char *output;        /**< --output alone */
  cli_list_t set;            /**< --set as given; owned */
} cli_merge_options_t;

/** Parse nps-merge's command line and check what depends on several options. Local.
 *  @param[out] out  freed with cli_merge_options_free(), after errors too
 *  @param[out] request  as cli_parse() */
nps_err_t cli_merge_options(int argc, char *const argv[], cli_merge_options_t *out, cli_request_t *request);

void cli_merge_options_free(cli_merge_options_t *o);

#endif
