/* Chat templates, and which small files an output gets. */
#include "tokenizer.h"

#include "nps/compose.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- built-in templates ---- */

static const struct {
  const char *name, *text;
} built_in[] = {
    {"alpaca",
     "{% for m in messages if m['role'] == 'system' %}{% if loop.last %}{{ m['content'] | trim }}{% endif %}{% endfor "
     "%}"
     "{{ '\\n\\n' }}"
     "{% for m in messages %}"
     "{% set title = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'}.get(m['role']) %}"
     "{% if title %}{{ '### ' + title + ':\\n' + m['content'] | trim + ('' if loop.last else '\\n\\n') }}{% endif %}"
     "{% endfor %}"
     "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '\\n\\n### Response:\\n' }}{% endif %}"},
    {"chatml",
     "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"},
    {"exaone", "{% for m in messages %}"
               "{% if loop.first and m['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
               "{{ '[|' + m['role'] + '|]' + m['content'] + ('\\n' if m['role'] == 'user' else '[|endofturn|]\\n') }}"
               "{% endfor %}"
               "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"},
    {"llama3",
     "{{ bos_token }}"
     "{% for m in messages %}"
     "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
     "{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"},
    {"mistral",
     "{{ bos_token }}"
     "{% set n = namespace(turn=0, system='') %}"
     "{% for m in messages %}"
     "{% if loop.first and m['role'] == 'system' %}{% set n.system = m['content'] + '\\n\\n' %}"
     "{% elif m['role'] != ('user' if n.turn % 2 == 0 else 'assistant') %}"
     "{{ raise_exception('after a system message the roles must be user and assistant in turn') }}"
     "{% else %}"
     "{% if m['role'] == 'user' %}{{ ' [INST] ' + (n.system if n.turn == 0 else '') + m['content'] + ' [/INST]' }}"
     "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
     "{% set n.turn = n.turn + 1 %}"
     "{% endif %}"
     "{% endfor %}"},
};

static const char *find_built_in(const char *name) {
  for (size_t i = 0; i < COUNT(built_in); i++)
    if (strcmp(built_in[i].name, name) == 0) return built_in[i].text;
  return NULL;
}

/* ---- the models' templates ---- */

/* The template in tokenizer_config.json: a text, or of a list {name, template} the one named default. */
static const char *find_template(const json_t *value) {
  json_t *entry;
  size_t i;
  if (json_is_string(value)) return json_string_value(value);
  json_array_foreach(value, i, entry) {
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (name && strcmp(name, "default") == 0) return json_string_value(json_object_get(entry, "template"));
  }
  return NULL;
}

/* Without blanks around it; NULL where there is nothing else. */
static char *trimmed(const char *text, size_t size) {
  while (size > 0 && isspace((unsigned char)text[size - 1])) size--;
  while (size > 0 && isspace((unsigned char)*text)) {
    text++;
    size--;
  }
  return size ? nps_xstrndup(text, size) : NULL;
}

/* tokenizer_config.json, or NULL where there is none. */
static nps_err_t read_config(const char *model, nps_sidecar_t *files, int count, json_t **out) {
  const nps_sidecar_t *file = nps_sidecar_find(files, count, "tokenizer_config.json");
  *out = NULL;
  if (!file) return NPS_OK;
  char *where = nps_xstrf("%s: tokenizer_config.json", model);
  const nps_err_t err = nps_json_parse_python(file->data, file->size, where, out);
  free(where);
  return err;
}

static nps_err_t read_template(const char *model, nps_sidecar_t *files, int count, char **out) {
  const nps_sidecar_t *jinja = nps_sidecar_find(files, count, "chat_template.jinja");
  json_t *root = NULL;
  *out = jinja ? trimmed(jinja->data, jinja->size) : NULL;
  if (jinja) return NPS_OK;
  NPS_TRY(read_config(model, files, count, &root));
  const char *text = find_template(json_object_get(root, "chat_template"));
  *out = text ? trimmed(text, strlen(text)) : NULL;
  json_decref(root);
  return NPS_OK;
}

/* The most frequent one, of equals the first. */
static nps_err_t choose_template(const nps_model_t *const *models, int model_count, char **out) {
  char **found = nps_xcalloc((size_t)model_count + 1, sizeof *found);
  nps_err_t err = NPS_OK;
  int best = 0;
  *out = NULL;
  for (int m = 0; m < model_count && err == NPS_OK; m++) {
    nps_sidecar_t *files = NULL;
    int count = 0;
    err = nps_sidecars_read(models[m], &files, &count);
    if (err == NPS_OK) err = read_template(models[m]->path, files, count, &found[m]);
    nps_sidecars_free(files, count);
  }
  for (int m = 0; m < model_count; m++) {
    int votes = 0;
    for (int k = 0; found[m] && k < model_count; k++) votes += found[k] && strcmp(found[k], found[m]) == 0;
    if (votes <= best) continue;
    best = votes;
    free(*out);
    *out = nps_xstrdup(found[m]);
  }
  for (int m = 0; m < model_count; m++) free(found[m]);
  free(found);
  return err;
}

/* ---- setting it ---- */

static nps_err_t remove_from_config(nps_sidecar_t **files, int *count) {
  json_t *config = NULL;
  NPS_TRY(read_config("chat_template: the tokenizer", *files, *count, &config));
  if (json_object_get(config, "chat_template")) {
    json_object_del(config, "chat_template");
    char *text = nps_json_print(config, JSON_INDENT(2));
    nps_sidecar_set(files, count, "tokenizer_config.json", text, strlen(text));
  }
  json_decref(config);
  return NPS_OK;
}

nps_err_t nps_chat_template_set(const char *text, const nps_model_t *const *models, int model_count,
                                nps_sidecar_t **files, int *count) {
  char *chosen = NULL;
  if (strcmp(text, "auto") == 0) {
    NPS_TRY(choose_template(models, model_count, &chosen));
    if (!chosen) nps_note("chat_template: no model has one");
  } else if (find_built_in(text))
    chosen = nps_xstrdup(find_built_in(text));
  else if (strlen(text) >= 20 && strchr(text, '{'))
    chosen = nps_xstrdup(text);
  else
    return nps_fail(NPS_ERR_CONFIG,
                    "chat_template: expected auto, alpaca, chatml, exaone, llama3, mistral or a Jinja template, found "
                    "'%s'",
                    text);
  if (!chosen) return NPS_OK;
  nps_err_t err = remove_from_config(files, count);
  if (err != NPS_OK) {
    free(chosen);
    return err;
  }
  nps_sidecar_drop(*files, count, "chat_template.json");
  nps_sidecar_set(files, count, "chat_template.jinja", chosen, strlen(chosen));
  return NPS_OK;
}

/* ---- which files travel ---- */

static void take(nps_sidecar_t *from, int n, bool tokenizer, bool wanted, nps_sidecar_t **out, int *count) {
  for (int i = 0; i < n; i++) {
    if (wanted && nps_is_tokenizer_file(from[i].name) == tokenizer) {
      nps_sidecar_set(out, count, from[i].name, from[i].data, from[i].size);
      from[i].data = NULL;
    }
  }
  nps_sidecars_free(from, n);
}

void nps_sidecars_pick(nps_sidecar_t *tokenizer, int tokenizer_count, nps_sidecar_t *others, int other_count,
                       bool with_tokenizer, nps_sidecar_t **out, int *count) {
  *out = NULL;
  *count = 0;
  take(others, other_count, false, true, out, count);
  take(tokenizer, tokenizer_count, true, with_tokenizer, out, count);
}
