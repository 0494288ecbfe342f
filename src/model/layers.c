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

const char *const nps_layer_keys[] = {"num_hidden_layers", "n_layer", "num_layers", NULL};

/* Layers of a model's stacks; 0: not told. */
typedef struct {
  int64_t main, decoder; /* decoder: of encoder-decoders, where it may differ */
} lengths_t;

static int64_t count_at(const json_t *root, const char *key) {
  const json_t *value = json_object_get(root, key);
  return json_is_integer(value) && json_integer_value(value) > 0 ? json_integer_value(value) : 0;
}

static lengths_t config_layers(const char *config_json) {
  json_t *root = nps_json_of(config_json);
  lengths_t lengths = {.decoder = count_at(root, "num_decoder_layers")};
  if (lengths.decoder == 0) lengths.decoder = count_at(root, "decoder_layers");
  for (int i = 0; nps_layer_keys[i] && lengths.main == 0; i++) lengths.main = count_at(root, nps_layer_keys[i]);
  json_decref(root);
  return lengths;
}

void nps_layer_positions(const char *const *names, int count, const char *config_json, double *t) {
  place_t *places = nps_xcalloc((size_t)count, sizeof *places);
  for (int i = 0; i < count; i++) places[i] = parse_name(names[i], i);
  qsort(places, (size_t)count, sizeof *places, compare_stacks);
  const int64_t longest = measure_stacks(places, count);
  lengths_t lengths = config_layers(config_json);
  if (lengths.main == 0) lengths.main = longest;
  for (int i = 0; i < count; i++) {
    const place_t *p = &places[i];
    t[p->at] = 0;
    if (p->prefix == 0 || (p->length != lengths.main && p->length != lengths.decoder)) continue;
    t[p->at] = p->length == 1 ? 1 : (double)p->index / (double)(p->length - 1);
  }
  free(places);
}

nps_err_t nps_stack_find(const nps_model_t *model, nps_stack_t *out) {
  const int count = model->tensor_count;
  place_t *places = nps_xcalloc((size_t)count + 1, sizeof *places);
  for (int i = 0; i < count; i++) places[i] = parse_name(model->tensors[i].name, i);
  qsort(places, (size_t)count, sizeof *places, compare_stacks);
  const int64_t longest = measure_stacks(places, count);
  const lengths_t lengths = config_layers(model->config_json);
  const int64_t layers = lengths.main > 0 ? lengths.main : longest;
  const place_t *found = NULL, *other = NULL;
  for (int i = 0; i < count; i++) {
    if (places[i].prefix == 0) continue;
    if (places[i].length == layers && !found)
      found = &places[i];
    else if ((places[i].length == layers && compare_stacks(found, &places[i]) != 0) ||
             (places[i].length != layers && places[i].length == lengths.decoder))
      other = &places[i];
  }
  nps_err_t err = NPS_OK;
  if (!found)
    err = nps_fail(NPS_ERR_INPUT, "%s: %s: has no stack of layers to cut slices from", model->name, model->path);
  else if (other)
    err = nps_fail(NPS_ERR_INPUT,
                   "%s: %s: has several stacks of layers, %.*s* and %.*s*: slices of such models are not built yet",
                   model->name, model->path, (int)found->prefix, found->name, (int)other->prefix, other->name);
  else
    *out = (nps_stack_t){found->name, found->prefix, layers};
  free(places);
  return err;
}

const char *nps_stack_rest(const nps_stack_t *stack, const char *name, int64_t *layer) {
  const place_t place = parse_name(name, 0);
  if (place.prefix != stack->size || strncmp(name, stack->prefix, stack->size) != 0) return NULL;
  *layer = place.index;
  return name + place.prefix + strspn(name + place.prefix, "0123456789");
}
