#include "nps/config.h"

#include "level.h"
#include "models.h"
#include "override.h"
#include "section.h"
#include "slices.h"
#include "tokenizer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)16 << 20)
#define DEFAULT_SHARD_SIZE INT64_C(5000000000)
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* A recipe while it is read, with what the recipe itself need not keep. */
typedef struct draft {
  nps_recipe_t *recipe;
  bool has_dtype;
  nps_dtype_t dtype;
  nps_place_t head_place;
  bool has_random_seed;
  uint64_t random_seed; /* holds where there is no seed */
} draft_t;

static void read_method(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_t *recipe = ((draft_t *)target)->recipe;
  recipe->method_line = value->place.line;
  nps_text_read(value, what, &recipe->merge_method);
}

static void read_base(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_t *recipe = ((draft_t *)target)->recipe;
  recipe->base_line = value->place.line;
  nps_model_read(value, what, &recipe->base_model);
}

static void read_models(void *target, const nps_node_t *value, const char *what) {
  nps_models_read(value, what, ((draft_t *)target)->recipe);
}

static void read_slices(void *target, const nps_node_t *value, const char *what) {
  nps_slices_read(value, what, ((draft_t *)target)->recipe);
}

static void read_modules(void *target, const nps_node_t *value, const char *what) {
  nps_modules_read(value, what, ((draft_t *)target)->recipe);
}

static void read_parameters(void *target, const nps_node_t *value, const char *what) {
  nps_settings_read(value, what, &((draft_t *)target)->recipe->parameters);
}

static void read_number_of_seed(const nps_node_t *value, const char *what, uint64_t *out) {
  char found[96];
  if (!nps_node_uint64(value, out))
    nps_place_fail(value->place, "%s: expected an integer from 0 to %" PRIu64 ", found %s", what, UINT64_MAX,
                   nps_node_describe(value, found));
}

static void read_seed(void *target, const nps_node_t *value, const char *what) {
  read_number_of_seed(value, what, &((draft_t *)target)->recipe->seed);
}

/* mergekit's name for it. */
static void read_random_seed(void *target, const nps_node_t *value, const char *what) {
  draft_t *draft = target;
  draft->has_random_seed = true;
  read_number_of_seed(value, what, &draft->random_seed);
}

static void read_size(const nps_node_t *value, const char *what, const char *expected, int64_t *out) {
  char found[96];
  if (value->kind != NPS_NODE_SCALAR || !nps_parse_size(value->text, out))
    nps_place_fail(value->place, "%s: expected %s, found %s", what, expected, nps_node_describe(value, found));
}

static void read_memory(void *target, const nps_node_t *value, const char *what) {
  int64_t *memory = &((draft_t *)target)->recipe->memory_per_rank;
  if (value->kind == NPS_NODE_SCALAR && strcmp(value->text, "auto") == 0)
    *memory = 0;
  else
    read_size(value, what, "auto or a size such as 2GiB", memory);
}

static void read_resources(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"memory_per_rank", NPS_KEY_READ, read_memory, NULL}};
  nps_level_read(value, what, keys, COUNT(keys), target);
}

static bool read_type(const nps_node_t *value, const char *what, nps_dtype_t *out) {
  char found[96];
  if (value->kind == NPS_NODE_SCALAR && nps_dtype_from_user_name(value->text, out)) return true;
  nps_place_fail(value->place, "%s: expected float32, float16, bfloat16 or float64, found %s", what,
                 nps_node_describe(value, found));
  return false;
}

static void read_dtype(void *target, const nps_node_t *value, const char *what) {
  draft_t *draft = target;
  draft->has_dtype = read_type(value, what, &draft->dtype);
}

static void read_out_dtype(void *target, const nps_node_t *value, const char *what) {
  nps_recipe_t *recipe = ((draft_t *)target)->recipe;
  recipe->has_out_dtype = read_type(value, what, &recipe->out_dtype);
}

static void read_tokenizer_source(void *target, const nps_node_t *value, const char *what) {
  nps_tokenizer_source_read(value, what, &((draft_t *)target)->recipe->tokenizer);
}

static void read_tokenizer(void *target, const nps_node_t *value, const char *what) {
  nps_tokenizer_section_read(value, what, &((draft_t *)target)->recipe->tokenizer);
}

static void read_chat_template(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((draft_t *)target)->recipe->chat_template);
}

static void read_copy_tokenizer(void *target, const nps_node_t *value, const char *what) {
  nps_boolean_read(value, what, &((draft_t *)target)->recipe->copy_tokenizer);
}

static void read_path(void *target, const nps_node_t *value, const char *what) {
  nps_text_read(value, what, &((draft_t *)target)->recipe->output_path);
}

static void read_head(void *target, const nps_node_t *value, const char *what) {
  draft_t *draft = target;
  draft->head_place = value->place;
  nps_text_read(value, what, &draft->recipe->output_head);
}

static void read_shard_size(void *target, const nps_node_t *value, const char *what) {
  int64_t *bytes = &((draft_t *)target)->recipe->shard_size;
  read_size(value, what, "a size such as 5GB", bytes);
  if (value->kind == NPS_NODE_SCALAR && strchr(value->text, 'B') == value->text + strspn(value->text, "0123456789. ") &&
      *bytes < 1000)
    nps_place_note(value->place,
                   "%s: %s is %" PRId64 " bytes; mergekit's 1B, a thousand million numbers, is 2GB in bfloat16", what,
                   value->text, *bytes);
}

static void read_output(void *target, const nps_node_t *value, const char *what) {
  static const nps_key_t keys[] = {{"path", NPS_KEY_READ, read_path, NULL},
                                   {"head", NPS_KEY_READ, read_head, NULL},
                                   {"shard_size", NPS_KEY_READ, read_shard_size, NULL}};
  nps_level_read(value, what, keys, COUNT(keys), target);
}

static void read_nps(void *target, const nps_node_t *value, const char *what) {
  nps_nps_read(((draft_t *)target)->recipe, value, what);
}

static void read_archive(void *target, const nps_node_t *value, const char *what) {
  nps_archive_read(((draft_t *)target)->recipe, value, what);
}

static void read_search(void *target, const nps_node_t *value, const char *what) {
  nps_search_read(((draft_t *)target)->recipe, value, what);
}

static void read_fitness(void *target, const nps_node_t *value, const char *what) {
  nps_fitness_read(((draft_t *)target)->recipe, value, what);
}

static const nps_key_t top_keys[] = {{"merge_method", NPS_KEY_READ, read_method, NULL},
                                     {"base_model", NPS_KEY_READ, read_base, NULL},
                                     {"models", NPS_KEY_READ, read_models, NULL},
                                     {"parameters", NPS_KEY_READ, read_parameters, NULL},
                                     {"seed", NPS_KEY_READ, read_seed, NULL},
                                     {"resources", NPS_KEY_READ, read_resources, NULL},
                                     {"dtype", NPS_KEY_READ, read_dtype, NULL},
                                     {"out_dtype", NPS_KEY_READ, read_out_dtype, NULL},
                                     {"tokenizer_source", NPS_KEY_READ, read_tokenizer_source, NULL},
                                     {"output", NPS_KEY_READ, read_output, NULL},
                                     {"nps", NPS_KEY_READ, read_nps, NULL},
                                     {"search", NPS_KEY_READ, read_search, NULL},
                                     {"fitness", NPS_KEY_READ, read_fitness, NULL},
                                     {"archive", NPS_KEY_READ, read_archive, NULL},
                                     {"slices", NPS_KEY_READ, read_slices, NULL},
                                     {"modules", NPS_KEY_READ, read_modules, NULL},
                                     {"tokenizer", NPS_KEY_READ, read_tokenizer, NULL},
                                     {"chat_template", NPS_KEY_READ, read_chat_template, NULL},
                                     {"pad_to_multiple_of", NPS_KEY_ELSEWHERE, NULL, "tokenizer.pad_to_multiple_of"},
                                     {"unsafe_truncate_embeddings", NPS_KEY_NOT_BUILT, NULL, NULL},
                                     {"name", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"int8_mask", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"allow_crimes", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"transformers_cache", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"lora_merge_cache", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"lora_merge_dtype", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"cuda", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"device", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"low_cpu_memory", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"copy_tokenizer", NPS_KEY_READ, read_copy_tokenizer, NULL},
                                     {"clone_tensors", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"trust_remote_code", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"gpu_rich", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"quiet", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"verbosity", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"lazy_unpickle", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"write_model_card", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"safe_serialization", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"read_to_gpu", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"multi_gpu", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"num_threads", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"async_write", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"write_threads", NPS_KEY_NO_EFFECT, NULL, NULL},
                                     {"random_seed", NPS_KEY_READ, read_random_seed, NULL},
                                     {"out_shard_size", NPS_KEY_ELSEWHERE, NULL, "output.shard_size"}};

static void check_missing(const nps_node_t *root, const char *key, const char *expected) {
  const nps_entry_t *entry = nps_node_find(root, key);
  if (entry && !nps_node_is_null(entry->value)) return;
  nps_place_fail(entry ? entry->place : root->place, "'%s' is missing, expected %s", key, expected);
}

static void check_head(const draft_t *draft) {
  const nps_recipe_t *recipe = draft->recipe;
  if (!recipe->output_head || recipe->model_count == 0) return;
  const char **names = nps_xcalloc((size_t)recipe->model_count, sizeof *names);
  int count = 0;
  bool found = false;
  for (int i = 0; i < recipe->model_count; i++) {
    if (!recipe->models[i].name) continue;
    names[count++] = recipe->models[i].name;
    found |= strcmp(recipe->models[i].name, recipe->output_head) == 0;
  }
  const char *near = found ? NULL : nps_nearest(recipe->output_head, names, count);
  char shown[72];
  if (!found)
    nps_place_fail(draft->head_place, "output.head: expected the name of a listed model, found '%s'%s%s%s",
                   nps_show(recipe->output_head, shown), near ? ", did you mean '" : "", near ? near : "",
                   near ? "'?" : "");
  free(names);
}

static void read_recipe(const nps_node_t *root, nps_recipe_t *recipe) {
  draft_t draft = {.recipe = recipe};
  nps_sections_default(recipe);
  nps_level_read(root, "", top_keys, COUNT(top_keys), &draft);
  if (draft.has_random_seed && !nps_node_find(root, "seed")) recipe->seed = draft.random_seed;
  check_missing(root, "merge_method", "the name of a method");
  nps_slices_check(recipe, root);
  nps_tokenizer_check(root);
  check_head(&draft);
  nps_sections_check(recipe, root);
  if (recipe->has_out_dtype || !draft.has_dtype) return;
  recipe->has_out_dtype = true;
  recipe->out_dtype = draft.dtype;
}

static nps_err_t parse_root(const char *text, size_t size, const char *file, nps_node_t **root) {
  char found[96];
  NPS_TRY(nps_yaml_parse(text, size, file, true, root));
  nps_place_t top = {file, 1};
  if (!*root) return nps_place_fail(top, "the config is empty, expected a mapping with merge_method and models");
  if ((*root)->kind == NPS_NODE_MAPPING) return NPS_OK;
  return nps_place_fail((*root)->place, "expected a mapping with merge_method and models, found %s",
                        nps_node_describe(*root, found));
}

static nps_err_t parse_bytes(const char *text, size_t size, const char *file, const nps_override_t *overrides,
                             int n_overrides, nps_recipe_t **out) {
  int problems = nps_problem_count();
  nps_node_t *root = NULL;
  nps_recipe_t *recipe = NULL;
  nps_err_t err;
  char **sources = nps_xcalloc((size_t)n_overrides, sizeof *sources);
  *out = NULL;
  NPS_GOTO(parse_root(text, size, file, &root));
  for (int i = 0; i < n_overrides; i++) {
    sources[i] = nps_xstrf("--set %s", overrides[i].path);
    (void)nps_override_apply(root, &overrides[i], sources[i]); /* recorded; the rest is checked all the same */
  }
  recipe = nps_xcalloc(1, sizeof *recipe);
  recipe->file = nps_xstrdup(file);
  recipe->shard_size = DEFAULT_SHARD_SIZE;
  recipe->copy_tokenizer = true;
  read_recipe(root, recipe);
  if (nps_problem_count() > problems) {
    err = NPS_ERR_CONFIG;
    goto done;
  }
  *out = recipe;
  recipe = NULL;
done:
  nps_recipe_free(recipe);
  nps_node_free(root);
  for (int i = 0; i < n_overrides; i++) free(sources[i]);
  free(sources);
  return err;
}

nps_err_t nps_recipe_parse(const char *text, const char *file, const nps_override_t *overrides, int n_overrides,
                           nps_recipe_t **out) {
  return parse_bytes(text, strlen(text), file, overrides, n_overrides, out);
}

static nps_err_t read_file(const char *file, char **text, size_t *size) {
  FILE *f = fopen(file, "rb");
  if (!f) return nps_fail(NPS_ERR_CONFIG, "%s: the config cannot be read: %s", file, strerror(errno));
  nps_text_t all = {0};
  char part[65536];
  size_t n;
  while (all.size <= MAX_FILE && (n = fread(part, 1, sizeof part, f)) > 0) nps_text_add_bytes(&all, part, n);
  nps_err_t err = NPS_OK;
  if (ferror(f))
    err = nps_fail(NPS_ERR_CONFIG, "%s: the config cannot be read: %s", file, strerror(errno));
  else if (all.size > MAX_FILE)
    err = nps_fail(NPS_ERR_CONFIG, "%s: expected a config of at most 16 MiB", file);
  fclose(f);
  *text = all.text;
  *size = all.size;
  return err;
}

nps_err_t nps_recipe_load(const char *file, const nps_override_t *overrides, int n_overrides, nps_recipe_t **out) {
  char *text = NULL;
  size_t size = 0;
  *out = NULL;
  nps_err_t err = read_file(file, &text, &size);
  if (err == NPS_OK) err = parse_bytes(text ? text : "", size, file, overrides, n_overrides, out);
  free(text);
  return err;
}

void nps_recipe_free(nps_recipe_t *recipe) {
  if (!recipe) return;
  for (int i = 0; i < recipe->model_count; i++) {
    free(recipe->models[i].model);
    free(recipe->models[i].name);
    nps_settings_free(&recipe->models[i].parameters);
  }
  free(recipe->models);
  nps_slices_free(recipe);
  nps_settings_free(&recipe->parameters);
  nps_sections_free(recipe);
  free(recipe->file);
  free(recipe->merge_method);
  free(recipe->base_model);
  free(recipe->output_path);
  nps_tokenizer_section_free(&recipe->tokenizer);
  free(recipe->chat_template);
  free(recipe->output_head);
  free(recipe);
}
