/** @file level.h
 *  Levels of the config as tables of keys. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_LEVEL_H
#define NPS_CONFIG_LEVEL_H

#include "node.h"

/** Read the value of a key; problems are recorded.
 *  @param target  what the level is read into
 *  @param what    the key with its path, for messages */
typedef void nps_key_read_fn(void *target, const nps_node_t *value, const char *what);

typedef enum nps_key_state {
  NPS_KEY_READ,
  NPS_KEY_NOT_BUILT,
  NPS_KEY_NO_EFFECT, /**< mergekit knows it; noted */
  NPS_KEY_ELSEWHERE  /**< a name that mergekit has for another key of ours */
} nps_key_state_t;

typedef struct nps_key {
  const char *name;
  nps_key_state_t state;
  nps_key_read_fn *read; /**< READ: called for values that are not null */
  const char *instead;   /**< ELSEWHERE: our key */
} nps_key_t;

/** Read a level; unknown keys, keys not built and a node that is no mapping are recorded as problems.
 *  @param path   the level's own key with its path; "" at the top
 *  @param keys   [count]
 *  @param target  handed to the readers */
void nps_level_read(const nps_node_t *node, const char *path, const nps_key_t *keys, int count, void *target);

/** Read a text that is not empty into *out (owned by the caller), which must be NULL before. Numbers and booleans are
 *  taken as they are written. */
void nps_text_read(const nps_node_t *value, const char *what, char **out);

#endif
