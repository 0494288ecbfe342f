/** @file overrides.h
 *  Changes of a config from the command line: --set KEY=VALUE. Local. */
#ifndef NPS_CLI_OVERRIDES_H
#define NPS_CLI_OVERRIDES_H

#include "cli.h"

#include "nps/config.h"

/** Begin with zeros; freed with cli_overrides_free(). Values belong to argv. */
typedef struct cli_overrides {
  nps_override_t *items; /**< [count] in their order; paths are owned */
  int count;
} cli_overrides_t;

/** Add one. @param path  taken over */
void cli_overrides_put(cli_overrides_t *o, char *path, const char *value);

/** Add what --set was given. NPS_ERR_CONFIG: a text without KEY or =; all problems recorded. */
nps_err_t cli_overrides_add(const cli_list_t *set, cli_overrides_t *out);

void cli_overrides_free(cli_overrides_t *o);

#endif
