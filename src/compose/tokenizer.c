#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* More tokens than any vocabulary has. */
#define MOST_TOKENS (1 << 24)

/* ---- reading ---- */

static nps_err_t add_id(nps_tokenizer_t *t, const char *token, const json_t *id) {
  if (!token || !json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= MOST_TOKENS)
    return nps_fail(NPS_ERR_INPUT, "%s: tokenizer.json: expected tokens with ids from 0 to %d", t->where,
                    MOST_TOKENS - 1);
  if (!json_object_get(t->vocab, token)) json_object_set_new(t->vocab, token, json_integer(json_integer_value(id)));
  t->next = nps_max64(t->next, json_integer_value(id) + 1);
  return NPS_OK;
}

/* The model's own vocabulary: a mapping (BPE, WordPiece, WordLevel), or a list of [token, score] (Unigram). */
static nps_err_t take_model(nps_tokenizer_t *t) {
  json_t *vocab = json_object_get(json_object_get(t->root, "model"), "vocab"), *value;
  const char *key;
  size_t i;
  if (!json_is_object(vocab) && !json_is_array(vocab))
    return nps_fail(NPS_ERR_INPUT, "%s: tokenizer.json: expected model.vocab, a mapping or a list", t->where);
  json_object_foreach(vocab, key, value) NPS_TRY(add_id(t, key, value));
  json_array_foreach(vocab, i, value) {
    json_t *id = json_integer((json_int_t)i);
    nps_err_t err = add_id(t, json_string_value(json_array_get(value, 0)), id);
    json_decref(id);
    NPS_TRY(err);
  }
  return NPS_OK;
}

/* Of entries with the same content the first counts. */
static void index_added(nps_tokenizer_t *t) {
  json_t *entry;
  size_t i;
  json_object_clear(t->added);
  json_array_foreach(json_object_get(t->root, "added_tokens"), i, entry) {
    const char *content = json_string_value(json_object_get(entry, "content"));
    if (content && !json_object_get(t->added, content)) json_object_set(t->added, content, entry);
  }
}

static nps_err_t take_added(nps_tokenizer_t *t) {
  json_t *entry;
  size_t i;
  json_array_foreach(json_object_get(t->root, "added_tokens"), i, entry) {
    NPS_TRY(add_id(t, json_string_value(json_object_get(entry, "content")), json_object_get(entry, "id")));
  }
  index_added(t);
  return NPS_OK;
}

static nps_err_t parse_file(const nps_tokenizer_t *t, const char *name, json_t **out) {
  const nps_sidecar_t *file = nps_sidecar_find(t->files, t->file_count, name);
  *out = NULL;
  if (!file) return NPS_OK;
  char *where = nps_xstrf("%s: %s", t->where, name);
  nps_err_t err = nps_json_parse_python(file->data, file->size, where, out);
  free(where);
  return err;
}

/* Older files beside tokenizer.json may name more tokens. */
static nps_err_t take_beside(nps_tokenizer_t *t) {
  json_t *added = NULL, *config = NULL, *value;
  const char *key;
  nps_err_t err = NPS_OK;
  NPS_GOTO(parse_file(t, "added_tokens.json", &added));
  json_object_foreach(added, key, value) NPS_GOTO(add_id(t, key, value));
  NPS_GOTO(parse_file(t, "tokenizer_config.json", &config));
  json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, value) {
    json_t *id = json_integer(strtoll(key, NULL, 10));
    err = add_id(t, json_string_value(json_object_get(value, "content")), id);
    json_decref(id);
    if (err != NPS_OK) goto done;
  }
done:
  json_decref(added);
  json_decref(config);
  return err;
}

nps_err_t nps_tokenizer_read(const nps_model_t *model, nps_tokenizer_t **out) {
  nps_tokenizer_t *t = nps_xcalloc(1, sizeof *t);
  nps_err_t err;
  *out = NULL;
  t->where = nps_xstrdup(model->path);
  t->vocab = json_object();
  t->added = json_object();
  NPS_GOTO(nps_sidecars_read(model, &t->files, &t->file_count));
  NPS_GOTO(parse_file(t, "tokenizer.json", &t->root));
  if (!t->root) goto done;
  NPS_GOTO(take_model(t));
  NPS_GOTO(take_added(t));
  NPS_GOTO(take_beside(t));
  *out = t;
  t = NULL;
done:
  nps_tokenizer_free(t);
  return err;
}

void nps_tokenizer_free(nps_tokenizer_t *t) {
  if (!t) return;
  nps_sidecars_free(t->files, t->file_count);
  json_decref(t->root);
  json_decref(t->vocab);
  json_decref(t->added);
  free(t->where);
  free(t);
}

int64_t nps_tokenizer_id(const nps_tokenizer_t *t, const char *token) {
  const json_t *id = json_object_get(t->vocab, token);
  return id ? json_integer_value(id) : -1;
}

const char **nps_tokenizer_list(const nps_tokenizer_t *t) {
  const char **list = nps_xcalloc((size_t)t->next + 1, sizeof *list), *key;
  json_t *value;
  json_object_foreach(t->vocab, key, value) {
    const char **place = &list[json_integer_value(value)];
    if (!*place || strcmp(key, *place) < 0) *place = key; /* the same whatever order they are in */
  }
  return list;
}

/* ---- changing ---- */

const json_t *nps_tokenizer_added(const nps_tokenizer_t *t, const char *token) {
  return json_object_get(t->added, token);
}

void nps_tokenizer_add(nps_tokenizer_t *t, const char *token, const json_t *entry) {
  int64_t id = nps_tokenizer_id(t, token);
  json_t *list = json_object_get(t->root, "added_tokens"), *own;
  if (!list) json_object_set_new(t->root, "added_tokens", list = json_array());
  if (id < 0) {
    id = t->next++;
    json_object_set_new(t->vocab, token, json_integer(id));
  }
  own = json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)id, "content", token, "single_word", 0,
                  "lstrip", 0, "rstrip", 0, "normalized", 1, "special", 0);
  if (entry) json_object_update(own, (json_t *)(uintptr_t)entry);
  json_object_set_new(own, "id", json_integer(id));
  json_array_append_new(list, own);
  if (!json_object_get(t->added, token)) json_object_set(t->added, token, own);
  t->changed = true;
}

/* Keeps the entries of a list for which a function says so. */
static json_t *filtered(const json_t *list, bool (*keep)(const nps_tokenizer_t *t, const json_t *entry, int64_t limit),
                        const nps_tokenizer_t *t, int64_t limit) {
  json_t *out = json_array(), *entry;
  size_t i;
  json_array_foreach(list, i, entry) {
    if (keep(t, entry, limit)) json_array_append(out, entry);
  }
  return out;
}

static bool has_small_id(const nps_tokenizer_t *t, const json_t *entry, int64_t limit) {
  (void)t;
  return json_integer_value(json_object_get(entry, "id")) < limit;
}

/* Whether two tokens and what they merge into stay: the second without the mark of tokens inside of words, if any. */
static bool stay(const nps_tokenizer_t *t, const char *a, const char *b, int64_t limit) {
  const json_t *prefix = json_object_get(json_object_get(t->root, "model"), "continuing_subword_prefix");
  const char *mark = json_is_string(prefix) ? json_string_value(prefix) : "";
  const size_t skip = strncmp(b, mark, strlen(mark)) == 0 ? strlen(mark) : 0;
  char *both = nps_xstrf("%s%s", a, b + skip);
  const bool small =
      nps_tokenizer_id(t, a) < limit && nps_tokenizer_id(t, b) < limit && nps_tokenizer_id(t, both) < limit;
  free(both);
  return small;
}

/* A merge is "a b" or ["a", "b"]. */
static bool merges_small_ids(const nps_tokenizer_t *t, const json_t *entry, int64_t limit) {
  const char *text = json_string_value(entry), *blank = text ? strchr(text, ' ') : NULL;
  const char *a = json_string_value(json_array_get(entry, 0)), *b = json_string_value(json_array_get(entry, 1));
  if (!blank) return !a || !b || stay(t, a, b, limit);
  char *first = nps_xstrndup(text, (size_t)(blank - text));
  const bool small = stay(t, first, blank + 1, limit);
  free(first);
  return small;
}

static void strip_vocab(json_t *vocab, int64_t limit) {
  const char *key;
  json_t *value;
  void *next;
  json_object_foreach_safe(vocab, next, key, value) {
    if (json_integer_value(value) >= limit) json_object_del(vocab, key);
  }
  while (json_is_array(vocab) && (int64_t)json_array_size(vocab) > limit)
    json_array_remove(vocab, json_array_size(vocab) - 1);
}

nps_err_t nps_tokenizer_strip(nps_tokenizer_t *t, int64_t limit) {
  json_t *model = json_object_get(t->root, "model"), *merges = json_object_get(model, "merges");
  if (t->next <= limit) return NPS_OK;
  if (json_is_array(merges)) json_object_set_new(model, "merges", filtered(merges, merges_small_ids, t, limit));
  json_t *added = json_object_get(t->root, "added_tokens");
  if (json_is_array(added)) json_object_set_new(t->root, "added_tokens", filtered(added, has_small_id, t, limit));
  strip_vocab(json_object_get(model, "vocab"), limit);
  strip_vocab(t->vocab, limit);
  index_added(t);
  t->next = limit;
  t->changed = true;
  return NPS_OK;
}

/* ---- writing ---- */

static void set_json(nps_tokenizer_t *t, const char *name, const json_t *json) {
  char *text = nps_json_print(json, JSON_INDENT(2));
  nps_sidecar_set(&t->files, &t->file_count, name, text, strlen(text));
}

/* tokenizer_config.json may list the added tokens once more. */
static void update_decoder(nps_tokenizer_t *t, json_t *config) {
  json_t *decoder = json_object_get(config, "added_tokens_decoder"), *entry;
  size_t i;
  if (!decoder) return;
  json_object_clear(decoder);
  json_array_foreach(json_object_get(t->root, "added_tokens"), i, entry) {
    json_t *copy = json_copy(entry);
    char *id = nps_xstrf("%lld", (long long)json_integer_value(json_object_get(entry, "id")));
    json_object_del(copy, "id");
    json_object_set_new(decoder, id, copy);
    free(id);
  }
  set_json(t, "tokenizer_config.json", config);
}

void nps_tokenizer_update(nps_tokenizer_t *t) {
  static const char *const stale[] = {"added_tokens.json",
                                      "bpe.codes",
                                      "merges.txt",
                                      "sentencepiece.bpe.model",
                                      "sentencepiece.model",
                                      "source.spm",
                                      "spiece.model",
                                      "spm.model",
                                      "target.spm",
                                      "tekken.json",
                                      "tokenizer.model",
                                      "vocab.json",
                                      "vocab.txt"};
  if (!t->changed) return;
  for (size_t i = 0; i < sizeof stale / sizeof *stale; i++) nps_sidecar_drop(t->files, &t->file_count, stale[i]);
  set_json(t, "tokenizer.json", t->root);
  json_t *config = NULL;
  if (parse_file(t, "tokenizer_config.json", &config) == NPS_OK && config) update_decoder(t, config);
  json_decref(config);
}
