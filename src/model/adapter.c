/* BASE+ADAPTER: what kind of adapter a folder holds. */
#include "peft.h"

#include <stdlib.h>
#include <string.h>

/* Reads the tensors of one safetensors file. */
static nps_err_t open_parts(const char *folder, const char *file, nps_model_t **out) {
  char *path = nps_path_join(folder, file);
  nps_model_t *parts = nps_model_new(file, folder, NPS_FORM_SAFETENSORS);
  nps_err_t err = nps_model_add_file(parts, path);
  if (err == NPS_OK) err = nps_safetensors_read(parts, 0);
  if (err == NPS_OK) err = nps_model_sort(parts);
  free(path);
  *out = err == NPS_OK ? parts : NULL;
  if (err != NPS_OK) nps_model_free(parts);
  return err;
}

/* The config is one of the files that the model depends on. */
static nps_err_t open_peft(const char *folder, nps_model_t **parts, char **config) {
  char *path = nps_path_join(folder, "adapter_config.json");
  nps_err_t err = open_parts(folder, "adapter_model.safetensors", parts);
  if (err == NPS_OK) err = nps_file_read(path, (size_t)64 << 20, config, NULL);
  if (err == NPS_OK) err = nps_model_add_file(*parts, path);
  free(path);
  return err;
}

nps_err_t nps_adapter_open_alone(nps_model_t *model) {
  char *weights = nps_path_join(model->path, "adapter_model.safetensors");
  char *config = nps_path_join(model->path, "adapter_config.json");
  nps_err_t err;
  model->form = NPS_FORM_ADAPTER;
  err = nps_path_exists(config)
            ? NPS_OK
            : nps_fail(NPS_ERR_INPUT, "%s: is a PEFT adapter, but has no adapter_config.json", model->path);
  if (err != NPS_OK) goto done;
  NPS_GOTO(nps_model_add_file(model, weights));
  NPS_GOTO(nps_safetensors_read(model, 0));
  NPS_GOTO(nps_model_sort(model));
  NPS_GOTO(nps_file_read(config, (size_t)64 << 20, &model->config_json, NULL));
  NPS_GOTO(nps_model_add_file(model, config));
  err = nps_config_check(model->config_json, config);
done:
  free(weights);
  free(config);
  return err;
}

static bool holds(const char *folder, const char *name) {
  char *path = nps_path_join(folder, name);
  const bool found = nps_path_exists(path);
  free(path);
  return found;
}

static nps_err_t open_adapter(const char *folder, nps_model_t **parts, char **text,
                              const nps_derivation_form_t **form) {
  *form = &nps_peft_form;
  if (holds(folder, "adapter_model.safetensors") && holds(folder, "adapter_config.json"))
    return open_peft(folder, parts, text);
  *form = &nps_sara_form;
  if (holds(folder, "sara.safetensors")) return open_parts(folder, "sara.safetensors", parts);
  return nps_fail(
      NPS_ERR_INPUT,
      "%s: is no adapter: expected adapter_config.json and adapter_model.safetensors, or sara.safetensors%s", folder,
      holds(folder, "adapter_model.bin") ? "; adapter_model.bin is not read, save it anew with peft" : "");
}

nps_err_t nps_adapter_open(const char *base, const char *adapter, const char *path, const char *name,
                           nps_model_t **out) {
  nps_model_t *model = NULL, *parts = NULL;
  const nps_derivation_form_t *form = NULL;
  char *text = NULL;
  nps_err_t err = nps_model_open(base, name, &model);
  err = nps_err_worse(err, open_adapter(adapter, &parts, &text, &form));
  if (err == NPS_OK) return nps_model_derive(form, name, path, model, parts, text, out);
  nps_model_free(model);
  nps_model_free(parts);
  free(text);
  return err;
}
