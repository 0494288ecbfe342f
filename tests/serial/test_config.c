#include "../nps_check.h"
#include "nps/config.h"

#include <math.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static nps_text_t notes;

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  nps_text_add(&notes, "%s%s", notes.size ? "\n" : "", text);
}

static void start_notes(void) {
  free(notes.text);
  notes = (nps_text_t){0};
  nps_note_set_sink(keep_note, NULL);
  nps_problem_clear();
}

/* All recorded problems, one a line; forgets them. */
static char *take_problems(void) {
  nps_text_t all = {0};
  nps_text_add(&all, "%s", "");
  for (int i = 0; i < nps_problem_count(); i++) {
    ck_assert_int_eq(nps_problem_code(i), NPS_ERR_CONFIG);
    nps_text_add(&all, "%s%s", i ? "\n" : "", nps_problem_text(i));
  }
  nps_problem_clear();
  return all.text;
}

static nps_recipe_t *parse_with(const char *text, const nps_override_t *overrides, int count) {
  nps_recipe_t *recipe = NULL;
  start_notes();
  nps_err_t err = nps_recipe_parse(text, "c.yaml", overrides, count, &recipe);
  char *problems = take_problems();
  ck_assert_str_eq(problems, "");
  ck_assert_int_eq(err, NPS_OK);
  ck_assert_ptr_nonnull(recipe);
  free(problems);
  return recipe;
}

static nps_recipe_t *parse(const char *text) { return parse_with(text, NULL, 0); }

static void expect_problems_with(const char *text, const nps_override_t *overrides, int count, const char *expected) {
  nps_recipe_t *recipe = (nps_recipe_t *)&notes; /* must be set to NULL */
  start_notes();
  nps_err_t err = nps_recipe_parse(text, "c.yaml", overrides, count, &recipe);
  char *problems = take_problems();
  ck_assert_msg(strcmp(problems, expected) == 0, "config:\n%s\nexpected:\n%s\nfound:\n%s", text, expected, problems);
  ck_assert_int_eq(err, NPS_ERR_CONFIG);
  ck_assert_ptr_null(recipe);
  free(problems);
}

static void expect_problems(const char *text, const char *expected) { expect_problems_with(text, NULL, 0, expected); }

static nps_recipe_t *parse_parameter(const char *value) {
  char *text = nps_xstrf("merge_method: ties\nmodels: [{model: a}]\nparameters:\n  p: %s\n", value);
  nps_recipe_t *recipe = parse(text);
  free(text);
  return recipe;
}

static const nps_value_t *value_of(const nps_settings_t *settings, const char *name) {
  const nps_setting_t *setting = nps_settings_find(settings, name);
  ck_assert_msg(setting, "no parameter %s", name);
  return setting->value;
}

static double number_of(const nps_value_t *value, const char *tensor, double t) {
  double number = NAN;
  ck_assert(nps_value_number(value, tensor, t, &number));
  return number;
}

static const char full[] = "merge_method: ties          # a comment\n"
                           "base_model: models/base\n"
                           "models:\n"
                           "  - model: models/base\n"
                           "  - model: models/plain\n"
                           "    parameters: {weight: 1.0, density: 0.2}\n"
                           "  - model: org/Rotated-7B-v0.1@main\n"
                           "    name: rot\n"
                           "    parameters:\n"
                           "      weight:\n"
                           "        - {filter: self_attn, value: [0, 0.5, 1]}\n"
                           "        - {filter: mlp, value: 0.25}\n"
                           "        - value: 0.75\n"
                           "parameters: {lambda: 0.9, normalize: true, mode: fast}\n"
                           "seed: 18446744073709551615\n"
                           "resources: {memory_per_rank: 512MiB}\n"
                           "dtype: float32\n"
                           "out_dtype: bfloat16\n"
                           "tokenizer_source: base\n"
                           "output: {path: merged.h5, head: rot, shard_size: 1.5GB}\n";

START_TEST(every_key_is_read) {
  nps_recipe_t *r = parse(full);
  ck_assert_str_eq(r->file, "c.yaml");
  ck_assert_str_eq(r->merge_method, "ties");
  ck_assert_int_eq(r->method_line, 1);
  ck_assert_str_eq(r->base_model, "models/base");
  ck_assert_int_eq(r->base_line, 2);
  ck_assert_int_eq(r->model_count, 3);
  ck_assert_str_eq(r->models[0].name, "base");
  ck_assert_str_eq(r->models[1].name, "plain");
  ck_assert_str_eq(r->models[2].name, "rot");
  ck_assert_str_eq(r->models[2].model, "org/Rotated-7B-v0.1@main");
  ck_assert_int_eq(r->models[2].line, 7);
  ck_assert_int_eq(r->models[1].parameters.count, 2);
  ck_assert_int_eq(nps_settings_find(&r->models[1].parameters, "density")->line, 6);
  ck_assert_ptr_null(nps_settings_find(&r->models[1].parameters, "lambda"));
  ck_assert(number_of(value_of(&r->parameters, "lambda"), NULL, 0) == 0.9);
  ck_assert_str_eq(nps_value_text(value_of(&r->parameters, "mode")), "fast");
  ck_assert_uint_eq(r->seed, UINT64_MAX);
  ck_assert_int_eq(r->memory_per_rank, 512 << 20);
  ck_assert(r->has_out_dtype);
  ck_assert_int_eq(r->out_dtype, NPS_BF16);
  ck_assert_str_eq(r->output_path, "merged.h5");
  ck_assert_str_eq(r->output_head, "rot");
  ck_assert_int_eq(r->shard_size, 1500000000);
  ck_assert_ptr_null(notes.text);
  nps_recipe_free(r);
}
END_TEST

START_TEST(defaults_are_those_of_the_manual) {
  nps_recipe_t *r = parse("merge_method: linear\nmodels:\n- model: a\nbase_model: null\nparameters:\noutput:\n");
  ck_assert_ptr_null(r->base_model);
  ck_assert_uint_eq(r->seed, 0);
  ck_assert_int_eq(r->memory_per_rank, 0);
  ck_assert(!r->has_out_dtype);
  ck_assert_ptr_null(r->output_path);
  ck_assert_ptr_null(r->output_head);
  ck_assert_int_eq(r->shard_size, 5000000000);
  ck_assert_int_eq(r->parameters.count, 0);
  nps_recipe_free(r);
}
END_TEST

START_TEST(dtype_is_the_output_type_without_out_dtype) {
  nps_recipe_t *r = parse("merge_method: linear\ndtype: float16\nmodels: [{model: a}]\n");
  ck_assert(r->has_out_dtype);
  ck_assert_int_eq(r->out_dtype, NPS_F16);
  nps_recipe_free(r);
  r = parse("merge_method: linear\nout_dtype: torch.bfloat16\nmodels: [{model: a}]\n");
  ck_assert_int_eq(r->out_dtype, NPS_BF16);
  nps_recipe_free(r);
}
END_TEST

/* Forms that mergekit's users write for methods that are here too. */
START_TEST(configs_of_mergekit_parse) {
  nps_recipe_t *r = parse("models:\n"
                          "  - model: psmathur/orca_mini_v3_13b\n"
                          "    parameters:\n"
                          "      density: [1, 0.7, 0.1] # density gradient\n"
                          "      weight: 1.0\n"
                          "  - model: garage-bAInd/Platypus2-13B\n"
                          "    parameters:\n"
                          "      density: 0.5\n"
                          "      weight: [0, 0.3, 0.7, 1] # weight gradient\n"
                          "  - model: WizardLM/WizardMath-13B-V1.0\n"
                          "    parameters:\n"
                          "      density: 0.33\n"
                          "      weight:\n"
                          "        - filter: mlp\n"
                          "          value: 0.5\n"
                          "        - value: 0\n"
                          "merge_method: ties\n"
                          "base_model: TheBloke/Llama-2-13B-fp16\n"
                          "parameters:\n"
                          "  normalize: true\n"
                          "  int8_mask: true\n"
                          "dtype: float16\n");
  ck_assert_str_eq(notes.text, "c.yaml:21: key 'int8_mask' has no effect here");
  ck_assert_ptr_null(nps_settings_find(&r->parameters, "int8_mask"));
  ck_assert_str_eq(r->models[2].name, "WizardMath-13B-V1.0");
  const nps_value_t *weight = value_of(&r->models[2].parameters, "weight");
  ck_assert(number_of(weight, "model.layers.3.mlp.up_proj.weight", 0.1) == 0.5);
  ck_assert(number_of(weight, "model.norm.weight", 0) == 0);
  nps_recipe_free(r);

  r = parse("name: my-merge\n"
            "merge_method: slerp\n"
            "base_model: {model: {path: org/a, revision: v2}}\n"
            "models:\n"
            "- model:\n    model:\n      path: org/a\n      revision: v2\n"
            "- model: {model: org/b}\n"
            "parameters:\n"
            "  t:\n"
            "  - filter: self_attn\n    value: [0, 0.5, 0.3, 0.7, 1]\n"
            "  - filter: mlp\n    value: [1, 0.5, 0.7, 0.3, 0]\n"
            "  - value: 0.5\n"
            "dtype: bfloat16\n");
  ck_assert_str_eq(notes.text, "c.yaml:1: key 'name' has no effect here");
  ck_assert_str_eq(r->models[0].model, "org/a@v2");
  ck_assert_str_eq(r->models[0].name, "a");
  ck_assert_str_eq(r->models[1].model, "org/b");
  nps_recipe_free(r);
}
END_TEST

START_TEST(anchors_aliases_and_merge_keys_work) {
  nps_recipe_t *r = parse("merge_method: ties\n"
                          "models:\n"
                          "- model: a\n  parameters: &p {weight: 0.5, density: 0.1}\n"
                          "- model: b\n  parameters: *p\n"
                          "- model: c\n  parameters:\n    weight: 2\n    <<: *p\n"
                          "- model: d\n  parameters: {<<: [{weight: 3}, *p]}\n");
  ck_assert(number_of(value_of(&r->models[1].parameters, "weight"), NULL, 0) == 0.5);
  ck_assert(number_of(value_of(&r->models[2].parameters, "weight"), NULL, 0) == 2);
  ck_assert(number_of(value_of(&r->models[2].parameters, "density"), NULL, 0) == 0.1);
  ck_assert(number_of(value_of(&r->models[3].parameters, "weight"), NULL, 0) == 3);
  ck_assert_int_eq(r->models[3].parameters.count, 2);
  nps_recipe_free(r);
}
END_TEST

START_TEST(default_names_are_made_unique) {
  nps_recipe_t *r = parse("merge_method: linear\n"
                          "models:\n"
                          "- model: runs/1/model.safetensors\n"
                          "- model: runs/2/model.h5\n"
                          "- model: org/model@rev\n"
                          "- model: x/\n  name: model-2\n"
                          "- model: /\n");
  ck_assert_str_eq(r->models[0].name, "model");
  ck_assert_str_eq(r->models[1].name, "model-3");
  ck_assert_str_eq(r->models[2].name, "model-4");
  ck_assert_str_eq(r->models[3].name, "model-2");
  ck_assert_str_eq(r->models[4].name, "model-5");
  ck_assert_str_eq(notes.text, "c.yaml:4: models.1 is named 'model-3', as its last path component is taken\n"
                               "c.yaml:5: models.2 is named 'model-4', as its last path component is taken\n"
                               "c.yaml:8: models.4 is named 'model-5', as its last path component is taken");
  nps_recipe_free(r);
}
END_TEST

START_TEST(adapters_give_names_and_may_be_mappings) {
  nps_recipe_t *r = parse("merge_method: linear\n"
                          "models:\n"
                          "- model: runs/base+runs/french\n"
                          "- model: base+legal/\n"
                          "- model: {model: {path: org/base, revision: r1}, lora: {path: my/german}}\n");
  ck_assert_str_eq(r->models[0].name, "french");
  ck_assert_str_eq(r->models[1].name, "legal");
  ck_assert_str_eq(r->models[2].name, "german");
  ck_assert_str_eq(r->models[2].model, "org/base@r1+my/german");
  nps_recipe_free(r);
  expect_problems("merge_method: ties\nmodels:\n- model: {model: a, lora: [b]}\n",
                  "c.yaml:3: models.0.model.lora: expected a mapping, found a list");
}
END_TEST

START_TEST(base_is_found_however_its_path_is_written) {
  nps_recipe_t *r = parse("merge_method: linear\nbase_model: ./m/base/\nmodels: [{model: m/base}, {model: m/based}]\n");
  nps_recipe_free(r);
}
END_TEST

/* Recorded from mergekit 0.1.5's evaluate_setting() at t = i/11. */
START_TEST(gradients_are_those_of_mergekit) {
  static const double expected[][2] = {
      {0x0.0p+0, 0x1.999999999999ap-4},
      {0x1.745d1745d1746p-3, 0x1.3c8253c8253c8p-3},
      {0x1.745d1745d1746p-2, 0x1.ac37dac37dac3p-3},
      {0x1.ed61bed61bed6p-2, 0x1.0df6b0df6b0dfp-2},
      {0x1.a2e8ba2e8ba2ep-2, 0x1.45d1745d1745dp-2},
      {0x1.586fb586fb587p-2, 0x1.7dac37dac37dbp-2},
      {0x1.7dac37dac37d9p-2, 0x1.b586fb586fb58p-2},
      {0x1.094f2094f2095p-1, 0x1.ed61bed61bed6p-2},
      {0x1.53c8253c8253cp-1, 0x1.129e4129e4129p-1},
      {0x1.904a7904a7905p-1, 0x1.2e8ba2e8ba2e9p-1},
      {0x1.c8253c8253c82p-1, 0x1.4a7904a7904a8p-1},
      {0x1.0000000000000p+0, 0x1.6666666666666p-1},
  };
  nps_recipe_t *five = parse_parameter("[0, 0.5, 0.3, 0.7, 1]"), *two = parse_parameter("[0.1, 0.7]");
  for (int i = 0; i < COUNT(expected); i++) {
    ck_assert(number_of(value_of(&five->parameters, "p"), "x", i / 11.0) == expected[i][0]);
    ck_assert(number_of(value_of(&two->parameters, "p"), NULL, i / 11.0) == expected[i][1]);
  }
  nps_recipe_free(five);
  nps_recipe_free(two);
}
END_TEST

START_TEST(filters_take_the_first_match) {
  nps_recipe_t *r =
      parse_parameter("[{filter: attn, value: 1}, {filter: attn.q, value: 2}, {filter: k, value: [3, 5]}]");
  const nps_value_t *value = value_of(&r->parameters, "p");
  double number = 7;
  ck_assert(number_of(value, "layers.0.attn.q", 0) == 1);
  ck_assert(number_of(value, "layers.0.k", 0.5) == 4);
  ck_assert(!nps_value_number(value, "norm", 0, &number));
  ck_assert(!nps_value_number(value, NULL, 0, &number));
  ck_assert(number == 7);
  ck_assert(nps_value_is_numeric(value) && !nps_value_is_boolean(value) && !nps_value_is_plain(value));
  nps_recipe_free(r);

  r = parse_parameter("[{filter: attn, value: true}, {filter: '*', value: off}]");
  value = value_of(&r->parameters, "p");
  ck_assert(number_of(value, NULL, 0) == 0);
  ck_assert(number_of(value, "attn", 0) == 1);
  ck_assert(nps_value_is_boolean(value));
  nps_recipe_free(r);

  r = parse_parameter("{value: 4}");
  value = value_of(&r->parameters, "p");
  ck_assert(number_of(value, NULL, 0) == 4 && nps_value_is_plain(value));
  nps_recipe_free(r);

  r = parse_parameter("[{filter: attn, value: fast}, {value: 1}]");
  value = value_of(&r->parameters, "p");
  ck_assert(!nps_value_number(value, "attn", 0, &number));
  ck_assert(!nps_value_is_numeric(value));
  ck_assert_ptr_null(nps_value_text(value));
  nps_recipe_free(r);
}
END_TEST

START_TEST(lists_of_booleans_step) {
  nps_recipe_t *r = parse_parameter("[true, false, true]");
  const nps_value_t *value = value_of(&r->parameters, "p");
  ck_assert(number_of(value, NULL, 0) == 1);
  ck_assert(number_of(value, NULL, 0.49) == 1);
  ck_assert(number_of(value, NULL, 0.5) == 0);
  ck_assert(number_of(value, NULL, 1) == 1);
  ck_assert(nps_value_is_boolean(value) && nps_value_is_numeric(value) && !nps_value_is_plain(value));
  nps_recipe_free(r);
}
END_TEST

START_TEST(scalars_mean_what_yaml_says) {
  static const struct {
    const char *text;
    double number;
  } numbers[] = {{"1", 1},      {"-2", -2},     {"+3", 3},        {"0.5", 0.5},    {".5", 0.5},
                 {"5.", 5},     {"1e-3", 1e-3}, {"1.5E+3", 1500}, {"-1.e2", -100}, {"1_000.5", 1000.5},
                 {"0x1F", 31},  {"-0x10", -16}, {"0b101", 5},     {"010", 8},      {"0", 0},
                 {"00.5", 0.5}, {"0e1", 0},     {"'0.5'", 0.5},   {"!!str 5", 5}};
  for (int i = 0; i < COUNT(numbers); i++) {
    nps_recipe_t *r = parse_parameter(numbers[i].text);
    const nps_value_t *value = value_of(&r->parameters, "p");
    ck_assert_msg(number_of(value, NULL, 0) == numbers[i].number, "%s", numbers[i].text);
    ck_assert(nps_value_is_numeric(value) && !nps_value_is_boolean(value) && nps_value_is_plain(value));
    nps_recipe_free(r);
  }
  static const char *const trues[] = {"true", "True", "TRUE", "yes", "Yes", "on", "ON", "'true'"};
  static const char *const falses[] = {"false", "False", "no", "NO", "off", "Off", "\"false\""};
  for (int i = 0; i < COUNT(trues) + COUNT(falses); i++) {
    nps_recipe_t *r = parse_parameter(i < COUNT(trues) ? trues[i] : falses[i - COUNT(trues)]);
    ck_assert(nps_value_is_boolean(value_of(&r->parameters, "p")));
    ck_assert(number_of(value_of(&r->parameters, "p"), NULL, 0) == (i < COUNT(trues) ? 1 : 0));
    nps_recipe_free(r);
  }
  static const char *const texts[] = {"'0.5x'", "'null'", "y",  "tRUE",     "1e", "0x", "1.2.3", "08",
                                      "1:30",   "_1",     "--", "!!str 5a", "''", "e5", "1e5x"};
  for (int i = 0; i < COUNT(texts); i++) {
    nps_recipe_t *r = parse_parameter(texts[i]);
    const nps_value_t *value = value_of(&r->parameters, "p");
    double number;
    ck_assert_msg(nps_value_text(value), "%s", texts[i]);
    ck_assert(!nps_value_number(value, NULL, 0, &number) && !nps_value_is_numeric(value));
    nps_recipe_free(r);
  }
}
END_TEST

START_TEST(broken_values_are_refused) {
  static const struct {
    const char *value, *problem;
  } cases[] = {
      {"", "expected a value, found nothing"},
      {"~", "expected a value, found nothing"},
      {".nan", "expected a finite number, found .nan"},
      {"-.inf", "expected a finite number, found -.inf"},
      {"nan", "expected a finite number, found nan"},
      {"1e999", "expected a finite number, found 1e999"},
      {"[]", "expected numbers or {filter, value}, found an empty list"},
      {"[1, a]", "expected a list of numbers, found the text 'a' in it"},
      {"[a, b]", "expected a list of numbers, found the text 'a' in it"},
      {"[1, true]", "expected a list of numbers, found the boolean true in it"},
      {"[true, 1]", "expected a list of booleans, found the number 1 in it"},
      {"[1, 'two']", "expected a list of numbers, found the text 'two' in it"},
      {"[1, null]", "expected a list of numbers, found nothing in it"},
      {"[1, [2]]", "expected a list of numbers, found a list in it"},
      {"[1, .inf]", "expected finite numbers, found .inf"},
      {"[1, {value: 2}]", "expected a list of numbers, found a mapping in it"},
      {"[{value: 2}, 1]", "expected a list of {filter, value}, found the number 1 in it"},
      {"[{filter: a}]", "expected {filter, value}, found no value"},
      {"[{filter: a, value: }]", "expected a value, found nothing"},
      {"[{filter: [a], value: 1}]", "expected part of a tensor's name or '*' as filter, found a list"},
      {"[{fliter: a, value: 1}]", "unknown key 'fliter', did you mean 'filter'?"},
      {"{a: 1}", "unknown key 'a', expected {filter, value}"},
      {"{}", "expected {filter, value}, found no value"},
      {"[{value: [{value: 1}]}]", "filters inside filters are not supported"},
      {"[{value: {value: 1}}]", "filters inside filters are not supported"},
      {"[{value: []}]", "expected numbers or {filter, value}, found an empty list"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    char *text = nps_xstrf("merge_method: ties\nmodels: [{model: a}]\nparameters:\n  p: %s\n", cases[i].value);
    char *expected = nps_xstrf("c.yaml:4: parameters.p: %s", cases[i].problem);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
}
END_TEST

START_TEST(wrong_keys_are_named_with_line_and_nearest) {
  expect_problems("merge_metod: ties\nmodels: [{model: a}]\n",
                  "c.yaml:1: unknown key 'merge_metod', did you mean 'merge_method'?\n"
                  "c.yaml:1: 'merge_method' is missing, expected the name of a method");
  expect_problems("merge_method: ties\nmodels:\n- model: a\n  paramaters: {weight: 1}\nxyzzy: 1\n",
                  "c.yaml:4: unknown key 'paramaters' in models.0, did you mean 'parameters'?\n"
                  "c.yaml:5: unknown key 'xyzzy'; a method's parameters belong under 'parameters'");
  expect_problems("merge_method: ties\nmodels: [{model: a}]\nresources: {memory: 1GB}\noutput:\n  shardsize: 1GB\n",
                  "c.yaml:3: unknown key 'memory' in resources\n"
                  "c.yaml:5: unknown key 'shardsize' in output, did you mean 'shard_size'?");
  expect_problems("merge_method: ties\nmodels:\n- model: a\n  parameters:\n  weight: 0.5\n",
                  "c.yaml:5: unknown key 'weight' in models.0; a method's parameters belong under 'parameters'");
  expect_problems("merge_method: ties\nmodels: [{model: a}]\nout_shard_size: 1B\n",
                  "c.yaml:3: unknown key 'out_shard_size', did you mean 'output.shard_size'?");
}
END_TEST

START_TEST(what_is_not_built_is_refused) {
  static const char *const keys[] = {"unsafe_truncate_embeddings"};
  for (int i = 0; i < COUNT(keys); i++) {
    char *text = nps_xstrf("merge_method: ties\nmodels: [{model: a}]\n%s: {}\n", keys[i]);
    char *expected = nps_xstrf("c.yaml:3: %s: not built yet", keys[i]);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
  expect_problems("merge_method: ties\nmodels: [{model: a}]\npad_to_multiple_of: 8\n",
                  "c.yaml:3: unknown key 'pad_to_multiple_of', did you mean 'tokenizer.pad_to_multiple_of'?");
}
END_TEST

static const char tokens[] = "merge_method: linear\n"
                             "models: [{model: x}, {model: y/z}]\n"
                             "tokenizer:\n"
                             "  source: y/z\n"
                             "  pad_to_multiple_of: 64\n"
                             "  tokens:\n"
                             "    <|a|>: {source: x, force: true}\n"
                             "    b: {source: {kind: zero}}\n"
                             "    c: {source: {kind: model_token, model: y/z, token: '<|c: d|>'}}\n"
                             "    d: {source: {kind: model_token, model: {model: {path: y/z}}, token_id: 7}}\n"
                             "    e:\n"
                             "chat_template: chatml\n"
                             "copy_tokenizer: false\n";

static void check_tokens(const nps_recipe_t *r) {
  const nps_recipe_tokenizer_t *t = &r->tokenizer;
  ck_assert(t->given && t->source == NPS_TOKENIZER_MODEL && t->pad == 64 && !r->copy_tokenizer);
  ck_assert_str_eq(t->model, "y/z");
  ck_assert_str_eq(r->chat_template, "chatml");
  ck_assert_int_eq(t->token_count, 5);
  ck_assert_str_eq(t->tokens[0].token, "<|a|>");
  ck_assert(t->tokens[0].force && !t->tokens[0].zero && strcmp(t->tokens[0].model, "x") == 0);
  ck_assert(t->tokens[1].zero && !t->tokens[1].model && !t->tokens[1].force);
  ck_assert_str_eq(t->tokens[2].from, "<|c: d|>");
  ck_assert(t->tokens[3].id == 7 && t->tokens[2].id == -1 && strcmp(t->tokens[3].model, "y/z") == 0);
  ck_assert(!t->tokens[4].model && !t->tokens[4].zero);
}

START_TEST(tokenizers_are_read_and_written) {
  nps_recipe_t *r = parse(tokens);
  check_tokens(r);
  char *text = nps_recipe_emit(r);
  nps_recipe_free(r);
  r = parse(text);
  check_tokens(r);
  nps_recipe_free(r);
  free(text);
  expect_problems("merge_method: ties\nmodels: [{model: a}]\ntokenizer_source: union\ntokenizer: {source: base}\n",
                  "c.yaml:4: expected only one of tokenizer and tokenizer_source");
  expect_problems(
      "merge_method: ties\nmodels: [{model: a}]\ntokenizer: {tokens: {x: {force: true}, y: {source: {kind: "
      "model_token, model: a}}, z: {source: {kind: none}}}}\n",
      "c.yaml:3: tokenizer.tokens.x.force: needs a source\n"
      "c.yaml:3: tokenizer.tokens.y.source: expected {kind: zero}, or {kind: model_token, model: MODEL} with "
      "either token or token_id\n"
      "c.yaml:3: tokenizer.tokens.z.source.kind: expected one of zero, model_token, found the text 'none'");
}
END_TEST

/* Two slices of two models; the module's parameters lie between the slices' and all. */
static const char sliced[] = "merge_method: ties\n"
                             "base_model: x/base\n"
                             "modules:\n"
                             "  default:\n"
                             "    slices:\n"
                             "      - sources:\n"
                             "          - {model: x/base, layer_range: [0, 2]}\n"
                             "          - model: y/base\n"
                             "            layer_range: [4, 6]\n"
                             "            parameters: {weight: [0, 1], density: {filter: mlp, value: 0.5}}\n"
                             "        parameters: {weight: 0.5}\n"
                             "      - sources: [{model: y/base, layer_range: [2, 3]}]\n"
                             "        base_model: y/base\n"
                             "        residual_weight: 1.0\n"
                             "    parameters: {density: 0.25}\n"
                             "parameters: {weight: 1}\n";

static void check_sliced(const nps_recipe_t *r) {
  ck_assert_int_eq(r->slice_count, 2);
  ck_assert_int_eq(r->model_count, 2);
  ck_assert_str_eq(r->models[0].model, "x/base");
  ck_assert_str_eq(r->models[1].name, "base-2");
  const nps_recipe_slice_t *slice = &r->slices[0];
  ck_assert_int_eq(slice->source_count, 2);
  ck_assert_int_eq(slice->sources[1].model, 1);
  ck_assert_int_eq(slice->sources[1].first, 4);
  ck_assert_int_eq(slice->sources[1].end, 6);
  ck_assert(number_of(value_of(&slice->sources[1].parameters, "weight"), "x", 0.25) == 0.25);
  ck_assert(number_of(value_of(&slice->parameters, "weight"), "x", 0) == 0.5);
  ck_assert_ptr_null(slice->base_model);
  ck_assert_str_eq(r->slices[1].base_model, "y/base");
  ck_assert(number_of(value_of(&r->module, "density"), "x", 0) == 0.25);
}

START_TEST(slices_are_read_and_written) {
  nps_recipe_t *r = parse(sliced);
  check_sliced(r);
  char *text = nps_recipe_emit(r), *again;
  nps_recipe_free(r);
  r = parse(text);
  check_sliced(r);
  again = nps_recipe_emit(r);
  ck_assert_str_eq(again, text);
  nps_recipe_free(r);
  free(text);
  free(again);
}
END_TEST

START_TEST(slices_that_are_wrong_are_reported) {
  expect_problems("merge_method: ties\nmodels: [{model: a, layer_range: [0, 1]}]\n",
                  "c.yaml:2: unknown key 'layer_range' in models.0, did you mean 'slices.sources.layer_range'?");
  expect_problems(
      "merge_method: passthrough\nslices:\n- sources: []\n",
      "c.yaml:3: slices.0.sources: expected a list of {model, layer_range}, at most 1000, found an empty list");
  expect_problems(
      "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [2, 1]\n"
      "  - layer_range: [0, 1]\n",
      "c.yaml:5: slices.0.sources.0.layer_range: expected [first, end], two whole numbers with 0 <= first <= end <= "
      "100000, found [2, 1]\n"
      "c.yaml:6: slices.0.sources.1: 'model' is missing, expected a path or org/name");
  expect_problems(
      "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [3]}\n",
      "c.yaml:4: slices.0.sources.0.layer_range: expected [first, end], two whole numbers with 0 <= first <= "
      "end <= 100000, found another list");
  expect_problems("merge_method: slerp\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
                  "  - {model: b, layer_range: [3, 3]}\n",
                  "c.yaml:5: slices.0.sources.1.layer_range: expected 2 layers as in the first source, found 0");
  expect_problems("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [4, 4]}]}]\n",
                  "c.yaml:2: slices: expected at least one layer in all");
  expect_problems("merge_method: slerp\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
                  "  - {model: b, layer_range: [0, 3]}\n",
                  "c.yaml:5: slices.0.sources.1.layer_range: expected 2 layers as in the first source, found 3");
  expect_problems("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nmodels: "
                  "[{model: a}]\n",
                  "c.yaml:2: expected only one of models, slices and modules");
  expect_problems("merge_method: linear\nmodules:\n  text: {models: [{model: a}]}\n",
                  "c.yaml:3: modules.text: models of several modules are not built yet, expected only the module "
                  "'default'");
  expect_problems("merge_method: nps\nbase_model: a\nslices: [{sources: [{model: b, layer_range: [0, 2]}]}]\n",
                  "c.yaml:3: slices: merge_method nps merges whole models, expected models");
}
END_TEST

START_TEST(wrong_types_say_what_was_expected_and_found) {
  static const struct {
    const char *key, *problem;
  } cases[] = {
      {"seed: -1", "seed: expected an integer from 0 to 18446744073709551615, found the number -1"},
      {"seed: 18446744073709551616",
       "seed: expected an integer from 0 to 18446744073709551615, found the number 18446744073709551616"},
      {"seed: 1.0", "seed: expected an integer from 0 to 18446744073709551615, found the number 1.0"},
      {"seed: '1'", "seed: expected an integer from 0 to 18446744073709551615, found the text '1'"},
      {"seed: yes", "seed: expected an integer from 0 to 18446744073709551615, found the boolean yes"},
      {"seed: [1]", "seed: expected an integer from 0 to 18446744073709551615, found a list"},
      {"dtype: int8", "dtype: expected float32, float16, bfloat16 or float64, found the text 'int8'"},
      {"out_dtype: {}", "out_dtype: expected float32, float16, bfloat16 or float64, found an empty mapping"},
      {"parameters: 5", "parameters: expected a mapping, found the number 5"},
      {"parameters: [1]", "parameters: expected a mapping, found a list"},
      {"resources: 5GB", "resources: expected a mapping, found the text '5GB'"},
      {"resources: {memory_per_rank: -5}",
       "resources.memory_per_rank: expected auto or a size such as 2GiB, found the number -5"},
      {"resources: {memory_per_rank: 0}",
       "resources.memory_per_rank: expected auto or a size such as 2GiB, found the number 0"},
      {"output: merged.h5", "output: expected a mapping, found the text 'merged.h5'"},
      {"output: {path: []}", "output.path: expected a text, found an empty list"},
      {"output: {path: ''}", "output.path: expected a text, found an empty one"},
      {"output: {shard_size: 5XB}", "output.shard_size: expected a size such as 5GB, found the text '5XB'"},
      {"output: {head: alpa}", "output.head: expected the name of a listed model, found 'alpa', did you mean 'alpha'?"},
      {"base_model: [a]", "base_model: expected a path or org/name, found a list"},
      {"base_model: {model: {revision: a}}", "base_model: expected a path or org/name, found a mapping"},
      {"base_model: {model: {path: a, revision: [1]}}", "base_model.model.revision: expected a text, found a list"},
      {"base_model: {path: a}", "unknown key 'path' in base_model"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    char *text = nps_xstrf("merge_method: ties\nmodels: [{model: alpha}]\n%s\n", cases[i].key);
    char *expected = nps_xstrf("c.yaml:3: %s", cases[i].problem);
    expect_problems(text, expected);
    free(text);
    free(expected);
  }
}
END_TEST

START_TEST(models_are_checked) {
  expect_problems("merge_method: ties\n", "c.yaml:1: 'models' is missing, expected a list of models");
  expect_problems("merge_method: ties\nmodels:\n", "c.yaml:2: 'models' is missing, expected a list of models");
  expect_problems("merge_method: ties\nmodels: []\n",
                  "c.yaml:2: models: expected a list of models, found an empty list");
  expect_problems("merge_method: ties\nmodels: {a: b}\n",
                  "c.yaml:2: models: expected a list of models, found a mapping");
  expect_problems("merge_method: ties\nmodels:\n- a\n- name: b\n- model:\n",
                  "c.yaml:3: models.0: expected a mapping, found the text 'a'\n"
                  "c.yaml:4: models.1: 'model' is missing, expected a path or org/name\n"
                  "c.yaml:5: models.2: 'model' is missing, expected a path or org/name");
  expect_problems("merge_method: ties\nmodels:\n- {model: a, name: x}\n- {model: b}\n- model: c\n  name: x\n",
                  "c.yaml:6: models.2.name: 'x' is the name of models.0 already");
  expect_problems("merge_method: ties\nmodels:\n- {model: a, name: ''}\n- {model: b, name: [c]}\n",
                  "c.yaml:3: models.0.name: expected a text, found an empty one\n"
                  "c.yaml:4: models.1.name: expected a text, found a list");
}
END_TEST

START_TEST(broken_yaml_is_refused_with_its_line) {
  expect_problems("", "c.yaml:1: the config is empty, expected a mapping with merge_method and models");
  expect_problems("# nothing\n\n", "c.yaml:1: the config is empty, expected a mapping with merge_method and models");
  expect_problems("---\n", "c.yaml:2: expected a mapping with merge_method and models, found nothing");
  expect_problems("- a\n- b\n", "c.yaml:1: expected a mapping with merge_method and models, found a list");
  expect_problems("ties\n", "c.yaml:1: expected a mapping with merge_method and models, found the text 'ties'");
  expect_problems("a: 1\n---\nb: 2\n", "c.yaml:2: a second document starts, expected one");
  expect_problems("a:\n\tb: 1\n", "c.yaml:2: tab used for indentation, expected spaces");
  expect_problems("a: 1\nb: \xff\n", "c.yaml:2: not a text in UTF-8: invalid leading UTF-8 octet (byte 0xFF)");
  expect_problems("a: 1\nb: [1\nc: 2\n",
                  "c.yaml:3: not YAML: while parsing a flow sequence: did not find expected ',' or ']'");
  expect_problems("a: *b\n", "c.yaml:1: alias '*b' without an anchor '&b' before it");
  expect_problems("a: &b [1, *b]\n", "c.yaml:1: alias '*b' without an anchor '&b' before it");
  expect_problems("a: !!python/object:os.system x\n",
                  "c.yaml:1: tag 'tag:yaml.org,2002:python/object:os.system' is not supported");
  expect_problems("? [a]\n: b\n", "c.yaml:1: a key is no text");
  expect_problems("a: \"x\\0y\"\n", "c.yaml:1: a text with a NUL character");
  expect_problems("<<: 5\n", "c.yaml:1: merge key '<<': expected a mapping or a list of mappings");
  expect_problems("<<: {}\n<<: {}\n", "c.yaml:2: key '<<' is repeated");
  expect_problems("merge_method: ties\nseed: 1\nmodels: [{model: a}]\nseed: 2\nsed: 3\n",
                  "c.yaml:4: key 'seed' is repeated, first on line 2\n"
                  "c.yaml:5: unknown key 'sed', did you mean 'seed'?");
}
END_TEST

START_TEST(utf8_with_a_mark_in_front_is_read) {
  nps_recipe_t *r = parse("\xEF\xBB\xBFmerge_method: ties\nmodels: [{model: m\xC3\xA4rz}]\n");
  ck_assert_str_eq(r->models[0].name, "m\xC3\xA4rz");
  nps_recipe_free(r);
}
END_TEST

START_TEST(bombs_are_refused) {
  nps_text_t text = {0};
  nps_text_add(&text, "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
  for (int i = 1; i < 10; i++) {
    nps_text_add(&text, "a%d: &a%d [", i, i);
    for (int j = 0; j < 10; j++) nps_text_add(&text, "%s*a%d", j ? ", " : "", i - 1);
    nps_text_add(&text, "]\n");
  }
  expect_problems(text.text, "c.yaml:6: more than 1000000 values, those that aliases repeat included");
  text.size = 0;
  nps_text_add(&text, "a: ");
  for (int i = 0; i < 900; i++) nps_text_add(&text, "[");
  expect_problems(text.text, "c.yaml:1: nested deeper than 64 levels");
  text.size = 0;
  nps_text_add(&text, "a0: &a0 [1]\n");
  for (int i = 1; i < 100; i++) nps_text_add(&text, "a%d: &a%d [*a%d]\n", i, i, i - 1);
  expect_problems(text.text, "c.yaml:64: nested deeper than 64 levels");
  text.size = 0;
  for (int i = 0; i < 5000; i++) nps_text_add(&text, "k%d: 1\n", i);
  expect_problems(text.text, "c.yaml:4097: more than 4096 keys in a mapping");
  text.size = 0;
  for (int i = 0; i < 1001; i++) nps_text_add(&text, "k%d: &a%d 1\n", i, i);
  expect_problems(text.text, "c.yaml:1001: more than 1000 anchors");
  text.size = 0;
  nps_text_add(&text, "merge_method: ties\nmodels:\n");
  for (int i = 0; i < 1001; i++) nps_text_add(&text, "- model: a\n");
  expect_problems(text.text, "c.yaml:3: models: expected at most 1000, found 1001");
  free(text.text);
}
END_TEST

START_TEST(overrides_change_the_config) {
  const nps_override_t changes[] = {{"merge_method", "linear"},
                                    {"models.0.parameters.weight", "0.3"},
                                    {"models.plain.parameters.density", "[0, 1]"},
                                    {"models.v0.1.parameters.weight", "0.7"},
                                    {"models.v0.1.name", "v1"},
                                    {"models.v1.parameters.bias", "2"},
                                    {"resources.memory_per_rank", "1 GiB"},
                                    {"output.path", "out dir/x.h5"},
                                    {"seed", "7"},
                                    {"parameters.t", "{filter: a, value: 1}"},
                                    {"parameters.t.value", "4"},
                                    {"base_model", ""}};
  nps_recipe_t *r = parse_with("merge_method: ties\nbase_model: b\nmodels:\n- model: x/plain\n- model: x/v0\n"
                               "- model: x/v0.1\nseed: 1\nresources:\n",
                               changes, COUNT(changes));
  ck_assert_str_eq(r->merge_method, "linear");
  ck_assert_int_eq(r->method_line, 0);
  ck_assert_ptr_null(r->base_model);
  ck_assert(number_of(value_of(&r->models[0].parameters, "weight"), NULL, 0) == 0.3);
  ck_assert_int_eq(nps_settings_find(&r->models[0].parameters, "weight")->line, 0);
  ck_assert(number_of(value_of(&r->models[0].parameters, "density"), NULL, 0.5) == 0.5);
  ck_assert(number_of(value_of(&r->models[2].parameters, "weight"), NULL, 0) == 0.7);
  ck_assert(number_of(value_of(&r->models[2].parameters, "bias"), NULL, 0) == 2);
  ck_assert_str_eq(r->models[2].name, "v1");
  ck_assert_int_eq(r->memory_per_rank, 1 << 30);
  ck_assert_str_eq(r->output_path, "out dir/x.h5");
  ck_assert_uint_eq(r->seed, 7);
  ck_assert(number_of(value_of(&r->parameters, "t"), "a", 0) == 4);
  nps_recipe_free(r);
}
END_TEST

START_TEST(overrides_that_do_not_fit_are_refused) {
  static const struct {
    const char *path, *value, *problem;
  } cases[] = {
      {"", "1", "--set : expected key.path=value, found an empty key"},
      {"seed.", "1", "--set seed.: expected key.path=value, found an empty key"},
      {"output..path", "1", "--set output..path: expected key.path=value, found an empty key"},
      {"seed", "x", "--set seed: seed: expected an integer from 0 to 18446744073709551615, found the text 'x'"},
      {"parameters.\xB6", "1", "--set parameters.\xB6: expected key.path=value in UTF-8"},
      {"parameters.\xC0\x80", "1", "--set parameters.\xC0\x80: expected key.path=value in UTF-8"},
      {"parameters.\xED\xA0\x80", "1", "--set parameters.\xED\xA0\x80: expected key.path=value in UTF-8"},
      {"parameters.\xE6\x97\xA5", "",
       "--set parameters.\xE6\x97\xA5: parameters.\xE6\x97\xA5: expected a value, found nothing"},
      {"sed", "1", "--set sed: unknown key 'sed', did you mean 'seed'?"},
      {"sed.x", "1", "--set sed.x: unknown key 'sed', did you mean 'seed'?"},
      {"models.5.name", "x",
       "--set models.5.name: no entry '5' in a list of 1, expected an index from 0 to 0 or the name of a model: a"},
      {"models.b.name", "x",
       "--set models.b.name: no entry 'b' in a list of 1, expected an index from 0 to 0 or the name of a model: a"},
      {"models.a.nam", "x", "--set models.a.nam: unknown key 'nam' in models.0, did you mean 'name'?"},
      {"merge_method.x", "1", "--set merge_method.x: expected a mapping or list before 'x', found the text 'ties'"},
      {"parameters.p", "[1",
       "--set parameters.p: not YAML: while parsing a flow sequence: did not find expected ',' "
       "or ']'"},
      {"parameters.p", "null", "--set parameters.p: parameters.p: expected a value, found nothing"},
      {"parameters.p", "{value: 1, value: 2}", "--set parameters.p: key 'value' is repeated"},
      {"archive.value_bits", "4", "--set archive.value_bits: archive: belongs to merge_method nps, this is ties"},
      {"parameters.l.7", "1", "--set parameters.l.7: no entry '7' in a list of 2, expected an index from 0 to 1"},
  };
  for (int i = 0; i < COUNT(cases); i++) {
    nps_override_t change = {cases[i].path, cases[i].value};
    expect_problems_with("merge_method: ties\nmodels: [{model: a}]\nparameters: {l: [1, 2]}\n", &change, 1,
                         cases[i].problem);
  }
  nps_text_t deep = {0};
  for (int i = 0; i < 100; i++) nps_text_add(&deep, "%sa", i ? "." : "");
  nps_override_t change = {deep.text, "1"};
  char *expected = nps_xstrf("--set %s: more than 64 keys in a path", deep.text);
  expect_problems_with("merge_method: ties\nmodels: [{model: a}]\n", &change, 1, expected);
  free(expected);
  free(deep.text);
}
END_TEST

START_TEST(keys_of_mergekit_without_effect_are_noted) {
  nps_recipe_t *r = parse("merge_method: ties\nmodels: [{model: a, parameters: {int8_mask: true}}]\n"
                          "int8_mask: true\nallow_crimes: true\n");
  ck_assert_str_eq(notes.text, "c.yaml:2: key 'int8_mask' has no effect here\n"
                               "c.yaml:3: key 'int8_mask' has no effect here\n"
                               "c.yaml:4: key 'allow_crimes' has no effect here");
  ck_assert_int_eq(r->models[0].parameters.count, 0);
  nps_recipe_free(r);
}
END_TEST

static void expect_same_values(const nps_value_t *a, const nps_value_t *b) {
  static const char *const tensors[] = {NULL, "x", "layers.1.mlp", "self_attn", "a \"b\" c"};
  ck_assert_int_eq(nps_value_is_numeric(a), nps_value_is_numeric(b));
  ck_assert_int_eq(nps_value_is_boolean(a), nps_value_is_boolean(b));
  ck_assert_int_eq(nps_value_is_plain(a), nps_value_is_plain(b));
  ck_assert_int_eq(!nps_value_text(a), !nps_value_text(b));
  if (nps_value_text(a)) ck_assert_str_eq(nps_value_text(a), nps_value_text(b));
  for (int i = 0; i < COUNT(tensors); i++)
    for (int j = 0; j <= 20; j++) {
      double x = 0, y = 0;
      ck_assert_int_eq(nps_value_number(a, tensors[i], j / 20.0, &x), nps_value_number(b, tensors[i], j / 20.0, &y));
      ck_assert_msg(memcmp(&x, &y, sizeof x) == 0, "%.17g and %.17g", x, y);
    }
}

static void expect_same_settings(const nps_settings_t *a, const nps_settings_t *b) {
  ck_assert_int_eq(a->count, b->count);
  for (int i = 0; i < a->count; i++) {
    ck_assert_str_eq(a->items[i].name, b->items[i].name);
    expect_same_values(a->items[i].value, b->items[i].value);
  }
}

static void expect_same_text(const char *a, const char *b) {
  ck_assert_int_eq(!a, !b);
  if (a) ck_assert_str_eq(a, b);
}

/* Emit, parse again, compare; frees the recipe. */
static void expect_round_trip(nps_recipe_t *a) {
  char *text = nps_recipe_emit(a);
  nps_recipe_t *b = parse(text);
  char *again = nps_recipe_emit(b);
  ck_assert_str_eq(text, again);
  ck_assert_ptr_null(notes.text);
  ck_assert_str_eq(a->merge_method, b->merge_method);
  expect_same_text(a->base_model, b->base_model);
  expect_same_text(a->output_head, b->output_head);
  ck_assert_ptr_null(b->output_path);
  ck_assert_int_eq(a->model_count, b->model_count);
  for (int i = 0; i < a->model_count; i++) {
    ck_assert_str_eq(a->models[i].model, b->models[i].model);
    ck_assert_str_eq(a->models[i].name, b->models[i].name);
    expect_same_settings(&a->models[i].parameters, &b->models[i].parameters);
  }
  expect_same_settings(&a->parameters, &b->parameters);
  ck_assert_uint_eq(a->seed, b->seed);
  ck_assert_int_eq(a->memory_per_rank, b->memory_per_rank);
  ck_assert_int_eq(a->has_out_dtype, b->has_out_dtype);
  ck_assert_int_eq(a->out_dtype, b->out_dtype);
  ck_assert_int_eq(a->shard_size, b->shard_size);
  free(text);
  free(again);
  nps_recipe_free(a);
  nps_recipe_free(b);
}

START_TEST(emitted_recipes_parse_to_the_same) {
  expect_round_trip(parse(full));
  expect_round_trip(
      parse("merge_method: linear\nmodels: [{model: a}]\ndtype: float64\nresources: {memory_per_rank: 77}\n"));
  expect_round_trip(parse("merge_method: 'no'\n"
                          "base_model: 'a: b # c'\n"
                          "models:\n"
                          "- {model: 'a: b # c', name: \"1e-3\"}\n"
                          "- {model: '  spaces  ', name: \"line\\nbreak \\\"quoted\\\" back\\\\slash \\x01 \\t\"}\n"
                          "- {model: \"\\u2028\\uFEFF\\x85 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x90\xB3\", name: '~'}\n"
                          "- {model: '{x}, [y]', name: '*'}\n"
                          "- {model: nan, name: '---'}\n"
                          "- {model: ./rel/../path, name: '#'}\n"
                          "- {model: 7, name: 'it''s'}\n"
                          "parameters:\n"
                          "  'odd: name': text\n"
                          "  \"\": '0.5'\n"
                          "  booleans: [yes, no]\n"
                          "  numbers: [0.1, 1e-300, 12345678901234567890, -0.0, 3.0000000000000004]\n"
                          "  one: [{filter: \"a \\\"b\\\" c\", value: 'off'}, {value: on}]\n"
                          "  two: {filter: self_attn, value: [1, 0.3]}\n"
                          "  third: 0.333333333333333333\n"));
}
END_TEST

START_TEST(emitted_recipe_is_plain_yaml) {
  nps_recipe_t *r = parse(full);
  char *text = nps_recipe_emit(r);
  ck_assert_str_eq(text, "merge_method: ties\n"
                         "base_model: models/base\n"
                         "models:\n"
                         "  - model: models/base\n"
                         "    name: base\n"
                         "  - model: models/plain\n"
                         "    name: plain\n"
                         "    parameters:\n"
                         "      weight: 1\n"
                         "      density: 0.2\n"
                         "  - model: org/Rotated-7B-v0.1@main\n"
                         "    name: rot\n"
                         "    parameters:\n"
                         "      weight: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: 0.25}, "
                         "{filter: \"*\", value: 0.75}]\n"
                         "parameters:\n"
                         "  lambda: 0.9\n"
                         "  normalize: true\n"
                         "  mode: fast\n"
                         "seed: 18446744073709551615\n"
                         "resources: {memory_per_rank: 536870912}\n"
                         "out_dtype: bfloat16\n"
                         "tokenizer:\n"
                         "  source: base\n"
                         "output: {head: rot, shard_size: 1500000000}\n");
  free(text);
  nps_recipe_free(r);
}
END_TEST

START_TEST(sizes_are_read) {
  static const struct {
    const char *text;
    int64_t bytes;
  } good[] = {{"1", 1},
              {"1073741824", 1073741824},
              {"512MiB", INT64_C(512) << 20},
              {"5GB", 5000000000},
              {"1.5GiB", INT64_C(1536) << 20},
              {"2 TiB", INT64_C(2) << 40},
              {"3KB", 3000},
              {"7KiB", 7168},
              {"10 B", 10},
              {"9223372036854775807", INT64_MAX}};
  for (int i = 0; i < COUNT(good); i++) {
    int64_t bytes = 0;
    ck_assert_msg(nps_parse_size(good[i].text, &bytes), "%s", good[i].text);
    ck_assert_int_eq(bytes, good[i].bytes);
  }
  static const char *const bad[] = {"",
                                    "0",
                                    "0GB",
                                    "-1",
                                    "-1GB",
                                    "+1",
                                    "GB",
                                    "1XB",
                                    "1gb",
                                    "1 G",
                                    "1.GB",
                                    ".5GB",
                                    "1e9",
                                    "1,5 GB",
                                    "0.5",
                                    "1GBx",
                                    " 1",
                                    "1 ",
                                    "0x10",
                                    "1..5GB",
                                    "9223372036854775808",
                                    "8388608TiB",
                                    "99999999999999999999TB",
                                    "1_000",
                                    "nan",
                                    "inf"};
  for (int i = 0; i < COUNT(bad); i++) {
    int64_t bytes = 5;
    ck_assert_msg(!nps_parse_size(bad[i], &bytes), "%s", bad[i]);
    ck_assert_int_eq(bytes, 5);
  }
}
END_TEST

static void write_file(const char *path, const void *bytes, size_t size) {
  FILE *f = fopen(path, "wb");
  ck_assert_ptr_nonnull(f);
  ck_assert_uint_eq(fwrite(bytes, 1, size, f), size);
  ck_assert_int_eq(fclose(f), 0);
}

static void expect_load_problem(const char *path, const char *expected) {
  nps_recipe_t *recipe = NULL;
  start_notes();
  ck_assert_int_eq(nps_recipe_load(path, NULL, 0, &recipe), NPS_ERR_CONFIG);
  ck_assert_ptr_null(recipe);
  char *problems = take_problems(), *whole = nps_xstrf("%s%s", path, expected);
  ck_assert_str_eq(problems, whole);
  free(problems);
  free(whole);
}

START_TEST(files_are_loaded) {
  ck_assert(make_new_folder());
  char *path = nps_xstrf("%s/config.yaml", folder);
  write_file(path, full, strlen(full));
  nps_recipe_t *recipe = NULL;
  start_notes();
  ck_assert_int_eq(nps_recipe_load(path, NULL, 0, &recipe), NPS_OK);
  ck_assert_str_eq(recipe->file, path);
  nps_recipe_free(recipe);

  write_file(path, "", 0);
  expect_load_problem(path, ":1: the config is empty, expected a mapping with merge_method and models");
  write_file(path, "a: 1\nb: \0c\n", 11);
  expect_load_problem(path, ":2: not a text in UTF-8: control characters are not allowed (byte 0x00)");
  size_t size = ((size_t)16 << 20) + 1;
  char *large = nps_xcalloc(size, 1);
  memset(large, ' ', size);
  write_file(path, large, size);
  expect_load_problem(path, ": expected a config of at most 16 MiB");
  free(large);
  unlink(path);
  expect_load_problem(path, ": the config cannot be read: No such file or directory");
  expect_load_problem("/", ": the config cannot be read: Is a directory");
  free(path);
  remove_all(folder);
}
END_TEST

static uint32_t fuzz_state;

static uint32_t fuzz_next(uint32_t below) {
  fuzz_state ^= fuzz_state << 13;
  fuzz_state ^= fuzz_state >> 17;
  fuzz_state ^= fuzz_state << 5;
  return fuzz_state % below;
}

/* Change, remove, double or insert some bytes; never NUL, which would end the text. */
static char *mutate(const char *text) {
  static const char spice[] = "{}[]:,&*!|>'\"%@`#-?\n\t \\<.~0e\xff\xc3";
  size_t size = strlen(text);
  char *out = nps_xcalloc(2 * size + 64, 1);
  memcpy(out, text, size);
  for (uint32_t n = 1 + fuzz_next(3); n > 0 && size > 8; n--) {
    size_t at = fuzz_next((uint32_t)size), length = 1 + fuzz_next(8);
    if (at + length > size) length = size - at;
    switch (fuzz_next(4)) {
    case 0:
      out[at] = spice[fuzz_next(sizeof spice - 1)];
      break;
    case 1:
      out[at] = (char)(1 + fuzz_next(255));
      break;
    case 2:
      memmove(out + at, out + at + length, size - at - length);
      size -= length;
      out[size] = '\0';
      break;
    default:
      memmove(out + at + length, out + at, size - at);
      size += length;
      out[size] = '\0';
    }
  }
  return out;
}

START_TEST(mutated_configs_never_crash) {
  static const char more[] =
      "merge_method: &m slerp\nmodels: &ms\n- &a {model: x, parameters: {t: [0, 1], <<: {u: 1}}}\n"
      "- <<: *a\n  model: {model: {path: p, revision: r}}\nparameters: {<<: [{a: 1}, {b: on}]}\n"
      "out_dtype: float16\nresources:\n  memory_per_rank: 1.5 GiB\nseed: 0x10\n";
  static const char sections[] =
      "merge_method: nps\nbase_model: b\nmodels: [{model: x}, {model: y}]\n"
      "nps: {subspaces: 2, density: 0.3, weights: {x: [1, -0.5], y: [0, 2]}, priorities: [1, 0]}\n"
      "search: {stages: [fuse], variables: [weight, density], start_from: old, sigma: 0.1,\n"
      "  bounds: {weight: [-1, 2]}, start: {weight: 0.5}}\n"
      "fitness: {objective: worst, holdout: 0.25, tasks: [{name: x, data: d}, {name: z, model: y, data: e, head: "
      "x}]}\n";
  static const char *const texts[] = {full, more, sections};
  int good = 0;
  fuzz_state = 20250601;
  for (int i = 0; i < 3000; i++) {
    char *text = mutate(texts[i % 3]), *path = mutate("models.plain.parameters.weight"), *value = mutate("[0, 0.5]");
    nps_override_t change = {path, value};
    nps_recipe_t *recipe = NULL;
    start_notes();
    nps_err_t err = nps_recipe_parse(text, "c.yaml", &change, i % 4 == 0, &recipe);
    ck_assert_int_eq(err == NPS_OK, nps_problem_count() == 0);
    ck_assert_int_eq(err == NPS_OK, recipe != NULL);
    if (recipe) {
      good++;
      if (recipe->output_path) free(recipe->output_path), recipe->output_path = NULL;
      expect_round_trip(recipe);
    }
    free(text);
    free(path);
    free(value);
  }
  nps_problem_clear();
  ck_assert_int_gt(good, 50);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("config");
  tcase_set_timeout(cases, 0);
  tcase_add_test(cases, every_key_is_read);
  tcase_add_test(cases, defaults_are_those_of_the_manual);
  tcase_add_test(cases, dtype_is_the_output_type_without_out_dtype);
  tcase_add_test(cases, configs_of_mergekit_parse);
  tcase_add_test(cases, anchors_aliases_and_merge_keys_work);
  tcase_add_test(cases, default_names_are_made_unique);
  tcase_add_test(cases, adapters_give_names_and_may_be_mappings);
  tcase_add_test(cases, base_is_found_however_its_path_is_written);
  tcase_add_test(cases, gradients_are_those_of_mergekit);
  tcase_add_test(cases, filters_take_the_first_match);
  tcase_add_test(cases, lists_of_booleans_step);
  tcase_add_test(cases, scalars_mean_what_yaml_says);
  tcase_add_test(cases, broken_values_are_refused);
  tcase_add_test(cases, wrong_keys_are_named_with_line_and_nearest);
  tcase_add_test(cases, what_is_not_built_is_refused);
  tcase_add_test(cases, tokenizers_are_read_and_written);
  tcase_add_test(cases, slices_are_read_and_written);
  tcase_add_test(cases, slices_that_are_wrong_are_reported);
  tcase_add_test(cases, wrong_types_say_what_was_expected_and_found);
  tcase_add_test(cases, models_are_checked);
  tcase_add_test(cases, broken_yaml_is_refused_with_its_line);
  tcase_add_test(cases, utf8_with_a_mark_in_front_is_read);
  tcase_add_test(cases, bombs_are_refused);
  tcase_add_test(cases, overrides_change_the_config);
  tcase_add_test(cases, overrides_that_do_not_fit_are_refused);
  tcase_add_test(cases, keys_of_mergekit_without_effect_are_noted);
  tcase_add_test(cases, emitted_recipes_parse_to_the_same);
  tcase_add_test(cases, emitted_recipe_is_plain_yaml);
  tcase_add_test(cases, sizes_are_read);
  tcase_add_test(cases, files_are_loaded);
  tcase_add_test(cases, mutated_configs_never_crash);
  const int code = run_tests("config", cases);
  nps_note_set_sink(NULL, NULL);
  free(notes.text);
  return code;
}
