/* Numbers that jansson cannot hold: kept as marked strings, written as they were. */
#include "nps/json.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* U+FDD0, which Unicode keeps for use inside of programs. */
#define MARK "\xef\xb7\x90number "
#define MARK_SIZE (sizeof MARK - 1)

static size_t skip_digits(const char *text, size_t n, size_t at) {
  while (at < n && isdigit((unsigned char)text[at])) at++;
  return at;
}

/* Whether a token is a number as JSON has it, and whether an integer. */
static bool is_number(const char *text, size_t n, bool *integer) {
  size_t at = n > 0 && text[0] == '-', from = at;
  at = skip_digits(text, n, at);
  if (at == from || (text[from] == '0' && at > from + 1)) return false;
  *integer = at == n;
  if (at < n && text[at] == '.') {
    from = ++at;
    at = skip_digits(text, n, at);
    if (at == from) return false;
  }
  if (at < n && (text[at] == 'e' || text[at] == 'E')) {
    at++;
    if (at < n && (text[at] == '+' || text[at] == '-')) at++;
    from = at;
    at = skip_digits(text, n, at);
    if (at == from) return false;
  }
  return at == n;
}

static bool is_beyond_range(const char *token, bool integer) {
  errno = 0;
  if (!integer) return isinf(strtod(token, NULL));
  const long long value = strtoll(token, NULL, 10);
  (void)value;
  return errno == ERANGE;
}

/* Whether a token is a number, of Python's json, that jansson refuses. */
static bool is_odd(const char *text, size_t n) {
  static const char *const names[] = {"Infinity", "-Infinity", "NaN"};
  bool integer = false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (n == strlen(names[i]) && memcmp(text, names[i], n) == 0) return true;
  if (!is_number(text, n, &integer)) return false;
  char *token = nps_xstrndup(text, n);
  const bool odd = is_beyond_range(token, integer);
  free(token);
  return odd;
}

/* The end of the string that begins at a quote, behind its other quote. */
static size_t skip_string(const char *text, size_t size, size_t at) {
  for (at++; at < size && text[at] != '"'; at++)
    if (text[at] == '\\') at++;
  return at < size ? at + 1 : size;
}

static size_t skip_token(const char *text, size_t size, size_t at) {
  while (at < size && (isalnum((unsigned char)text[at]) || (text[at] && strchr("+-.", text[at])))) at++;
  return at;
}

/* A key is no place for a number. */
static bool is_key(const char *text, size_t size, size_t end) {
  while (end < size && isspace((unsigned char)text[end])) end++;
  return end < size && text[end] == ':';
}

/* A copy of a text in which such numbers are marked strings. */
static nps_text_t mark_numbers(const char *text, size_t size) {
  nps_text_t out = {NULL, 0, 0};
  size_t done = 0;
  for (size_t at = 0, end; at < size; at = end) {
    if (text[at] == '"') {
      end = skip_string(text, size, at);
      continue;
    }
    end = skip_token(text, size, at);
    if (end == at) {
      end++;
      continue;
    }
    if (!is_odd(text + at, end - at) || is_key(text, size, end)) continue;
    nps_text_add_bytes(&out, text + done, at - done);
    nps_text_add_bytes(&out, "\"" MARK, 1 + MARK_SIZE);
    nps_text_add_bytes(&out, text + at, end - at);
    nps_text_add_bytes(&out, "\"", 1);
    done = end;
  }
  nps_text_add_bytes(&out, text + done, size - done);
  return out;
}

/* Takes the marks and quotes out again, in place. */
static void unmark_numbers(char *text) {
  const size_t size = strlen(text);
  size_t to = 0;
  for (size_t at = 0, end; at < size; at = end) {
    end = text[at] == '"' ? skip_string(text, size, at) : at + 1;
    size_t from = at, n = end - at;
    if (n > MARK_SIZE + 2 && text[end] != ':' && memcmp(text + at + 1, MARK, MARK_SIZE) == 0 &&
        is_odd(text + at + 1 + MARK_SIZE, n - MARK_SIZE - 2)) {
      from += 1 + MARK_SIZE;
      n -= MARK_SIZE + 2;
    }
    memmove(text + to, text + from, n);
    to += n;
  }
  text[to] = '\0';
}

nps_err_t nps_json_parse_python(const char *text, size_t size, const char *where, json_t **out) {
  nps_text_t marked = mark_numbers(text, size);
  const nps_err_t err = nps_json_parse(marked.text ? marked.text : "", marked.size, where, out);
  free(marked.text);
  return err;
}

json_t *nps_json_of(const char *text) {
  if (!text) return NULL;
  nps_text_t marked = mark_numbers(text, strlen(text));
  json_t *json = json_loadb(marked.text ? marked.text : "", marked.size, 0, NULL);
  free(marked.text);
  return json;
}

char *nps_json_print(const json_t *json, size_t flags) {
  char *text = json_dumps(json, flags);
  if (text) unmark_numbers(text);
  return text;
}
