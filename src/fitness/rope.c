#include "rope.h"

#include <math.h>
#include <string.h>

/* ---- config ---- */

static const char *const kinds[] = {[NPS_ROPE_DEFAULT] = "default",
                                    [NPS_ROPE_LINEAR] = "linear",
                                    [NPS_ROPE_DYNAMIC] = "dynamic",
                                    [NPS_ROPE_LLAMA3] = "llama3",
                                    [NPS_ROPE_YARN] = "yarn"};

static nps_err_t read_kind(const nps_net_t *net, const json_t *object, const char *key, nps_rope_t *rope) {
  const char *type = NULL;
  NPS_TRY(nps_net_get_text(net, object, json_object_get(object, "rope_type") ? "rope_type" : "type", "default", &type));
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    rope->kind = (nps_rope_kind_t)i;
    if (strcmp(type, kinds[i]) == 0) return NPS_OK;
  }
  return nps_fail(
      NPS_ERR_INPUT,
      "%s: config.json: %s: rope_type %s is not implemented (there are: default, linear, dynamic, llama3, yarn)",
      net->body->path, key, type);
}

/* A missing number, or null, gives the default. A negative default: there must be one. */
static nps_err_t read_number(const nps_net_t *net, const json_t *object, const char *key, double standard,
                             double *value) {
  const bool missing = !json_object_get(object, key) || json_is_null(json_object_get(object, key));
  if (!missing) return nps_net_get_number(net, object, key, standard, value);
  *value = standard;
  if (standard >= 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: the scaling of positions needs %s, which is not there",
                  net->body->path, key);
}

static double grow(double factor, double scale) { return factor <= 1 ? 1 : 0.1 * scale * log(factor) + 1; }

static nps_err_t read_yarn(const nps_net_t *net, const json_t *object, nps_rope_t *rope) {
  double scale = 0, scale_all = 0;
  NPS_TRY(read_number(net, object, "beta_fast", 32, &rope->high));
  NPS_TRY(read_number(net, object, "beta_slow", 1, &rope->low));
  NPS_TRY(read_number(net, object, "mscale", 0, &scale));
  NPS_TRY(read_number(net, object, "mscale_all_dim", 0, &scale_all));
  NPS_TRY(nps_net_get_bool(net, object, "truncate", true, &rope->truncate));
  const bool both = scale != 0 && scale_all != 0;
  const double attention = both ? grow(rope->factor, scale) / grow(rope->factor, scale_all) : grow(rope->factor, 1);
  if (rope->high == 0) rope->high = 32;
  if (rope->low == 0) rope->low = 1;
  return read_number(net, object, "attention_factor", attention, &rope->attention);
}

static nps_err_t read_llama3(const nps_net_t *net, const json_t *object, nps_rope_t *rope) {
  NPS_TRY(read_number(net, object, "low_freq_factor", -1, &rope->low));
  NPS_TRY(read_number(net, object, "high_freq_factor", -1, &rope->high));
  if (rope->low > 0 && rope->high > rope->low) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: expected 0 < low_freq_factor < high_freq_factor, found %g and %g",
                  net->body->path, rope->low, rope->high);
}

/* The places before the scaling may stand beside the object too, and then count. */
static nps_err_t read_scaling(const nps_net_t *net, const json_t *config, const json_t *object, nps_rope_t *rope) {
  static const char original[] = "original_max_position_embeddings";
  NPS_TRY(read_number(net, object, "factor", -1, &rope->factor));
  if (!(rope->factor > 0))
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: factor: expected a number above 0, found 0", net->body->path);
  const json_t *place = json_object_get(config, original) ? config : object;
  NPS_TRY(read_number(net, place, original, rope->most, &rope->original));
  if (!(rope->original > 0))
    return nps_fail(NPS_ERR_INPUT, "%s: config.json: %s: expected a number above 0, found 0", net->body->path,
                    original);
  if (rope->kind == NPS_ROPE_YARN) return read_yarn(net, object, rope);
  return rope->kind == NPS_ROPE_LLAMA3 ? read_llama3(net, object, rope) : NPS_OK;
}

static nps_err_t check_whole(const nps_net_t *net, const json_t *object) {
  double part = 1;
  NPS_TRY(read_number(net, object, "partial_rotary_factor", 1, &part));
  if (part == 1) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: partial_rotary_factor %g is not implemented, only 1",
                  net->body->path, part);
}

static nps_err_t read_object(const nps_net_t *net, const json_t *config, const char *key, nps_rope_t *rope) {
  const json_t *object = json_object_get(config, key);
  if (!json_is_object(object)) return nps_net_refuse(net, config, key);
  NPS_TRY(read_kind(net, object, key, rope));
  NPS_TRY(check_whole(net, object));
  NPS_TRY(read_number(net, object, "rope_theta", rope->theta, &rope->theta));
  return rope->kind == NPS_ROPE_DEFAULT ? NPS_OK : read_scaling(net, config, object, rope);
}

/* Newer configs hold all in rope_parameters. */
nps_err_t nps_rope_read(const nps_net_t *net, const json_t *config, int64_t positions, nps_rope_t *rope) {
  int64_t most = 0;
  *rope = (nps_rope_t){.theta = 10000, .attention = 1, .factor = 1};
  NPS_TRY(nps_net_get_count(net, config, "max_position_embeddings", positions, &most));
  rope->most = (double)most;
  NPS_TRY(read_number(net, config, "rope_theta", rope->theta, &rope->theta));
  NPS_TRY(check_whole(net, config));
  const bool newer = json_is_object(json_object_get(config, "rope_parameters"));
  NPS_TRY(read_object(net, config, newer ? "rope_parameters" : "rope_scaling", rope));
  if (rope->theta > 0 && (rope->kind != NPS_ROPE_YARN || rope->theta > 1)) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: config.json: rope_theta: expected a number above %d, found %g", net->body->path,
                  rope->kind == NPS_ROPE_YARN, rope->theta);
}

/* ---- angles ---- */

static const double pi = 3.14159265358979323846;

/* Long waves are stretched by the factor, short ones are left, and between the two it goes from one to the other. */
static double stretch_waves(const nps_rope_t *rope, double turn) {
  const double turns = rope->original * turn / (2 * pi); /* in the original length */
  if (turns < rope->low) return turn / rope->factor;
  if (turns > rope->high) return turn;
  const double share = (turns - rope->low) / (rope->high - rope->low);
  return (1 - share) * turn / rope->factor + share * turn;
}

/* The number of the head that makes so many turns in the original length. */
static double number_of(const nps_rope_t *rope, double turns, double width) {
  return width * log(rope->original / (turns * 2 * pi)) / (2 * log(rope->theta));
}

static double mix(const nps_rope_t *rope, double width, double c, double turn) {
  double first = number_of(rope, rope->high, width), last = number_of(rope, rope->low, width);
  if (rope->truncate) first = floor(first), last = ceil(last);
  first = fmax(first, 0);
  last = fmin(last, width - 1);
  if (first == last) last += 0.001;
  const double share = fmin(fmax((c - first) / (last - first), 0), 1);
  return turn / rope->factor * share + turn * (1 - share);
}

static double theta_of(const nps_rope_t *rope, double width, double tokens) {
  if (rope->kind != NPS_ROPE_DYNAMIC || tokens <= rope->most || width <= 2) return rope->theta;
  return rope->theta * pow(rope->factor * tokens / rope->most - (rope->factor - 1), width / (width - 2));
}

/* The angle that number c turns by from place to place. */
static double turn_of(const nps_rope_t *rope, double width, double tokens, double c) {
  const double turn = pow(theta_of(rope, width, tokens), -2 * c / width);
  if (rope->kind == NPS_ROPE_LINEAR) return turn / rope->factor;
  if (rope->kind == NPS_ROPE_LLAMA3) return stretch_waves(rope, turn);
  return rope->kind == NPS_ROPE_YARN ? mix(rope, width, c, turn) : turn;
}

void nps_rope_table(const nps_rope_t *rope, int64_t width, int64_t tokens, int64_t positions, float *cosine,
                    float *sine) {
  const int64_t half = width / 2;
  for (int64_t c = 0; c < half; c++) {
    const double turn = turn_of(rope, (double)width, (double)tokens, (double)c);
    for (int64_t p = 0; p < positions; p++) {
      cosine[p * half + c] = (float)(rope->attention * cos((double)p * turn));
      sine[p * half + c] = (float)(rope->attention * sin((double)p * turn));
    }
  }
}
