#include "fitness_internal.h"

#include <stdlib.h>
#include <string.h>

/* Larger sizes are no networks of this kind, and products of them would not fit. */
#define MOST ((int64_t)1 << 20)

static nps_err_t fail(const nps_net_t *net, const char *key, const char *expected, const json_t *found) {
  char *text = nps_json_print(found, JSON_ENCODE_ANY | JSON_COMPACT);
  nps_fail(NPS_ERR_INPUT, "%s: config.json: %s: expected %s, found %s", net->body->path, key, expected,
           text ? text : "?");
  free(text);
  return NPS_ERR_INPUT;
}

static bool is_count(const json_t *value, int64_t *count) {
  if (!json_is_integer(value)) return false;
  *count = json_integer_value(value);
  return *count >= 1 && *count <= MOST;
}

nps_err_t nps_net_get_count(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                            int64_t *value) {
  const json_t *found = json_object_get(config, key);
  *value = standard;
  if (!found || is_count(found, value)) return NPS_OK;
  *value = standard;
  return fail(net, key, "a whole number from 1 to 1048576", found);
}

nps_err_t nps_net_get_count_or_null(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                                    int64_t *value) {
  *value = standard;
  return json_is_null(json_object_get(config, key)) ? NPS_OK : nps_net_get_count(net, config, key, standard, value);
}

nps_err_t nps_net_get_pair(const nps_net_t *net, const json_t *config, const char *key, int64_t standard,
                           int64_t value[2]) {
  const json_t *found = json_object_get(config, key);
  value[0] = value[1] = standard;
  if (!found) return NPS_OK;
  if (is_count(found, &value[0])) {
    value[1] = value[0];
    return NPS_OK;
  }
  if (json_array_size(found) == 2 && is_count(json_array_get(found, 0), &value[0]) &&
      is_count(json_array_get(found, 1), &value[1]))
    return NPS_OK;
  value[0] = value[1] = standard;
  return fail(net, key, "a whole number from 1 to 1048576, or [height, width]", found);
}

nps_err_t nps_net_get_number(const nps_net_t *net, const json_t *config, const char *key, double standard,
                             double *value) {
  const json_t *found = json_object_get(config, key);
  *value = standard;
  if (!found) return NPS_OK;
  if (!json_is_number(found) || !(json_number_value(found) >= 0)) return fail(net, key, "a number from 0 on", found);
  *value = json_number_value(found);
  return NPS_OK;
}

nps_err_t nps_net_get_bool(const nps_net_t *net, const json_t *config, const char *key, bool standard, bool *value) {
  const json_t *found = json_object_get(config, key);
  *value = standard;
  if (!found) return NPS_OK;
  if (!json_is_boolean(found)) return fail(net, key, "true or false", found);
  *value = json_is_true(found);
  return NPS_OK;
}

nps_err_t nps_net_get_text(const nps_net_t *net, const json_t *config, const char *key, const char *standard,
                           const char **value) {
  const json_t *found = json_object_get(config, key);
  *value = standard;
  if (!found) return NPS_OK;
  if (!json_is_string(found)) return fail(net, key, "a text", found);
  *value = json_string_value(found);
  return NPS_OK;
}

nps_err_t nps_net_find_activation(const nps_net_t *net, const json_t *config, const char *key, const char *standard,
                                  nps_activation_fn **value) {
  const char *name = NULL;
  NPS_TRY(nps_net_get_text(net, config, key, standard, &name));
  *value = nps_activation_find(name);
  if (*value) return NPS_OK;
  char *known = nps_activation_names();
  nps_fail(NPS_ERR_INPUT, "%s: config.json: %s %s is not implemented (there are: %s)", net->body->path, key, name,
           known);
  free(known);
  return NPS_ERR_INPUT;
}

nps_err_t nps_net_get_activation(const nps_net_t *net, const json_t *config, const char *standard,
                                 nps_activation_fn **value) {
  return nps_net_find_activation(net, config, "hidden_act", standard, value);
}

nps_err_t nps_net_refuse(const nps_net_t *net, const json_t *config, const char *key) {
  const json_t *found = json_object_get(config, key);
  if (!found || json_is_null(found) || json_is_false(found)) return NPS_OK;
  if ((json_is_object(found) && json_object_size(found) == 0) || (json_is_array(found) && json_array_size(found) == 0))
    return NPS_OK;
  return fail(net, key, "nothing, as this option is not implemented", found);
}

/* Scores are made for one label a sample. */
nps_err_t nps_net_check_problem_type(const nps_net_t *net, const json_t *config) {
  const json_t *type = json_object_get(config, "problem_type");
  const char *text = json_string_value(type);
  if (!type || json_is_null(type) || (text && strcmp(text, "single_label_classification") == 0)) return NPS_OK;
  return nps_net_refuse(net, config, "problem_type");
}
