/** @file value.h
 *  Values of parameters. Private to config. Everything here is local. */
#ifndef NPS_CONFIG_VALUE_H
#define NPS_CONFIG_VALUE_H

#include "node.h"
#include "nps/config.h"

typedef enum nps_value_kind {
  NPS_VALUE_NUMBER,
  NPS_VALUE_BOOLEAN,
  NPS_VALUE_TEXT,
  NPS_VALUE_NUMBERS,  /**< over the layers, interpolated */
  NPS_VALUE_BOOLEANS, /**< over the layers, in equal steps */
  NPS_VALUE_FILTERS
} nps_value_kind_t;

/** A value for the tensors whose name a filter matches. */
typedef struct nps_filter {
  char *filter;       /**< part of a tensor's name, or "*"; owned */
  nps_value_t *value; /**< of any kind but FILTERS; owned */
} nps_filter_t;

struct nps_value {
  nps_value_kind_t kind;
  double number;         /**< NUMBER, BOOLEAN (0, 1) */
  char *text;            /**< TEXT; owned */
  double *numbers;       /**< [count] of NUMBERS, BOOLEANS; owned */
  nps_filter_t *filters; /**< [count] of FILTERS; owned */
  int count;
};

/** Read a value; problems are recorded.
 *  @param what  the parameter, for messages
 *  @return NULL when it is none */
nps_value_t *nps_value_read(const nps_node_t *node, const char *what);

void nps_value_free(nps_value_t *value);

#endif
