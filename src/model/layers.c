#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* Where a name lies: layer `index` of the stack named by the `prefix` characters before the number. */
typedef struct {
  const char *name;
  size_t prefix; /* 0: in no stack */
  int64_t index;
  int64_t length; /* of its stack */
  int at;         /* place in the list asked for */
} place_t;

/* Larger numbers are no layer's. */
#define MAX_DIGITS 6

static place_t parse_name(const char *name, int at) {
  place_t place = {name, 0, 0, 0, at};
  for (const char *p = name; p; p = strchr(p, '.')) {
    if (*p == '.') p++;
    const size_t digits = strspn(p, "0123456789");
    if (digits == 0 || digits > MAX_DIGITS || (p[digits] != '.' && p[digits] != '\0')) continue;
    place.prefix = (size_t)(p - name);
    place.index = strtoll(p, NULL, 10);
    return place;
  }
  return place;
}

static int compare_stacks(const void *a, const void *b) {
  const place_t *x = a, *y = b;
  if (x->prefix != y->prefix) return x->prefix < y->prefix ? -1 : 1;
  return strncmp(x->name, y->name, x->prefix);
}

/* Gives every place its stack's length; returns the longest. */
static int64_t measure_stacks(place_t *places, int count) {
  int64_t longest = 0;
  for (int i = 0, end; i < count; i = end) {
    int64_t length = 0;
    for (end = i; end < count && compare_stacks(&places[i], &places[end]) == 0; end++)
      if (places[end].index >= length) length = places[end].index + 1;
    if (places[i].prefix == 0) continue;
    for (int j = i; j < end; j++) places[j].length = length;
    if (length > longest) longest = length;
  }
  return longest;
}

static int64_t config_layers(const char *config_json) {
  static const char *const keys[] = {"num_hidden_layers", "n_layer", "num_layers"};
  json_error_t error;
  json_t *root = config_json ? json_loads(config_json, 0, &error) : NULL;
  int64_t layers = 0;
  for (size_t i = 0; i < sizeof keys / sizeof *keys && layers == 0; i++) {
    const json_t *value = json_object_get(root, keys[i]);
    if (json_is_integer(value) && json_integer_value(value) > 0) layers = json_integer_value(value);
  }
  json_decref(root);
  return layers;
}

void nps_layer_positions(const char *const *names, int count, const char *config_json, double *t) {
  place_t *places = nps_xcalloc((size_t)count, sizeof *places);
  for (int i = 0; i < count; i++) places[i] = parse_name(names[i], i);
  qsort(places, (size_t)count, sizeof *places, compare_stacks);
  const int64_t longest = measure_stacks(places, count);
  int64_t layers = config_layers(config_json);
  if (layers == 0) layers = longest;
  for (int i = 0; i < count; i++) {
    const place_t *p = &places[i];
    t[p->at] = 0;
    if (p->prefix == 0 || p->length != layers) continue;
    t[p->at] = layers == 1 ? 1 : (double)p->index / (double)(layers - 1);
  }
  free(places);
}
