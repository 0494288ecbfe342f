#include "section.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool nps_number_read(const nps_node_t *value, const char *what, double least, bool above, double most, double *out) {
  char found[96];
  double number;
  if (value->kind == NPS_NODE_SCALAR && nps_node_scalar(value, &number) == NPS_SCALAR_NUMBER && isfinite(number) &&
      (above ? number > least : number >= least) && number <= most) {
    *out = number;
    return true;
  }
  char *range = most < HUGE_VAL ? nps_xstrf(" and at most %g", most) : nps_xstrdup("");
  if (least == -HUGE_VAL)
    nps_place_fail(value->place, "%s: expected a finite number, found %s", what, nps_node_describe(value, found));
  else
    nps_place_fail(value->place, "%s: expected a number %s %g%s, found %s", what, above ? "above" : "of at least",
                   least, range, nps_node_describe(value, found));
  free(range);
  return false;
}

bool nps_count_read(const nps_node_t *value, const char *what, int64_t least, int64_t most, int64_t *out) {
  char found[96];
  uint64_t number;
  if (value->kind == NPS_NODE_SCALAR && nps_node_uint64(value, &number) && number <= (uint64_t)most &&
      (int64_t)number >= least) {
    *out = (int64_t)number;
    return true;
  }
  nps_place_fail(value->place, "%s: expected a whole number from %" PRId64 " to %" PRId64 ", found %s", what, least,
                 most, nps_node_describe(value, found));
  return false;
}

bool nps_boolean_read(const nps_node_t *value, const char *what, bool *out) {
  char found[96];
  double number;
  if (value->kind == NPS_NODE_SCALAR && nps_node_scalar(value, &number) == NPS_SCALAR_BOOLEAN) {
    *out = number != 0;
    return true;
  }
  nps_place_fail(value->place, "%s: expected true or false, found %s", what, nps_node_describe(value, found));
  return false;
}

static void fail_word(const nps_node_t *value, const char *what, const nps_word_t *words, int count) {
  char found[96];
  nps_text_t list = {0};
  int built = 0;
  for (int i = 0; i < count; i++) {
    if (words[i].value == NPS_WORD_NOT_BUILT) continue;
    nps_text_add(&list, "%s%s", built ? ", " : "", words[i].text);
    built++;
  }
  nps_place_fail(value->place, "%s: expected %s%s, found %s", what, built > 1 ? "one of " : "", list.text,
                 nps_node_describe(value, found));
  free(list.text);
}

bool nps_word_read(const nps_node_t *value, const char *what, const nps_word_t *words, int count, int *out) {
  for (int i = 0; value->kind == NPS_NODE_SCALAR && i < count; i++) {
    if (strcmp(value->text, words[i].text) != 0) continue;
    if (words[i].value == NPS_WORD_NOT_BUILT) {
      nps_place_fail(value->place, "%s: %s is not built yet", what, words[i].text);
      return false;
    }
    *out = words[i].value;
    return true;
  }
  fail_word(value, what, words, count);
  return false;
}

const char *nps_word_text(const nps_word_t *words, int count, int value) {
  for (int i = 0; i < count; i++)
    if (words[i].value == value) return words[i].text;
  return "";
}

bool nps_numbers_read(const nps_node_t *value, const char *what, int expected, double least, double **out, int *count) {
  char found[96];
  if (value->kind != NPS_NODE_LIST || value->count == 0 || (expected && value->count != expected)) {
    if (value->kind == NPS_NODE_LIST && expected)
      nps_place_fail(value->place, "%s: expected %d numbers, found %d", what, expected, value->count);
    else
      nps_place_fail(value->place, "%s: expected a list of numbers, found %s", what, nps_node_describe(value, found));
    return false;
  }
  double *numbers = nps_xcalloc((size_t)value->count, sizeof *numbers);
  for (int i = 0; i < value->count; i++)
    if (!nps_number_read(value->entries[i].value, what, least, false, HUGE_VAL, &numbers[i])) {
      free(numbers);
      return false;
    }
  *out = numbers;
  *count = value->count;
  return true;
}
