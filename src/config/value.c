#include "value.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double interpolate(const nps_value_t *value, double t) {
  double scaled = t * (double)(value->count - 1);
  int i0 = (int)scaled;
  if (value->kind == NPS_VALUE_BOOLEANS) return value->numbers[i0];
  int i1 = i0 + 1 < value->count ? i0 + 1 : value->count - 1;
  double part = scaled - (double)i0;
  return (1 - part) * value->numbers[i0] + part * value->numbers[i1];
}

int nps_value_filter_count(const nps_value_t *value) { return value->kind == NPS_VALUE_FILTERS ? value->count : 0; }

const char *nps_value_filter(const nps_value_t *value, int i) { return value->filters[i].filter; }

bool nps_filter_matches(const char *filter, const char *tensor) {
  return strcmp(filter, "*") == 0 || (tensor && strstr(tensor, filter));
}

bool nps_value_number(const nps_value_t *value, const char *tensor, double t, double *out) {
  switch (value->kind) {
  case NPS_VALUE_NUMBER:
  case NPS_VALUE_BOOLEAN:
    *out = value->number;
    return true;
  case NPS_VALUE_TEXT:
    return false;
  case NPS_VALUE_NUMBERS:
  case NPS_VALUE_BOOLEANS:
    *out = interpolate(value, t > 0 ? (t < 1 ? t : 1) : 0);
    return true;
  case NPS_VALUE_FILTERS:
    break;
  }
  for (int i = 0; i < value->count; i++)
    if (nps_filter_matches(value->filters[i].filter, tensor))
      return nps_value_number(value->filters[i].value, tensor, t, out);
  return false;
}

const char *nps_value_text(const nps_value_t *value) { return value->kind == NPS_VALUE_TEXT ? value->text : NULL; }

bool nps_value_is_numeric(const nps_value_t *value) {
  if (value->kind != NPS_VALUE_FILTERS) return value->kind != NPS_VALUE_TEXT;
  for (int i = 0; i < value->count; i++)
    if (!nps_value_is_numeric(value->filters[i].value)) return false;
  return true;
}

bool nps_value_is_boolean(const nps_value_t *value) {
  if (value->kind != NPS_VALUE_FILTERS) return value->kind == NPS_VALUE_BOOLEAN || value->kind == NPS_VALUE_BOOLEANS;
  for (int i = 0; i < value->count; i++)
    if (!nps_value_is_boolean(value->filters[i].value)) return false;
  return true;
}

bool nps_value_is_plain(const nps_value_t *value) {
  switch (value->kind) {
  case NPS_VALUE_NUMBER:
  case NPS_VALUE_BOOLEAN:
  case NPS_VALUE_TEXT:
    return true;
  case NPS_VALUE_NUMBERS:
  case NPS_VALUE_BOOLEANS:
    return value->count == 1;
  case NPS_VALUE_FILTERS:
    break;
  }
  return strcmp(value->filters[0].filter, "*") == 0 && nps_value_is_plain(value->filters[0].value);
}

void nps_value_free(nps_value_t *value) {
  if (!value) return;
  for (int i = 0; value->filters && i < value->count; i++) {
    free(value->filters[i].filter);
    nps_value_free(value->filters[i].value);
  }
  free(value->filters);
  free(value->numbers);
  free(value->text);
  free(value);
}

/* As nps_node_scalar(), but a quoted number is a number, and a quoted true or false a boolean, as in mergekit. */
static nps_scalar_t read_plain(const nps_node_t *node, double *number) {
  nps_node_t plain = *node;
  const nps_scalar_t scalar = nps_node_scalar(node, number);
  if (scalar != NPS_SCALAR_TEXT || node->kind != NPS_NODE_SCALAR) return scalar;
  plain.quoted = false;
  const nps_scalar_t inside = nps_node_scalar(&plain, number);
  return inside == NPS_SCALAR_NUMBER || inside == NPS_SCALAR_BOOLEAN ? inside : scalar;
}

static nps_value_t *read_scalar(const nps_node_t *node, const char *what) {
  double number = 0;
  nps_scalar_t scalar = read_plain(node, &number);
  if (scalar == NPS_SCALAR_NULL) {
    nps_place_fail(node->place, "%s: expected a value, found nothing", what);
    return NULL;
  }
  if (scalar == NPS_SCALAR_NUMBER && !isfinite(number)) {
    char shown[72];
    nps_place_fail(node->place, "%s: expected a finite number, found %s", what, nps_show(node->text, shown));
    return NULL;
  }
  nps_value_t *value = nps_xcalloc(1, sizeof *value);
  value->kind = scalar == NPS_SCALAR_NUMBER    ? NPS_VALUE_NUMBER
                : scalar == NPS_SCALAR_BOOLEAN ? NPS_VALUE_BOOLEAN
                                               : NPS_VALUE_TEXT;
  value->number = number;
  if (scalar == NPS_SCALAR_TEXT) value->text = nps_xstrdup(node->text);
  return value;
}

static bool read_number_at(const nps_node_t *item, const char *what, bool boolean, double *out) {
  char found[96];
  nps_scalar_t scalar = read_plain(item, out);
  if (scalar != (boolean ? NPS_SCALAR_BOOLEAN : NPS_SCALAR_NUMBER)) {
    nps_place_fail(item->place, "%s: expected a list of %s, found %s in it", what, boolean ? "booleans" : "numbers",
                   nps_node_describe(item, found));
    return false;
  }
  if (isfinite(*out)) return true;
  nps_place_fail(item->place, "%s: expected finite numbers, found %s", what, nps_show(item->text, found));
  return false;
}

static nps_value_t *read_numbers(const nps_node_t *node, const char *what) {
  double first = 0;
  bool boolean = read_plain(node->entries[0].value, &first) == NPS_SCALAR_BOOLEAN, good = true;
  nps_value_t *value = nps_xcalloc(1, sizeof *value);
  value->kind = boolean ? NPS_VALUE_BOOLEANS : NPS_VALUE_NUMBERS;
  value->count = node->count;
  value->numbers = nps_xcalloc((size_t)node->count, sizeof *value->numbers);
  for (int i = 0; good && i < node->count; i++)
    good = read_number_at(node->entries[i].value, what, boolean, &value->numbers[i]);
  if (good) return value;
  nps_value_free(value);
  return NULL;
}

static bool check_filter_keys(const nps_node_t *item, const char *what) {
  static const char *const keys[] = {"filter", "value"};
  char found[96];
  if (item->kind != NPS_NODE_MAPPING) {
    nps_place_fail(item->place, "%s: expected a list of {filter, value}, found %s in it", what,
                   nps_node_describe(item, found));
    return false;
  }
  for (int i = 0; i < item->count; i++) {
    const char *key = item->entries[i].key;
    if (strcmp(key, keys[0]) == 0 || strcmp(key, keys[1]) == 0) continue;
    const char *near = nps_nearest(key, keys, 2);
    nps_place_fail(item->entries[i].place, "%s: unknown key '%s', %s%s%s", what, nps_show(key, found),
                   near ? "did you mean '" : "expected {filter, value}", near ? near : "", near ? "'?" : "");
    return false;
  }
  if (nps_node_find(item, "value")) return true;
  nps_place_fail(item->place, "%s: expected {filter, value}, found no value", what);
  return false;
}

static bool read_filter(const nps_node_t *item, const char *what, nps_filter_t *out) {
  if (!check_filter_keys(item, what)) return false;
  char found[96];
  const nps_entry_t *filter = nps_node_find(item, "filter");
  const nps_node_t *value = nps_node_find(item, "value")->value;
  if (filter && filter->value->kind != NPS_NODE_SCALAR) {
    nps_place_fail(filter->value->place, "%s: expected part of a tensor's name or '*' as filter, found %s", what,
                   nps_node_describe(filter->value, found));
    return false;
  }
  if (value->kind == NPS_NODE_MAPPING ||
      (value->kind == NPS_NODE_LIST && value->count && value->entries[0].value->kind == NPS_NODE_MAPPING)) {
    nps_place_fail(value->place, "%s: filters inside filters are not supported", what);
    return false;
  }
  bool all = !filter || nps_node_is_null(filter->value);
  out->filter = nps_xstrdup(all ? "*" : filter->value->text);
  out->value = nps_value_read(value, what);
  return out->value;
}

/* A single {filter, value} counts as a list of one. */
static nps_value_t *read_filters(const nps_node_t *node, const char *what) {
  bool single = node->kind == NPS_NODE_MAPPING, good = true;
  nps_value_t *value = nps_xcalloc(1, sizeof *value);
  value->kind = NPS_VALUE_FILTERS;
  value->count = single ? 1 : node->count;
  value->filters = nps_xcalloc((size_t)value->count, sizeof *value->filters);
  for (int i = 0; i < value->count; i++)
    if (!read_filter(single ? node : node->entries[i].value, what, &value->filters[i])) good = false;
  if (good) return value;
  nps_value_free(value);
  return NULL;
}

nps_value_t *nps_value_read(const nps_node_t *node, const char *what) {
  if (node->kind == NPS_NODE_SCALAR) return read_scalar(node, what);
  if (node->kind == NPS_NODE_MAPPING) return read_filters(node, what);
  if (node->count == 0) {
    nps_place_fail(node->place, "%s: expected numbers or {filter, value}, found an empty list", what);
    return NULL;
  }
  return node->entries[0].value->kind == NPS_NODE_MAPPING ? read_filters(node, what) : read_numbers(node, what);
}
