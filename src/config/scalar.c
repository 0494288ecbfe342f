#include "node.h"
#include "nps/config.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool is_one_of(const char *text, const char *const *words, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(text, words[i]) == 0) return true;
  return false;
}

#define IS_ONE_OF(text, ...)                                                                                           \
  is_one_of(text, (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

static bool is_null(const char *s) { return IS_ONE_OF(s, "", "~", "null", "Null", "NULL"); }

static bool is_true(const char *s) {
  return IS_ONE_OF(s, "true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON");
}

static bool is_false(const char *s) {
  return IS_ONE_OF(s, "false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF");
}

static bool is_not_finite(const char *s) {
  if (*s == '+' || *s == '-') s++;
  if (*s == '.') s++;
  return strcasecmp(s, "inf") == 0 || strcasecmp(s, "infinity") == 0 || strcasecmp(s, "nan") == 0;
}

/* Digits of a base with underscores between them, after the sign and prefix. */
static bool parse_digits(const char *s, unsigned base, uint64_t *out) {
  uint64_t value = 0;
  bool any = false;
  for (; *s; s++) {
    if (*s == '_' && any) continue;
    if (!isxdigit((unsigned char)*s)) return false;
    unsigned digit = isdigit((unsigned char)*s) ? (unsigned)(*s - '0') : (unsigned)(tolower(*s) - 'a') + 10;
    if (digit >= base || __builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, digit, &value))
      return false;
    any = true;
  }
  *out = value;
  return any;
}

/* An unsigned integer as in YAML 1.1: 0b binary, 0x hexadecimal, a leading 0 octal. */
static bool parse_integer(const char *s, uint64_t *out) {
  if (s[0] == '0' && s[1] == 'b') return parse_digits(s + 2, 2, out);
  if (s[0] == '0' && s[1] == 'x') return parse_digits(s + 2, 16, out);
  if (s[0] == '0' && s[1]) return parse_digits(s + 1, 8, out);
  return parse_digits(s, 10, out);
}

static size_t skip_digits(const char *s, bool *any) {
  size_t n = 0;
  for (; isdigit((unsigned char)s[n]) || (s[n] == '_' && (n > 0 || *any)); n++)
    if (s[n] != '_') *any = true;
  return n;
}

/* [digits][.digits][e[sign]digits] with at least one digit in the mantissa: what strtod() would take and no more. */
static bool is_decimal(const char *s) {
  bool mantissa = false, exponent = false;
  s += skip_digits(s, &mantissa);
  if (*s == '.') s++, s += skip_digits(s, &mantissa);
  if (!mantissa) return false;
  if (*s != 'e' && *s != 'E') return *s == '\0';
  s++;
  if (*s == '+' || *s == '-') s++;
  s += skip_digits(s, &exponent);
  return exponent && *s == '\0';
}

/* 08 is no number in YAML 1.1, where 010 is 8. */
static bool is_bad_octal(const char *s) { return s[0] == '0' && s[1] && strspn(s, "0123456789_") == strlen(s); }

static double parse_decimal(const char *s) {
  char *digits = nps_xstrdup(s), *end = digits;
  for (const char *c = s; *c; c++)
    if (*c != '_') *end++ = *c;
  *end = '\0';
  double value = strtod(digits, NULL);
  free(digits);
  return value;
}

static bool parse_number(const char *text, double *out) {
  const char *s = text + (*text == '+' || *text == '-');
  uint64_t integer;
  if (is_not_finite(text))
    *out = NAN;
  else if (s[0] == '0' && s[1] && parse_integer(s, &integer))
    *out = (double)integer;
  else if (is_decimal(s) && !is_bad_octal(s))
    *out = parse_decimal(s);
  else
    return false;
  if (*text == '-') *out = -*out;
  return true;
}

nps_scalar_t nps_node_scalar(const nps_node_t *node, double *number) {
  if (node->kind != NPS_NODE_SCALAR || node->quoted) return NPS_SCALAR_TEXT;
  if (is_null(node->text)) return NPS_SCALAR_NULL;
  if (is_true(node->text) || is_false(node->text)) {
    *number = is_true(node->text) ? 1 : 0;
    return NPS_SCALAR_BOOLEAN;
  }
  return parse_number(node->text, number) ? NPS_SCALAR_NUMBER : NPS_SCALAR_TEXT;
}

bool nps_node_uint64(const nps_node_t *node, uint64_t *out) {
  if (node->kind != NPS_NODE_SCALAR || node->quoted) return false;
  return parse_integer(node->text + (*node->text == '+'), out);
}

bool nps_node_is_null(const nps_node_t *node) {
  double number;
  return nps_node_scalar(node, &number) == NPS_SCALAR_NULL;
}

const char *nps_node_describe(const nps_node_t *node, char out[96]) {
  char shown[72];
  double number;
  if (node->kind != NPS_NODE_SCALAR) {
    const char *kind = node->kind == NPS_NODE_LIST ? "list" : "mapping";
    snprintf(out, 96, node->count ? "a %s" : "an empty %s", kind);
    return out;
  }
  nps_scalar_t scalar = nps_node_scalar(node, &number);
  nps_show(node->text, shown);
  if (scalar == NPS_SCALAR_NULL)
    snprintf(out, 96, "nothing");
  else if (scalar == NPS_SCALAR_TEXT)
    snprintf(out, 96, "the text '%s'", shown);
  else
    snprintf(out, 96, "the %s %s", scalar == NPS_SCALAR_NUMBER ? "number" : "boolean", shown);
  return out;
}

bool nps_parse_size(const char *text, int64_t *bytes) {
  static const struct {
    const char *name;
    int64_t factor;
  } units[] = {{"", 1},
               {"B", 1},
               {"KB", 1000},
               {"MB", 1000000},
               {"GB", 1000000000},
               {"TB", 1000000000000},
               {"KiB", INT64_C(1) << 10},
               {"MiB", INT64_C(1) << 20},
               {"GiB", INT64_C(1) << 30},
               {"TiB", INT64_C(1) << 40}};
  size_t digits = strspn(text, "0123456789"), end = digits;
  if (text[end] == '.') end += 1 + strspn(text + end + 1, "0123456789");
  if (digits == 0 || digits > 19 || text[end - 1] == '.' || end > 64) return false;
  const char *unit = text + end + strspn(text + end, " ");
  if (*unit == '\0' && text[end]) return false;
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    if (strcmp(units[i].name, unit) != 0) continue;
    long double size = strtold(text, NULL) * (long double)units[i].factor;
    if (!(size >= 1) || size >= 0x1p63L) return false;
    *bytes = (int64_t)size;
    return true;
  }
  return false;
}
