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

static char *cache_folder(void) {
  const char *cache = getenv("HF_HUB_CACHE"), *home = getenv("HF_HOME"), *user = getenv("HOME");
  if (cache && *cache) return nps_xstrdup(cache);
  if (home && *home) return nps_path_join(home, "hub");
  return nps_xstrf("%s/.cache/huggingface/hub", user ? user : "");
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

nps_err_t nps_model_locate(const char *model, const char *config_dir, char **path) {
  nps_text_t tried = {NULL, 0, 0};
  bool hub_name = false;
  nps_err_t err = NPS_OK;
  *path = NULL;
  const bool relative = model[0] != '/';
  if (model[0] == '\0')
    err = nps_fail(NPS_ERR_INPUT, "the name of a model is empty");
  else if (!(config_dir && relative && try_path(nps_path_join(config_dir, model), &tried, path)) &&
           !(!(config_dir && relative && strcmp(config_dir, ".") == 0) && try_path(nps_xstrdup(model), &tried, path)))
    err = try_cache(model, &tried, &hub_name, path);
  if (err == NPS_OK && !*path)
    err = nps_fail(NPS_ERR_INPUT, "%s: model not found, tried %s%s", model, tried.text,
                   hub_name ? "; models are never downloaded, fetch it into the Hugging Face cache first" : "");
  free(tried.text);
  return err;
}
