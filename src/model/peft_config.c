/* adapter_config.json of the peft library. */
#include "peft.h"

#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>

/* Keys that say nothing about the weights, or that the tensors say themselves. */
static const char *const no_effect[] = {"peft_type",
                                        "auto_mapping",
                                        "base_model_name_or_path",
                                        "bias",
                                        "corda_config",
                                        "ensure_weight_tying",
                                        "eva_config",
                                        "exclude_modules",
                                        "feedforward_modules",
                                        "inference_mode",
                                        "init_ia3_weights",
                                        "layers_pattern",
                                        "layers_to_transform",
                                        "loftq_config",
                                        "lora_bias",
                                        "lora_dropout",
                                        "lora_ga_config",
                                        "megatron_core",
                                        "modules_to_save",
                                        "peft_version",
                                        "qalora_group_size",
                                        "revision",
                                        "runtime_config",
                                        "target_modules",
                                        "task_type",
                                        NULL};

/* Keys that are read below. */
static const char *const known[] = {"alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "r",
                                    "rank_pattern",  "sine_omega",     "use_dora",          "use_rslora", NULL};

/* Ways to start training that leave the base as it is: the others change it, and the adapter is of the changed one. */
static const char *const starts[] = {"true", "gaussian", "eva", "orthogonal", NULL};

static bool is_one_of(const char *text, const char *const *list) {
  while (*list && strcmp(*list, text) != 0) list++;
  return *list != NULL;
}

static bool is_off(const json_t *value) {
  switch (json_typeof(value)) {
  case JSON_NULL:
  case JSON_FALSE:
    return true;
  case JSON_INTEGER:
    return json_integer_value(value) == 0;
  case JSON_REAL:
    return fpclassify(json_real_value(value)) == FP_ZERO;
  case JSON_STRING:
    return json_string_length(value) == 0;
  case JSON_ARRAY:
    return json_array_size(value) == 0;
  case JSON_OBJECT:
    return json_object_size(value) == 0;
  default:
    return false;
  }
}

static void refuse_unknown(const nps_peft_config_t *config, nps_checks_t *checks) {
  const char *key;
  json_t *value;
  json_object_foreach(config->root, key, value) {
    if (!is_one_of(key, no_effect) && !is_one_of(key, known) && !is_off(value))
      nps_checks_fail(checks, "option '%s' is not built", key);
  }
}

static bool read_flag(const nps_peft_config_t *config, nps_checks_t *checks, const char *key) {
  const json_t *value = json_object_get(config->root, key);
  if (value && !json_is_boolean(value) && !json_is_null(value))
    nps_checks_fail(checks, "%s: expected true or false", key);
  return json_is_true(value);
}

/* A number above 0, or `fallback` where there is none. */
static double read_number(const nps_peft_config_t *config, nps_checks_t *checks, const char *key, double fallback) {
  const json_t *value = json_object_get(config->root, key);
  if (!value || json_is_null(value)) return fallback;
  if (json_is_number(value) && json_number_value(value) > 0) return json_number_value(value);
  nps_checks_fail(checks, "%s: expected a number above 0", key);
  return fallback;
}

static void check_pattern(const nps_peft_config_t *config, nps_checks_t *checks, const char *key) {
  const char *module;
  json_t *value, *pattern = json_object_get(config->root, key);
  if (pattern && !json_is_object(pattern) && !json_is_null(pattern))
    nps_checks_fail(checks, "%s: expected an object", key);
  json_object_foreach(pattern, module, value) {
    if (!json_is_number(value) || !(json_number_value(value) > 0))
      nps_checks_fail(checks, "%s: %s: expected a number above 0", key, module);
  }
}

static void check_start(const nps_peft_config_t *config, nps_checks_t *checks) {
  const json_t *value = json_object_get(config->root, "init_lora_weights");
  const char *text = json_string_value(value);
  if (text && !is_one_of(text, starts))
    nps_checks_fail(checks,
                    "init_lora_weights: '%s' changes the base before training; save the adapter with "
                    "path_initial_model_for_weight_conversion, which makes it one for the unchanged base",
                    text);
}

static void read_lora(nps_peft_config_t *config, nps_checks_t *checks) {
  config->rank = read_number(config, checks, "r", 8);
  config->alpha = read_number(config, checks, "lora_alpha", 8);
  config->omega = read_number(config, checks, "sine_omega", 0);
  config->rslora = read_flag(config, checks, "use_rslora");
  config->dora = read_flag(config, checks, "use_dora");
  check_pattern(config, checks, "rank_pattern");
  check_pattern(config, checks, "alpha_pattern");
  check_start(config, checks);
  if (config->dora && config->omega > 0) nps_checks_fail(checks, "sine_omega together with use_dora is not built");
}

nps_err_t nps_peft_config_read(const char *text, const char *where, nps_peft_config_t *config) {
  nps_checks_t checks = {where, 0};
  *config = (nps_peft_config_t){0};
  NPS_TRY(nps_json_parse_python(text, strlen(text), where, &config->root));
  const char *type = json_string_value(json_object_get(config->root, "peft_type"));
  if (!json_is_object(config->root)) return nps_fail(NPS_ERR_INPUT, "%s: expected a JSON object", where);
  if (!type) return nps_fail(NPS_ERR_INPUT, "%s: peft_type is missing", where);
  config->ia3 = strcmp(type, "IA3") == 0;
  if (!config->ia3 && strcmp(type, "LORA") != 0)
    return nps_fail(NPS_ERR_INPUT, "%s: peft_type: expected LORA or IA3, found '%s', which is not built", where, type);
  config->fan_in_fan_out = read_flag(config, &checks, "fan_in_fan_out");
  if (!config->ia3) read_lora(config, &checks);
  refuse_unknown(config, &checks);
  return nps_checks_end(&checks);
}

void nps_peft_config_free(nps_peft_config_t *config) {
  json_decref(config->root);
  config->root = NULL;
}

/* ---- patterns: Python's re.match("(.*\.)?(KEY)$") by POSIX's extended expressions ---- */

/* What both write alike, and (?:, \d, \w, \s. NULL where there is more. */
static char *translate(const char *key) {
  nps_text_t out = {NULL, 0, 0};
  nps_text_add(&out, "^(.*\\.)?(");
  for (const char *p = key; *p; p++) {
    if (p[0] == '\\' && p[1] == 'd') {
      nps_text_add(&out, "[0-9]");
      p++;
    } else if (p[0] == '\\' && p[1] && (strchr("wWsS", p[1]) || !strchr("ABDZbfnrtuvx0123456789", p[1]))) {
      nps_text_add_bytes(&out, p, 2);
      p++;
    } else if (p[0] == '\\' || (strchr("*+?}", p[0]) && p[1] == '?')) {
      free(out.text);
      return NULL;
    } else if (p[0] == '(' && p[1] == '?' && p[2] == ':') {
      nps_text_add(&out, "(");
      p += 2;
    } else
      nps_text_add_bytes(&out, p, 1);
  }
  nps_text_add(&out, ")$");
  return out.text;
}

static nps_err_t match_key(const char *key, const char *where, const char *module, bool *matches) {
  regex_t regex;
  char *text = translate(key);
  *matches = strcmp(key, module) == 0;
  const bool good = text && regcomp(&regex, text, REG_EXTENDED | REG_NOSUB) == 0;
  free(text);
  if (!good)
    return nps_fail(NPS_ERR_INPUT, "%s: the pattern '%s' is no regular expression that is known here", where, key);
  *matches = regexec(&regex, module, 0, NULL, 0) == 0;
  regfree(&regex);
  return NPS_OK;
}

/* The number of the first key that matches a module; else *number stays. */
static nps_err_t look_up(const nps_peft_config_t *config, const char *where, const char *pattern, const char *module,
                         double *number) {
  const char *key;
  json_t *value;
  json_object_foreach(json_object_get(config->root, pattern), key, value) {
    bool matches = false;
    NPS_TRY(match_key(key, where, module, &matches));
    if (!matches) continue;
    *number = json_number_value(value);
    return NPS_OK;
  }
  return NPS_OK;
}

nps_err_t nps_peft_scale(const nps_peft_config_t *config, const char *where, const char *module, double *rank,
                         double *scale) {
  double alpha = config->alpha;
  *rank = config->rank;
  NPS_TRY(look_up(config, where, "rank_pattern", module, rank));
  NPS_TRY(look_up(config, where, "alpha_pattern", module, &alpha));
  *scale = alpha / (config->rslora ? sqrt(*rank) : *rank);
  return NPS_OK;
}

bool nps_peft_is_saved(const nps_peft_config_t *config, const char *tensor) {
  size_t i;
  json_t *item;
  bool saved = false;
  char *within = nps_xstrf(".%s.", tensor);
  json_array_foreach(json_object_get(config->root, "modules_to_save"), i, item) {
    char *module = json_is_string(item) ? nps_xstrf(".%s.", json_string_value(item)) : NULL;
    saved |= module && strstr(within, module);
    free(module);
  }
  free(within);
  return saved;
}

/* ---- adapters that are merged as adapters ---- */

void nps_peft_compare(const char *config, const char *other, const char *other_name, nps_checks_t *checks) {
  const json_t *keys[2] = {nps_json_of(config), nps_json_of(other)};
  const char *key;
  json_t *value;
  for (int k = 0; k < 2; k++) json_object_foreach((json_t *)keys[k], key, value) {
      const json_t *there = json_object_get(keys[1 - k], key);
      const bool counts = strcmp(key, "peft_type") == 0 || !is_one_of(key, no_effect);
      if (!counts || (k == 1 && there) || (there ? json_equal(value, there) : is_off(value))) continue;
      nps_checks_fail(checks, "adapter_config.json: %s is not the same as in %s", key, other_name);
    }
  for (int k = 0; k < 2; k++) json_decref((json_t *)keys[k]);
}
