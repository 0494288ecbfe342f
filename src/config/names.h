/** @file names.h
 *  The names of a config's models. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_NAMES_H
#define NPS_CONFIG_NAMES_H

#include "node.h"

/** Models a config may list: far above any merge, and names are made unique in quadratic time. */
#define NPS_MAX_MODELS 1000

/** Give the model's path as one text: of "P", or {model: {path: P, revision: R}} as "P@R".
 *  @return freed with free(); NULL when the node has neither form */
char *nps_model_text(const nps_node_t *node);

/** Derive a name from a model's path, made unique with -2, -3.
 *  @param names  [count] taken ones, or NULL
 *  @param[out] changed  whether it needed a number
 *  @return freed with free() */
char *nps_model_name(const char *model, char *const *names, int count, bool *changed);

/** Name every entry of `models`: explicit names as they are, default names made unique with -2, -3 in order.
 *  @param models  a list of at most NPS_MAX_MODELS; entries may be anything
 *  @param[out] changed  [count] whether a default name needed a number; may be NULL
 *  @return [count] names, each and the array freed with free(); NULL for an entry without a model */
char **nps_model_names(const nps_node_t *models, bool *changed);

/** Free what nps_model_names() gave. */
void nps_model_names_free(char **names, int count);

#endif
