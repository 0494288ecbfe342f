#include "tokenizer.h"

#include "emit.h"
#include "level.h"
#include "models.h"
#include "section.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

void nps_tokenizer_source_read(const nps_node_t *node, const char *what, nps_recipe_tokenizer_t *tokenizer) {
  const char *text = node->kind == NPS_NODE_SCALAR ? node->text : "";
  tokenizer->given = true;
  if (strcmp(text, "base") == 0)
    tokenizer->source = NPS_TOKENIZER_BASE;
  else if (strcmp(text, "union") == 0)
    tokenizer->source = NPS_TOKENIZER_UNION;
  else {
    tokenizer->source = NPS_TOKENIZER_MODEL;
    nps_model_read(node, what, &tokenizer->model);
  }
}

/* ---- tokens ---- */

static void read_kind(void *target, const nps_node_t *value, const char *what) {
  static const nps_word_t kinds[] = {{"zero", true}, {"model_token", false}};
  int word;
  if (nps_word_read(value, what, kinds, COUNT(kinds), &word)) ((nps_recipe_token_t *)target)->zero = word;
}

static void read_model(void *target, const nps_node_t *value, const char *what) {
  nps_model_read(value, what, &((nps_recipe_token_t *)target)->model);
}

static void read_from(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((nps_recipe_token_t *)target)->from);
}

static void read_id(void *target, const nps_node_t *value, const char *what) {
  nps_count_read(value, what, 0, INT32_MAX, &((nps_recipe_token_t *)target)->id);
}

/* {kind: zero}, or {kind: model_token, model, and token or token_id}. */
static void read_kind_of_source(nps_recipe_token_t *token, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"kind", NPS_KEY_READ, read_kind, NULL},
                                   {"model", NPS_KEY_READ, read_model, NULL},
                                   {"token", NPS_KEY_READ, read_from, NULL},
                                   {"token_id", NPS_KEY_READ, read_id, NULL}};
  const int before = nps_problem_count();
  nps_level_read(value, what, keys, COUNT(keys), token);
  if (nps_problem_count() > before) return;
  const int ways = (token->from != NULL) + (token->id >= 0);
  if (token->zero ? token->model || ways > 0 : !token->model || ways != 1)
    nps_place_fail(value->place,
                   "%s: expected {kind: zero}, or {kind: model_token, model: MODEL} with either token or token_id",
                   what);
}

static void read_source(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_token_t *token = target;
  if (nps_node_find(value, "kind"))
    read_kind_of_source(token, value, what);
  else
    nps_model_read(value, what, &token->model);
}

static void read_force(void *target, const nps_node_t *value, const char *what) {
  nps_boolean_read(value, what, &((nps_recipe_token_t *)target)->force);
}

static void read_token(const nps_entry_t *entry, const char *what, nps_recipe_token_t *token) {
  static const nps_key_t keys[] = {{"source", NPS_KEY_READ, read_source, NULL},
                                   {"force", NPS_KEY_READ, read_force, NULL}};
  *token = (nps_recipe_token_t){.token = nps_xstrdup(entry->key), .id = -1};
  if (!nps_node_is_null(entry->value)) nps_level_read(entry->value, what, keys, COUNT(keys), token);
  if (token->force && !token->zero && !token->model) nps_place_fail(entry->place, "%s.force: needs a source", what);
}

static void read_tokens(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_tokenizer_t *tokenizer = target;
  char found[96];
  if (value->kind != NPS_NODE_MAPPING) {
    nps_place_fail(value->place, "%s: expected a mapping from tokens to {source, force}, found %s", what,
                   nps_node_describe(value, found));
    return;
  }
  tokenizer->tokens = nps_xcalloc((size_t)value->count + 1, sizeof *tokenizer->tokens);
  for (int i = 0; i < value->count; i++) {
    char *path = nps_xstrf("%s.%s", what, nps_show(value->entries[i].key, found));
    read_token(&value->entries[i], path, &tokenizer->tokens[tokenizer->token_count++]);
    free(path);
  }
}

/* ---- the section ---- */

static void read_section_source(void *target, const nps_node_t *value, const char *what) {
  nps_tokenizer_source_read(value, what, target);
}

static void read_pad(void *target, const nps_node_t *value, const char *what) {
  nps_count_read(value, what, 1, 1 << 20, &((nps_recipe_tokenizer_t *)target)->pad);
}

void nps_tokenizer_section_read(const nps_node_t *node, const char *what, nps_recipe_tokenizer_t *tokenizer) {
  static const nps_key_t keys[] = {{"source", NPS_KEY_READ, read_section_source, NULL},
                                   {"tokens", NPS_KEY_READ, read_tokens, NULL},
                                   {"pad_to_multiple_of", NPS_KEY_READ, read_pad, NULL}};
  tokenizer->given = true;
  tokenizer->source = NPS_TOKENIZER_UNION;
  nps_level_read(node, what, keys, COUNT(keys), tokenizer);
}

void nps_tokenizer_check(const nps_node_t *root) {
  const nps_entry_t *source = nps_node_find(root, "tokenizer_source"), *section = nps_node_find(root, "tokenizer");
  if (source && section && !nps_node_is_null(source->value) && !nps_node_is_null(section->value))
    nps_place_fail(section->place, "expected only one of tokenizer and tokenizer_source");
}

/* ---- writing ---- */

static void emit_source(nps_text_t *out, const nps_recipe_token_t *token) {
  if (token->zero)
    nps_text_add(out, "source: {kind: zero}, ");
  else if (token->from || token->id >= 0) {
    nps_text_add(out, "source: {kind: model_token, model: ");
    nps_emit_text(out, token->model);
    if (token->from) {
      nps_text_add(out, ", token: ");
      nps_emit_text(out, token->from);
    } else
      nps_text_add(out, ", token_id: %" PRId64, token->id);
    nps_text_add(out, "}, ");
  } else if (token->model) {
    nps_text_add(out, "source: ");
    nps_emit_text(out, token->model);
    nps_text_add(out, ", ");
  }
}

void nps_tokenizer_emit(nps_text_t *out, const nps_recipe_tokenizer_t *tokenizer) {
  if (!tokenizer->given) return;
  nps_text_add(out, "tokenizer:\n  ");
  nps_emit_pair(out, "source",
                tokenizer->source == NPS_TOKENIZER_BASE    ? "base"
                : tokenizer->source == NPS_TOKENIZER_UNION ? "union"
                                                           : tokenizer->model);
  if (tokenizer->pad) nps_text_add(out, "  pad_to_multiple_of: %" PRId64 "\n", tokenizer->pad);
  if (tokenizer->token_count) nps_text_add(out, "  tokens:\n");
  for (int i = 0; i < tokenizer->token_count; i++) {
    const nps_recipe_token_t *token = &tokenizer->tokens[i];
    nps_text_add(out, "    ");
    nps_emit_text(out, token->token);
    nps_text_add(out, ": {");
    emit_source(out, token);
    nps_text_add(out, "force: %s}\n", token->force ? "true" : "false");
  }
}

void nps_tokenizer_section_free(nps_recipe_tokenizer_t *tokenizer) {
  for (int i = 0; i < tokenizer->token_count; i++) {
    free(tokenizer->tokens[i].token);
    free(tokenizer->tokens[i].model);
    free(tokenizer->tokens[i].from);
  }
  free(tokenizer->tokens);
  free(tokenizer->model);
}
