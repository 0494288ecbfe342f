#include "fitness_internal.h"
#include "mixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nps_net_family_t *const families[] = {
    &nps_net_vit,         &nps_net_bert,   &nps_net_roberta, &nps_net_xlm_roberta, &nps_net_clip,
    &nps_net_clip_vision, &nps_net_gpt2,   &nps_net_llama,   &nps_net_mistral,     &nps_net_qwen2,
    &nps_net_qwen3,       &nps_net_gemma2, &nps_net_gemma3,  &nps_net_t5,          &nps_net_mt5};

#define FAMILIES (sizeof families / sizeof *families)

/* ---- tensors ---- */

static const nps_tensor_info_t *find(const nps_model_t *model, const char *name) {
  const int i = model ? nps_model_find(model, name) : -1;
  return i >= 0 ? &model->tensors[i] : NULL;
}

const nps_tensor_info_t *nps_net_look_up(const nps_net_t *net, const char *name, bool is_head, bool *of_head) {
  const bool only_head = is_head && net->head && !net->own_head_first;
  const nps_tensor_info_t *own = only_head ? NULL : find(net->body, name);
  *of_head = is_head && !own;
  return *of_head ? find(net->head, name) : own;
}

static nps_err_t fail_missing(const nps_net_t *net, const char *name, bool is_head) {
  const char *path = net->body->path;
  if (!is_head) return nps_fail(NPS_ERR_INPUT, "%s: the network needs tensor %s, which is not there", path, name);
  if (!net->head)
    return nps_fail(NPS_ERR_INPUT, "%s: the network needs tensor %s, which is not there; a head model can give it",
                    path, name);
  if (!net->own_head_first)
    return nps_fail(NPS_ERR_INPUT, "%s: the network of %s needs tensor %s, which this head model lacks",
                    net->head->path, path, name);
  return nps_fail(NPS_ERR_INPUT, "%s: the network needs tensor %s, which is neither there nor in the head model %s",
                  path, name, net->head->path);
}

nps_err_t nps_net_check_tensor(const nps_model_t *model, const nps_tensor_info_t *info, int ndim,
                               const int64_t *shape) {
  char expected[192], found[192];
  if (nps_dtype_kind(info->dtype) != NPS_KIND_FLOAT)
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s: expected a floating-point type of 16 bits or more, found %s",
                    model->path, info->name, nps_dtype_name(info->dtype));
  if (info->ndim == ndim && memcmp(info->shape, shape, (size_t)ndim * sizeof *shape) == 0) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: tensor %s: expected shape %s by config.json, found %s", model->path, info->name,
                  nps_shape_format(ndim, shape, expected), nps_shape_format(info->ndim, info->shape, found));
}

nps_net_tensor_t *nps_net_append(nps_net_t *net, const char *name) {
  net->tensors = nps_xrealloc(net->tensors, (size_t)net->count + 1, sizeof *net->tensors);
  nps_net_tensor_t *tensor = &net->tensors[net->count++];
  *tensor = (nps_net_tensor_t){.name = nps_xstrdup(name), .source = -1, .stage = net->stage, .also = -1};
  return tensor;
}

nps_err_t nps_net_add(nps_net_t *net, const char *name, bool is_head, int ndim, const int64_t *shape, int *index) {
  bool of_head = false;
  const nps_tensor_info_t *info = nps_net_look_up(net, name, is_head, &of_head);
  *index = net->count;
  nps_net_tensor_t *tensor = nps_net_append(net, name);
  tensor->of_head = of_head;
  if (!info) return fail_missing(net, name, is_head);
  const nps_model_t *model = of_head ? net->head : net->body;
  tensor->source = (int)(info - model->tensors);
  tensor->count = info->count;
  return nps_net_check_tensor(model, info, ndim, shape);
}

/* ---- networks ---- */

/* Whether a name is PREFIX.NUMBER.LAYER.weight. */
static bool is_layer(const char *name, const char *layer) {
  const size_t all = strlen(name), tail = strlen(layer) + strlen("..weight");
  if (all <= tail || strncmp(name + all - tail + 1, layer, strlen(layer)) != 0) return false;
  if (name[all - tail] != '.' || strcmp(name + all - strlen(".weight"), ".weight") != 0) return false;
  size_t digits = 0;
  while (digits < all - tail && name[all - tail - 1 - digits] >= '0' && name[all - tail - 1 - digits] <= '9') digits++;
  return digits > 0 && digits < all - tail && name[all - tail - 1 - digits] == '.';
}

/* Whether a name has a component that is a number, and ends as weights do. */
static bool is_within_layers(const char *name) {
  const size_t all = strlen(name), suffix = strlen(".weight");
  if (all < suffix || strcmp(name + all - suffix, ".weight") != 0 || strstr(name, "embed")) return false;
  for (const char *at = strchr(name, '.'); at; at = strchr(at + 1, '.')) {
    const size_t digits = strspn(at + 1, "0123456789");
    if (digits > 0 && at[1 + digits] == '.') return true;
  }
  return false;
}

static const nps_net_family_t *family_of(const char *config_json) {
  json_t *config = nps_json_of(config_json);
  const char *type = json_string_value(json_object_get(config, "model_type"));
  const nps_net_family_t *found = NULL;
  for (size_t i = 0; type && i < FAMILIES; i++)
    if (strcmp(families[i]->model_type, type) == 0) found = families[i];
  json_decref(config);
  return found;
}

bool nps_net_find_linear(const char *config_json, const char *const *names, const int *ndim, int count, bool *linear) {
  const nps_net_family_t *family = family_of(config_json);
  for (int i = 0; i < count; i++) {
    linear[i] = !family && ndim[i] == 2 && is_within_layers(names[i]);
    for (const char *const *layer = family ? family->linear_layers : NULL; layer && *layer; layer++)
      linear[i] |= ndim[i] == 2 && is_layer(names[i], *layer);
  }
  return family;
}

static nps_err_t find_family(nps_net_t *net, const json_t *config) {
  const char *type = json_string_value(json_object_get(config, "model_type"));
  nps_text_t known = {0};
  for (size_t i = 0; i < FAMILIES; i++) {
    if (type && strcmp(families[i]->model_type, type) == 0) net->family = families[i];
    nps_text_add(&known, "%s%s", i ? ", " : "", families[i]->model_type);
  }
  if (!net->family)
    nps_fail(NPS_ERR_INPUT, "%s: config.json: model_type %s has no native evaluator (there are: %s)", net->body->path,
             type ? type : "(none)", known.text);
  free(known.text);
  return net->family ? NPS_OK : NPS_ERR_INPUT;
}

static nps_err_t describe(nps_net_t *net) {
  const char *text = net->body->config_json;
  if (!text)
    return nps_fail(NPS_ERR_INPUT, "%s: there is no config.json, which says what network it is", net->body->path);
  char *where = nps_xstrf("config.json of %s", net->body->path);
  json_t *config = NULL;
  nps_err_t err = nps_json_parse_python(text, strlen(text), where, &config);
  free(where);
  if (err == NPS_OK) err = find_family(net, config);
  if (err == NPS_OK) err = net->family->describe(net, config, &net->shape);
  json_decref(config);
  return err;
}

static nps_err_t make(const nps_model_t *body, const nps_model_t *head, bool own_head_first, nps_net_t **out) {
  const nps_model_t *adapter = body->form == NPS_FORM_ADAPTER ? body : head;
  *out = NULL;
  if (adapter && adapter->form == NPS_FORM_ADAPTER)
    return nps_fail(NPS_ERR_INPUT, "%s: is a PEFT adapter by itself, expected BASE+%s", adapter->path, adapter->path);
  nps_net_t *net = nps_xcalloc(1, sizeof *net);
  *net = (nps_net_t){.body = body, .head = head, .own_head_first = own_head_first};
  *out = NULL;
  if (body->experts) nps_mixture_start(net);
  nps_err_t err = describe(net);
  if (err == NPS_OK && net->mixture) err = nps_mixture_check(net);
  if (err == NPS_OK)
    *out = net;
  else
    nps_net_free(net);
  return err;
}

nps_err_t nps_net_new(const nps_model_t *body, const nps_model_t *head, nps_net_t **out) {
  return make(body, head, true, out);
}

nps_err_t nps_net_new_with_head(const nps_model_t *body, const nps_model_t *head, nps_net_t **out) {
  return make(body, head, false, out);
}

void nps_net_free(nps_net_t *net) {
  if (!net) return;
  if (net->family) net->family->free_shape(net->shape);
  for (int i = 0; i < net->count; i++) free(net->tensors[i].name);
  free(net->tensors);
  free(net->steps);
  nps_mixture_free(net->mixture);
  free(net);
}

int nps_net_tensor_count(const nps_net_t *net) { return net->count; }

const nps_net_tensor_t *nps_net_tensor(const nps_net_t *net, int i) { return &net->tensors[i]; }

int nps_net_classes(const nps_net_t *net) { return net->classes; }

double nps_net_flops(const nps_net_t *net, const nps_dataset_t *data, int64_t n) {
  return net->family->flops(net->shape, data, n);
}

static nps_err_t check_labels(const nps_net_t *net, const nps_dataset_t *data) {
  for (int64_t i = 0; i < data->samples; i++)
    if (data->labels[i] < 0 || data->labels[i] >= net->classes)
      return nps_fail(NPS_ERR_INPUT,
                      "%s: group %s: label %d of sample %lld: expected 0 to %d, as the head has %d classes", data->path,
                      data->group, (int)data->labels[i], (long long)i, net->classes - 1, net->classes);
  return NPS_OK;
}

nps_err_t nps_net_check_data(const nps_net_t *net, const nps_dataset_t *data) {
  nps_err_t err = net->family->check_data(net, data);
  const bool classes = data->labels && !data->places && !data->choices;
  return classes ? nps_err_worse(err, check_labels(net, data)) : err;
}

/* ---- weights from files ---- */

static void to_float(nps_dtype_t dtype, const void *stored, int64_t n, float *out) {
  if (dtype != NPS_F64) {
    nps_tensor_widen_f32(dtype, stored, n, out);
    return;
  }
  const double *wide = stored;
  for (int64_t i = 0; i < n; i++) out[i] = (float)wide[i];
}

static nps_err_t read_tensor(const nps_model_t *model, nps_reader_t *reader, int i, float **out) {
  const nps_tensor_info_t *info = &model->tensors[i];
  void *stored = NULL;
  NPS_TRY(nps_buffer_alloc((size_t)info->count * sizeof(float), info->name, out));
  NPS_TRY(nps_buffer_alloc((size_t)info->count * nps_dtype_size(info->dtype), info->name, &stored));
  nps_err_t err = nps_reader_read(reader, i, 0, info->count, stored);
  if (err == NPS_OK) to_float(info->dtype, stored, info->count, *out);
  free(stored);
  return err;
}

nps_err_t nps_net_read_weights(const nps_net_t *net, bool only_head, float ***weights) {
  nps_err_t err = NPS_OK;
  const nps_model_t *models[] = {net->body, net->head, net->body->experts ? net->body->experts->parts : NULL};
  nps_reader_t *readers[3] = {NULL};
  for (int k = 0; k < 3; k++)
    if (models[k]) readers[k] = nps_reader_new(models[k], NULL);
  float **read = nps_xcalloc((size_t)net->count, sizeof *read);
  for (int i = 0; i < net->count && err == NPS_OK; i++) {
    const nps_net_tensor_t *tensor = &net->tensors[i];
    if (only_head && !tensor->of_head) continue;
    const int k = tensor->of_experts ? 2 : tensor->of_head;
    err = read_tensor(models[k], readers[k], tensor->source, &read[i]);
  }
  for (int k = 0; k < 3; k++) nps_reader_free(readers[k]);
  if (err == NPS_OK)
    *weights = read;
  else
    nps_net_free_weights(net, read);
  return err;
}

void nps_net_free_weights(const nps_net_t *net, float **weights) {
  if (!weights) return;
  for (int i = 0; i < net->count; i++) free(weights[i]);
  free(weights);
}
