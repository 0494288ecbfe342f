#include "model_internal.h"

#include <stdlib.h>
#include <string.h>

/* A path that was looked at. */
static bool try_path(char *path, nps_text_t *tried, char **out) {
  if (nps_path_exists(path)) {
    *out = path;
    return true;
  }
  nps_text_add(tried, "%s%s", tried->size ? ", " : "", path);
  free(path);
  return false;
}

/* A folder below the one that a variable names, where it is set; "~/" is the user's. @return owned, or NULL */
static char *folder_of(const char *variable, const char *below) {
  const char *value = getenv(variable), *home = getenv("HOME");
  if (!value || !*value) return NULL;
  const bool of_user = value[0] == '~' && (value[1] == '/' || !value[1]) && home;
  return nps_xstrf("%s%s%s", of_user ? home : "", value + of_user, below);
}

/* As huggingface_hub finds it. */
static char *cache_folder(void) {
  static const char *const places[][2] = {{"HF_HUB_CACHE", ""},
                                          {"HUGGINGFACE_HUB_CACHE", ""},
                                          {"HF_HOME", "/hub"},
                                          {"XDG_CACHE_HOME", "/huggingface/hub"},
                                          {"HOME", "/.cache/huggingface/hub"}};
  char *folder = NULL;
  for (size_t i = 0; i < sizeof places / sizeof *places && !folder; i++) folder = folder_of(places[i][0], places[i][1]);
  return folder ? folder : nps_xstrdup("/.cache/huggingface/hub");
}

/* org/name or org/name@revision, of the characters the hub allows. Splits it. */
static bool parse_hub_name(const char *model, char **repository, char **revision) {
  const char *allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
  const size_t organisation = strspn(model, allowed);
  if (organisation == 0 || model[organisation] != '/' || model[0] == '.') return false;
  const char *name = model + organisation + 1;
  const size_t length = strspn(name, allowed);
  if (length == 0 || name[0] == '.' || (name[length] != '\0' && name[length] != '@')) return false;
  const char *at = name[length] == '@' ? name + length + 1 : "main";
  if (*at == '\0' || at[0] == '.' || at[0] == '/' || strstr(at, "..")) return false;
  *repository = nps_xstrf("models--%.*s--%.*s", (int)organisation, model, (int)length, name);
  *revision = nps_xstrdup(at);
  return true;
}

/* refs/REVISION holds the commit's hash; a hash names the snapshot itself. */
static nps_err_t snapshot_path(const char *folder, const char *revision, char **out) {
  char *ref = nps_xstrf("%s/refs/%s", folder, revision), *hash = NULL;
  nps_err_t err = nps_path_exists(ref) ? nps_file_read(ref, 4096, &hash, NULL) : NPS_OK;
  if (hash) hash[strcspn(hash, " \r\n\t/")] = '\0';
  if (err == NPS_OK) *out = nps_xstrf("%s/snapshots/%s", folder, hash && *hash ? hash : revision);
  free(hash);
  free(ref);
  return err;
}

/* Leaves *out as it is when the model is not there. */
static nps_err_t try_cache(const char *model, nps_text_t *tried, bool *hub_name, char **out) {
  char *repository = NULL, *revision = NULL, *snapshot = NULL;
  *hub_name = parse_hub_name(model, &repository, &revision);
  if (!*hub_name) return NPS_OK;
  char *cache = cache_folder(), *folder = nps_path_join(cache, repository);
  nps_err_t err = snapshot_path(folder, revision, &snapshot);
  if (err == NPS_OK) try_path(snapshot, tried, out);
  free(folder);
  free(cache);
  free(repository);
  free(revision);
  return err;
}

/* Looks one model up; *path stays NULL where it is not there. */
static nps_err_t look_up(const char *model, const char *config_dir, nps_text_t *tried, bool *hub_name, char **path) {
  const bool relative = model[0] != '/';
  *hub_name = false;
  *path = NULL;
  if (config_dir && relative && try_path(nps_path_join(config_dir, model), tried, path)) return NPS_OK;
  if (!(config_dir && relative && strcmp(config_dir, ".") == 0) && try_path(nps_xstrdup(model), tried, path))
    return NPS_OK;
  return try_cache(model, tried, hub_name, path);
}

static nps_err_t fail_missing(const char *model, const char *what, const nps_text_t *tried, bool hub_name) {
  return nps_fail(NPS_ERR_INPUT, "%s: %s not found, tried %s%s", model, what, tried->text,
                  hub_name ? "; models are never downloaded, fetch it into the Hugging Face cache first" : "");
}

/* The path of the adapter behind the plus at `plus`, or NULL. */
static nps_err_t look_up_adapter(const char *plus, const char *config_dir, char **path) {
  nps_text_t tried = {NULL, 0, 0};
  bool hub_name = false;
  nps_err_t err = look_up(plus + 1, config_dir, &tried, &hub_name, path);
  free(tried.text);
  return err;
}

/* FILE#NAME: a model in an archive. Leaves *path NULL where no FILE is found. */
static nps_err_t find_in_archive(const char *model, const char *config_dir, char **path) {
  nps_err_t err = NPS_OK;
  for (const char *at = strchr(model, '#'); at && err == NPS_OK && !*path; at = strchr(at + 1, '#')) {
    nps_text_t tried = {NULL, 0, 0};
    bool hub_name = false;
    char *left = nps_xstrndup(model, (size_t)(at - model)), *file = NULL;
    if (*left) err = look_up(left, config_dir, &tried, &hub_name, &file);
    if (file && nps_has_hdf5_signature(file)) *path = nps_xstrf("%s%s", file, at);
    free(tried.text);
    free(file);
    free(left);
  }
  return err;
}

static nps_err_t find_model(const char *model, const char *config_dir, char **path);

/* BASE+ADAPTER: the last plus behind which an adapter is found. Leaves *path NULL where there is none. */
static nps_err_t find_with_adapter(const char *model, const char *config_dir, char **path) {
  for (size_t n = strlen(model) - 1; n > 0; n--) {
    char *adapter = NULL, *base = NULL;
    if (model[n] != '+' || model[n + 1] == '\0') continue;
    NPS_TRY(look_up_adapter(model + n, config_dir, &adapter));
    if (!adapter) continue;
    char *left = nps_xstrndup(model, n);
    nps_err_t err = find_model(left, config_dir, &base);
    if (err == NPS_OK) *path = nps_xstrf("%s+%s", base, adapter);
    free(left);
    free(base);
    free(adapter);
    return err;
  }
  return NPS_OK;
}

static nps_err_t find_model(const char *model, const char *config_dir, char **path) {
  nps_text_t tried = {NULL, 0, 0};
  bool hub_name = false;
  const char *plus = strrchr(model, '+');
  nps_err_t err = look_up(model, config_dir, &tried, &hub_name, path);
  if (err == NPS_OK && !*path) err = find_in_archive(model, config_dir, path);
  if (err == NPS_OK && !*path && plus) {
    err = find_with_adapter(model, config_dir, path);
    if (err == NPS_OK && !*path) {
      free(tried.text);
      tried = (nps_text_t){NULL, 0, 0};
      err = look_up(plus + 1, config_dir, &tried, &hub_name, path);
      if (err == NPS_OK) err = fail_missing(plus + 1, "adapter", &tried, hub_name);
    }
  } else if (err == NPS_OK && !*path)
    err = fail_missing(model, "model", &tried, hub_name);
  free(tried.text);
  return err;
}

nps_err_t nps_model_locate(const char *model, const char *config_dir, char **path) {
  *path = NULL;
  if (model[0] == '\0') return nps_fail(NPS_ERR_INPUT, "the name of a model is empty");
  return find_model(model, config_dir, path);
}
