/** @file node.h
 *  YAML as a tree of nodes that know where they were written. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_NODE_H
#define NPS_CONFIG_NODE_H

#include "nps/base.h"

typedef enum nps_node_kind { NPS_NODE_SCALAR, NPS_NODE_LIST, NPS_NODE_MAPPING } nps_node_kind_t;

/** Where something was written, for messages: "FILE:LINE", or "--set PATH". */
typedef struct nps_place {
  const char *source; /**< the config's name, or "--set PATH"; not owned, outlives the tree */
  int line;           /**< from 1; 0 for --set */
} nps_place_t;

typedef struct nps_node nps_node_t;

/** A key of a mapping with its value. */
typedef struct nps_entry {
  char *key;         /**< owned */
  nps_place_t place; /**< of the key */
  nps_node_t *value; /**< owned */
} nps_entry_t;

struct nps_node {
  nps_node_kind_t kind;
  nps_place_t place;
  char *text;           /**< of a scalar; owned */
  bool quoted;          /**< a scalar that is a text whatever it looks like */
  nps_entry_t *entries; /**< [count] of a list (without keys) or mapping; owned */
  int count;
  int room;
};

/** What a plain scalar means. */
typedef enum nps_scalar { NPS_SCALAR_NULL, NPS_SCALAR_BOOLEAN, NPS_SCALAR_NUMBER, NPS_SCALAR_TEXT } nps_scalar_t;

/** Make a node without content. */
nps_node_t *nps_node_new(nps_node_kind_t kind, nps_place_t place);

/** Free a node and all below; NULL is fine. */
void nps_node_free(nps_node_t *node);

/** Append to a list or mapping, which takes over the value.
 *  @param key  copied; NULL in a list */
void nps_node_add(nps_node_t *node, const char *key, nps_place_t place, nps_node_t *value);

/** Find a key of a mapping.
 *  @return NULL when the node is no mapping or lacks the key */
nps_entry_t *nps_node_find(const nps_node_t *node, const char *key);

/** Classify a scalar as YAML 1.1 readers do (yes, on, 0x1F, 1_000; also 1e-3), lists and mappings as texts.
 *  @param[out] number  of a number (infinite or NaN where written so) or boolean (0, 1) */
nps_scalar_t nps_node_scalar(const nps_node_t *node, double *number);

/** Read an unsigned integer exactly.
 *  @return false when the node is none or it does not fit */
bool nps_node_uint64(const nps_node_t *node, uint64_t *out);

/** Whether a node is a null (nothing, ~, null). */
bool nps_node_is_null(const nps_node_t *node);

/** Describe what was found, for messages: "a list", "nothing", "the number 3", "'abc'".
 *  @param[out] out  [96] characters
 *  @return out */
const char *nps_node_describe(const nps_node_t *node, char out[96]);

/** Make a text fit to stand in a message: at most 60 bytes, no control characters.
 *  @param[out] out  [72] characters
 *  @return out */
const char *nps_show(const char *text, char out[72]);

/** Record a problem with its place before it. */
nps_err_t nps_place_fail(nps_place_t place, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Give a note with its place before it. */
void nps_place_note(nps_place_t place, const char *fmt, ...) NPS_PRINTF(2, 3);

/** Parse one YAML document. A repeated key is recorded as a problem and the first one stays.
 *  @param text    the YAML; @param size  its bytes
 *  @param source  its name (see nps_place_t)
 *  @param lines   whether places get lines (a config), or not (--set)
 *  @param[out] out  freed with nps_node_free(); NULL for an empty document
 *  @return NPS_ERR_CONFIG (recorded): broken YAML, several documents, too deep or too large */
nps_err_t nps_yaml_parse(const char *text, size_t size, const char *source, bool lines, nps_node_t **out);

#endif
