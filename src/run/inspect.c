#include "nps/inspect.h"

#include "open_model.h"

#include "nps/archive.h"
#include "nps/config.h"
#include "nps/h5.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Strings from files may not be UTF-8; then they are left out. */
static void set_text(json_t *object, const char *key, const char *text) {
  json_t *string = text ? json_string(text) : NULL;
  if (string) json_object_set_new(object, key, string);
}

/* What the recipe says, where this version can read it; the text itself is kept in any case. */
static void add_recipe(json_t *origin, const char *text, const char *file) {
  nps_recipe_t *recipe = NULL;
  set_text(origin, "recipe", text);
  if (!text || nps_recipe_parse(text, file, NULL, 0, &recipe) != NPS_OK) {
    nps_problem_clear();
    return;
  }
  set_text(origin, "method", recipe->merge_method);
  set_text(origin, "base", recipe->base_model);
  json_t *models = json_object();
  for (int i = 0; i < recipe->model_count; i++) set_text(models, recipe->models[i].name, recipe->models[i].model);
  json_object_set_new(origin, "models", models);
  nps_recipe_free(recipe);
}

static nps_err_t read_hdf5_origin(const char *path, json_t *origin) {
  nps_err_t err = NPS_OK;
  nps_h5_t *file = NULL;
  nps_h5_info_t info;
  char **members = NULL, *created = NULL, *recipe = NULL, *hash = NULL;
  int count = 0;
  NPS_TRY(nps_h5_open(path, &file));
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "created_by", &created));
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "recipe", &recipe));
  NPS_GOTO(nps_h5_get_attr_text(file, "/", "recipe_sha256", &hash));
  NPS_GOTO(nps_h5_list(file, "/provenance", &members, &count));
  set_text(origin, "created_by", created);
  set_text(origin, "recipe_sha256", hash);
  add_recipe(origin, recipe, path);
  for (int i = 0; i < count; i++) {
    if (strcmp(members[i], "path") != 0) continue;
    NPS_GOTO(nps_h5_describe(file, "/provenance", "path", &info));
    if (info.is_dataset && info.ndim == 1) json_object_set_new(origin, "inputs", json_integer(info.shape[0]));
  }
done:
  nps_h5_free_names(members, count);
  free(created);
  free(recipe);
  free(hash);
  nps_h5_abandon(file);
  return err;
}

nps_err_t nps_inspect_read_origin(nps_inspect_t *inspect) {
  nps_sidecar_t *sidecars = NULL;
  int count = 0;
  if (inspect->model->form == NPS_FORM_HDF5) {
    inspect->origin = json_object();
    NPS_TRY(read_hdf5_origin(inspect->model->path, inspect->origin));
  }
  NPS_TRY(nps_sidecars_read(inspect->model, &sidecars, &count));
  inspect->sidecars = nps_xcalloc((size_t)count + 1, sizeof *inspect->sidecars);
  for (int i = 0; i < count; i++) inspect->sidecars[i] = nps_xstrdup(sidecars[i].name);
  inspect->sidecar_count = count;
  nps_sidecars_free(sidecars, count);
  return NPS_OK;
}

static void add_entry(json_t *models, const nps_archive_entry_t *entry) {
  json_t *model = json_object();
  set_text(model, "name", entry->name);
  json_object_set_new(model, "kept", json_integer(entry->told.kept));
  json_object_set_new(model, "error", json_real(entry->told.error));
  json_object_set_new(model, "bytes", json_integer(entry->told.bytes));
  json_array_append_new(models, model);
}

/* The models of an archive, where that is what the user named. */
static nps_err_t read_archive(nps_inspect_t *inspect, const char *path) {
  nps_archive_entry_t *entries = NULL;
  char *found = NULL;
  int count = 0;
  nps_err_t err;
  NPS_GOTO(nps_model_locate(path, NULL, &found));
  if (!nps_archive_is(found)) goto done;
  NPS_GOTO(nps_archive_list(found, &entries, &count));
  inspect->archive = json_array();
  for (int i = 0; i < count; i++) add_entry(inspect->archive, &entries[i]);
done:
  nps_archive_list_free(entries, count);
  free(found);
  return err;
}

static nps_err_t print_json(const nps_inspect_t *inspect) {
  json_t *json = nps_inspect_json(inspect);
  int failed = json_dumpf(json, stdout, JSON_INDENT(2)) != 0 || fputc('\n', stdout) == EOF || fflush(stdout) != 0;
  json_decref(json);
  return failed ? nps_fail(NPS_ERR_IO, "standard output: the JSON text cannot be written") : NPS_OK;
}

static nps_err_t tell(nps_inspect_t *inspect, const char *path, bool as_json, nps_report_t *report) {
  NPS_TRY(read_archive(inspect, path));
  NPS_TRY(nps_inspect_read_origin(inspect));
  if (as_json) return print_json(inspect);
  nps_inspect_show(inspect, report);
  return NPS_OK;
}

nps_err_t nps_inspect_run(const nps_comm_t *comm, const char *path, const char *against, int spectrum, bool as_json,
                          nps_report_t *report) {
  nps_err_t err = NPS_OK;
  nps_model_t *model = NULL, *base = NULL;
  nps_inspect_t *inspect = NULL;
  NPS_GOTO(nps_run_open_model(comm, path, &model));
  if (against) NPS_GOTO(nps_run_open_beside(comm, against, model, &base));
  NPS_GOTO(nps_inspect_scan(comm, model, base, report, &inspect));
  if (spectrum > 0) NPS_GOTO(nps_inspect_scan_spectra(comm, inspect, spectrum, report));
  NPS_GOTO(nps_comm_agree(comm, nps_comm_rank(comm) == 0 ? tell(inspect, path, as_json, report) : NPS_OK));
done:
  nps_inspect_free(inspect);
  nps_model_free(model);
  nps_model_free(base);
  return err;
}
