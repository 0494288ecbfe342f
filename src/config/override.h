/** @file override.h
 *  Changes from the command line. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_OVERRIDE_H
#define NPS_CONFIG_OVERRIDE_H

#include "node.h"
#include "nps/config.h"

/** Apply a change to a config's tree; problems are recorded.
 *  @param root    a mapping
 *  @param source  "--set PATH", outlives the tree */
nps_err_t nps_override_apply(nps_node_t *root, const nps_override_t *change, const char *source);

#endif
