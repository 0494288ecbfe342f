/* What a model's files say of its vocabulary where it has no tokenizer.json. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* {token: id}: vocab.json, added_tokens.json. */
static nps_err_t compare_map(const nps_tokenizer_t *t, const char *where, const nps_sidecar_t *file, bool *differs) {
  json_t *map = NULL, *id;
  const char *token;
  NPS_TRY(nps_json_parse_python(file->data, file->size, where, &map));
  json_object_foreach(map, token, id) {
    *differs = *differs || !json_is_integer(id) || nps_tokenizer_id(t, token) != json_integer_value(id);
  }
  json_decref(map);
  return NPS_OK;
}

/* A token a line, in the order of their ids: vocab.txt. */
static bool list_differs(const nps_tokenizer_t *t, const nps_sidecar_t *file) {
  const char *at = file->data, *end = file->data + file->size;
  bool differs = false;
  for (int64_t id = 0; at < end && !differs; id++) {
    const char *stop = memchr(at, '\n', (size_t)(end - at)), *next = stop ? stop + 1 : end;
    if (!stop) stop = end;
    if (stop > at && stop[-1] == '\r') stop--;
    char *token = nps_xstrndup(at, (size_t)(stop - at));
    differs = nps_tokenizer_id(t, token) != id;
    free(token);
    at = next;
  }
  return differs;
}

/* Others are compared byte by byte with the file of that name beside the tokenizer. */
static bool bytes_differ(const nps_tokenizer_t *t, const nps_sidecar_t *file) {
  const nps_sidecar_t *same = nps_sidecar_find(t->files, t->file_count, file->name);
  return !same || same->size != file->size || memcmp(same->data, file->data, file->size) != 0;
}

static nps_err_t compare_file(const nps_tokenizer_t *t, const char *model, const nps_sidecar_t *file, bool *differs) {
  static const char *const models[] = {"sentencepiece.bpe.model", "spiece.model", "tekken.json", "tokenizer.model"};
  nps_err_t err = NPS_OK;
  char *where = nps_xstrf("%s: %s", model, file->name);
  *differs = false;
  if (strcmp(file->name, "vocab.json") == 0 || strcmp(file->name, "added_tokens.json") == 0)
    err = compare_map(t, where, file, differs);
  else if (strcmp(file->name, "vocab.txt") == 0)
    *differs = list_differs(t, file);
  for (size_t i = 0; i < sizeof models / sizeof *models; i++)
    if (strcmp(file->name, models[i]) == 0) *differs = bytes_differ(t, file);
  free(where);
  return err;
}

nps_err_t nps_tokenizer_contradicts(const nps_tokenizer_t *tokenizer, const nps_model_t *model, char **why) {
  nps_sidecar_t *files = NULL;
  int count = 0;
  *why = NULL;
  NPS_TRY(nps_sidecars_read(model, &files, &count));
  nps_err_t err = NPS_OK;
  for (int i = 0; i < count && err == NPS_OK && !*why; i++) {
    bool differs;
    err = compare_file(tokenizer, model->path, &files[i], &differs);
    if (err == NPS_OK && differs) *why = nps_xstrf("its %s says another one", files[i].name);
  }
  nps_sidecars_free(files, count);
  return err;
}
