#include "../nps_check.h"
#include "merge_internal.h"
#include "nps/config.h"

/* ---- a layout made by hand: three layers and what surrounds them ---- */

enum { EMBED, Q0, UP0, Q1, Q2, UP2, NORM, POSITIONS, TARGETS };
enum { MOST_MODELS = 4 };

static const struct {
  const char *name;
  double layer;
  nps_action_t action;
} tensors[TARGETS] = {
    {"model.embed_tokens.weight", 0, NPS_ACTION_MERGE},
    {"model.layers.0.self_attn.q_proj.weight", 0, NPS_ACTION_MERGE},
    {"model.layers.0.mlp.up_proj.weight", 0, NPS_ACTION_MERGE},
    {"model.layers.1.self_attn.q_proj.weight", 0.5, NPS_ACTION_MERGE},
    {"model.layers.2.self_attn.q_proj.weight", 1, NPS_ACTION_MERGE},
    {"model.layers.2.mlp.up_proj.weight", 1, NPS_ACTION_MERGE},
    {"model.norm.weight", 0, NPS_ACTION_MERGE},
    {"position_ids", 0, NPS_ACTION_COPY},
};

static nps_tensor_info_t infos[TARGETS];
static nps_model_t model = {.name = (char[]){"m"}, .tensors = infos, .tensor_count = TARGETS};
static const nps_model_t *const inputs[MOST_MODELS + 1] = {&model, &model, &model, &model, &model};
static nps_target_t targets[TARGETS];
static int sources[TARGETS * (MOST_MODELS + 1)];
static nps_layout_t layout = {targets, TARGETS, 0, sources};

static void make_layout(int input_count) {
  layout.inputs = input_count;
  for (int t = 0; t < TARGETS; t++) {
    int *source = sources + t * input_count;
    for (int i = 0; i < input_count; i++) source[i] = t;
    nps_dtype_t dtype = tensors[t].action == NPS_ACTION_COPY ? NPS_I64 : NPS_BF16;
    infos[t] = (nps_tensor_info_t){.dtype = dtype, .count = 100 + t};
    targets[t] = (nps_target_t){.name = tensors[t].name,
                                .action = tensors[t].action,
                                .dtype = dtype,
                                .count = 100 + t,
                                .source = source,
                                .layer = tensors[t].layer};
  }
}

/* ---- a merge from a config text; `models: [a, b]` and a base where it is named ---- */

static nps_text_t notes;
static nps_recipe_t *recipe;
static nps_merge_t *merge;
static nps_weighting_t *weighting; /* what `nps:` would give, for merge_method nps */
static nps_merge_nps_t nps;
static nps_scope_t nps_scope;

static void keep_note(void *ctx, const char *text) { nps_text_add(ctx, "%s%s", notes.size ? "\n" : "", text); }

static nps_err_t new_merge(const char *text, const nps_override_t *overrides, int override_count) {
  static nps_merge_model_t models[MOST_MODELS + 1]; /* borrowed by the merge */
  nps_merge_spec_t spec = {.inputs = inputs, .base = -1, .models = models, .layout = &layout};
  merge = NULL;
  free(notes.text);
  notes = (nps_text_t){0};
  nps_note_set_sink(keep_note, &notes);
  ck_assert_int_eq(nps_recipe_parse(text, "c.yaml", overrides, override_count, &recipe), NPS_OK);
  ck_assert_int_eq(nps_merge_method_find(recipe->merge_method, "", &spec.method), NPS_OK);
  if (recipe->base_model) spec.base = 0;
  if (spec.method->base == NPS_BASE_FIRST) models[spec.model_count++] = (nps_merge_model_t){0, "base", NULL};
  spec.input_count = spec.base + 1;
  for (int m = 0; m < recipe->model_count; m++)
    models[spec.model_count++] =
        (nps_merge_model_t){spec.input_count++, recipe->models[m].name, &recipe->models[m].parameters};
  weighting = nps_weighting_new(recipe->model_count, 4);
  weighting->scope = nps_scope;
  nps = (nps_merge_nps_t){.weighting = weighting, .density = 0.25};
  spec.nps = strcmp(spec.method->name, "nps") == 0 ? &nps : NULL;
  spec.settings = &recipe->parameters;
  spec.config_file = recipe->file;
  spec.seed = recipe->seed;
  make_layout(spec.input_count);
  nps_err_t err = nps_merge_new(&spec, &merge);
  nps_note_set_sink(NULL, NULL);
  return err;
}

static void free_merge(void) {
  nps_merge_free(merge);
  nps_weighting_free(weighting);
  nps_recipe_free(recipe);
}

static void accept(const char *text) {
  nps_err_t err = new_merge(text, NULL, 0);
  ck_assert_msg(err == NPS_OK, "%s", nps_problem_count() ? nps_problem_text(0) : "no message");
  ck_assert_int_eq(nps_problem_count(), 0);
}

static void refuse_with(const char *text, const nps_override_t *overrides, int count, const char *expected) {
  nps_text_t all = {0};
  ck_assert_int_eq(new_merge(text, overrides, count), NPS_ERR_CONFIG);
  ck_assert_ptr_null(merge);
  for (int i = 0; i < nps_problem_count(); i++) nps_text_add(&all, "%s%s", i ? "\n" : "", nps_problem_text(i));
  nps_problem_clear();
  ck_assert_str_eq(all.text, expected);
  free(all.text);
  free_merge();
}

static void refuse(const char *text, const char *expected) { refuse_with(text, NULL, 0, expected); }

/* The value of a parameter for a tensor and model. */
static double value(const char *name, int tensor, int m) {
  const nps_merge_method_t *method = merge->spec.method;
  for (int p = 0; p < method->param_count; p++)
    if (strcmp(method->params[p].name, name) == 0) return merge->tensors[tensor].param[p][m];
  ck_abort_msg("no parameter %s", name);
}

#define TIES "merge_method: ties\nbase_model: base\n"
#define AB "models: [{model: a}, {model: b}]\n"

/* ---- values ---- */

START_TEST(a_models_own_parameters_come_before_global_ones) {
  accept(TIES "models:\n- {model: a, parameters: {weight: 0.25, density: 0.5}}\n- {model: b}\n"
              "parameters: {weight: 2, lambda: 0.75}\n");
  for (int t = 0; t < TARGETS; t++) {
    if (tensors[t].action != NPS_ACTION_MERGE) continue;
    ck_assert(value("weight", t, 0) == 0.25 && value("weight", t, 1) == 2);
    ck_assert(value("density", t, 0) == 0.5 && value("density", t, 1) == 1);
    ck_assert(value("lambda", t, 0) == 0.75);
  }
  free_merge();
}
END_TEST

START_TEST(lists_are_interpolated_over_the_layers) {
  accept(TIES AB "parameters: {weight: [0, 1], density: [0.2, 0.4, 1.0], lambda: [3]}\n");
  const double weight[] = {0, 0, 0, 0.5, 1, 1, 0}, density[] = {0.2, 0.2, 0.2, 0.4, 1, 1, 0.2};
  for (int t = 0; t < POSITIONS; t++) {
    ck_assert_double_eq_tol(value("weight", t, 1), weight[t], 1e-15);
    ck_assert_double_eq_tol(value("density", t, 0), density[t], 1e-15);
    ck_assert(value("lambda", t, 0) == 3);
  }
  free_merge();
}
END_TEST

/* The first filter that is part of the name decides; where none matches, the next level does. */
START_TEST(filters_choose_by_name) {
  accept(TIES "models:\n- model: a\n  parameters:\n    weight:\n    - {filter: mlp, value: [0, 0.8]}\n"
              "    - {filter: up_proj, value: 9}\n- model: b\n"
              "parameters:\n  weight:\n  - {filter: layers.1., value: 0.5}\n  - {filter: '*', value: 0.125}\n"
              "  density:\n  - {filter: norm, value: 0.5}\n");
  const double a[] = {0.125, 0.125, 0, 0.5, 0.125, 0.8, 0.125}, b[] = {0.125, 0.125, 0.125, 0.5, 0.125, 0.125, 0.125};
  for (int t = 0; t < POSITIONS; t++) {
    ck_assert_double_eq_tol(value("weight", t, 0), a[t], 1e-15);
    ck_assert_double_eq_tol(value("weight", t, 1), b[t], 1e-15);
    ck_assert(value("density", t, 1) == (t == NORM ? 0.5 : 1));
  }
  free_merge();
}
END_TEST

START_TEST(defaults_are_those_of_the_method) {
  static const struct {
    const char *text;
    double normalize;
  } methods[] = {{"merge_method: linear\n" AB "parameters: {weight: 1}\n", 1},
                 {"merge_method: task_arithmetic\nbase_model: base\n" AB "parameters: {weight: 1}\n", 0},
                 {TIES AB "parameters: {weight: 1}\n", 1},
                 {"merge_method: dare_linear\nbase_model: base\n" AB "parameters: {weight: 1}\n", 0},
                 {"merge_method: dare_ties\nbase_model: base\n" AB "parameters: {weight: 1}\n", 0}};
  for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
    accept(methods[i].text);
    ck_assert(value("normalize", EMBED, 0) == methods[i].normalize);
    if (i > 0) ck_assert(value("lambda", EMBED, 0) == 1);
    if (i > 1) ck_assert(value("density", EMBED, 1) == 1);
    if (i == 2) ck_assert(value("scope", EMBED, 0) == 0);
    if (i > 2) ck_assert(value("rescale", EMBED, 0) == 1);
    free_merge();
  }
  accept("merge_method: passthrough\nmodels: [{model: a}]\n");
  ck_assert(value("scale", EMBED, 0) == 1);
  free_merge();
}
END_TEST

START_TEST(choices_are_texts_or_booleans) {
  accept(TIES AB "parameters: {weight: 1, density: 0.5, scope: model, normalize: false}\n");
  ck_assert(value("scope", EMBED, 0) == 1 && value("normalize", EMBED, 0) == 0);
  ck_assert(nps_merge_demand(merge).whole_model);
  free_merge();
  accept("merge_method: dare_linear\nbase_model: base\n" AB
         "parameters: {weight: 1, rescale: expectation, normalize: true}\n");
  ck_assert(value("rescale", EMBED, 0) == 2 && value("normalize", EMBED, 0) == 1);
  free_merge();
}
END_TEST

START_TEST(tensors_are_described_to_methods) {
  /* Positions in byte order of the names. */
  const int order[] = {0, 2, 1, 3, 5, 4, 6};
  accept("merge_method: task_arithmetic\nbase_model: base\nseed: 77\n" AB "parameters: {weight: 1}\n");
  for (int t = 0; t < POSITIONS; t++) {
    const nps_merge_tensor_t *tensor = &merge->tensors[t];
    ck_assert_str_eq(tensor->name, tensors[t].name);
    ck_assert_int_eq(tensor->order, order[t]);
    ck_assert_int_eq(tensor->count, 100 + t);
    ck_assert_int_eq(tensor->models, 2);
    ck_assert_uint_eq(tensor->key, 77 ^ nps_name_hash(tensors[t].name));
    ck_assert_int_eq(tensor->tensor_count, 7);
    ck_assert_int_eq(tensor->model_elements, 721);
  }
  /* Base and two models in bfloat16, three copies of an int64 tensor of 107. */
  ck_assert_int_eq(nps_merge_work(merge), 721 * 6 + 107 * 24);
  free_merge();
}
END_TEST

START_TEST(demands_follow_from_the_values) {
  accept(TIES AB "parameters: {weight: 1, density: 1}\n"); /* nothing to select */
  ck_assert_int_eq(nps_merge_demand(merge).passes, 0);
  ck_assert(!nps_merge_demand(merge).whole_model && !nps_merge_demand(merge).whole_pieces);
  ck_assert_int_eq(nps_merge_demand(merge).state_memory, 0);
  free_merge();
  accept(TIES AB "parameters: {weight: 1, density: 0.5}\n");
  ck_assert(nps_merge_demand(merge).whole_pieces && !nps_merge_demand(merge).whole_model);
  ck_assert_int_gt(nps_merge_demand(merge).passes, 0);
  ck_assert_int_ge(nps_merge_demand(merge).state_memory, 2 * (int64_t)nps_select_bytes());
  ck_assert_int_eq(nps_merge_work(merge), 721 * 6 + 107 * 24);
  free_merge();
  accept(TIES AB "parameters: {weight: 1, density: 0.5, scope: model}\n");
  const int passes = nps_merge_demand(merge).passes;
  ck_assert_int_eq(nps_merge_work(merge), 721 * 6 * (passes + 1) + 107 * 24);
  free_merge();
}
END_TEST

/* ---- nps ---- */

#define NPS "merge_method: nps\nbase_model: base\n"

START_TEST(nps_has_values_for_all_that_is_not_given) {
  accept(NPS AB);
  ck_assert(value("weight", EMBED, 1) == 1 && value("lambda", EMBED, 0) == 1 && value("normalize", EMBED, 0) == 0);
  ck_assert(value("density", EMBED, 0) == 0.25 && value("density", UP2, 1) == 0.25);
  ck_assert_ptr_nonnull(nps_merge_subspaces(merge));
  ck_assert_int_eq(nps_merge_subspaces(merge)->models, 0); /* until it has run */
  free_merge();
  accept(NPS "models: [{model: a, parameters: {density: 0.5}}, {model: b}]\nparameters: {density: 0.125}\n");
  ck_assert(value("density", EMBED, 0) == 0.5 && value("density", EMBED, 1) == 0.125);
  free_merge();
  accept(NPS AB "parameters: {normalize: coordinate}\n");
  ck_assert(value("normalize", EMBED, 0) == NPS_NORMALIZE_COORDINATE);
  free_merge();
}
END_TEST

START_TEST(nps_selects_where_entries_are_dropped) {
  const int64_t state = 2 * (int64_t)(nps_select_bytes() + nps_partition_bytes(4));
  accept(NPS AB);
  ck_assert_int_eq(nps_merge_demand(merge).passes, 5);
  ck_assert(nps_merge_demand(merge).whole_model && !nps_merge_demand(merge).whole_pieces);
  ck_assert_int_ge(nps_merge_demand(merge).state_memory, state);
  ck_assert_int_eq(nps_merge_work(merge), 721 * 6 * 6 + 107 * 24);
  free_merge();
  accept(NPS AB "parameters: {density: 1}\n");
  ck_assert_int_eq(nps_merge_demand(merge).passes, 2);
  free_merge();
  nps_scope = NPS_SCOPE_TENSOR;
  accept(NPS AB "parameters: {density: [1, 0.5]}\n");
  ck_assert_int_eq(nps_merge_demand(merge).passes, 4);
  ck_assert(!nps_merge_demand(merge).whole_model && nps_merge_demand(merge).whole_pieces);
  free_merge();
  nps_scope = NPS_SCOPE_MODEL;
}
END_TEST

START_TEST(plain_values_are_those_of_all_tensors) {
  double found = 0;
  accept(NPS "models: [{model: a, parameters: {weight: 3}}, {model: b, parameters: {weight: [1, 2]}}]\n"
             "parameters: {lambda: 0.7}\n");
  ck_assert(nps_merge_plain_value(merge, "weight", 0, &found) && found == 3);
  ck_assert(!nps_merge_plain_value(merge, "weight", 1, &found));
  ck_assert(nps_merge_plain_value(merge, "lambda", 0, &found) && found == 0.7);
  ck_assert(nps_merge_plain_value(merge, "density", 1, &found) && found == 0.25);
  ck_assert(!nps_merge_plain_value(merge, "rescale", 0, &found));
  free_merge();
}
END_TEST

/* ---- problems ---- */

static const char *const refused[][2] = {
    {TIES AB "parameters: {weight: 1, densty: 0.5}\n",
     "c.yaml:4: unknown parameter 'densty' of ties, did you mean 'density'?"},
    {TIES AB "parameters:\n  weight: 1\n  frobnicate: 0.5\n", "c.yaml:6: unknown parameter 'frobnicate' of ties"},
    {TIES "models:\n- model: a\n  parameters:\n    wieght: 1\nparameters: {weight: 1}\n",
     "c.yaml:6: unknown parameter 'wieght' of ties, did you mean 'weight'?"},
    {TIES AB, "c.yaml: ties needs the parameter 'weight' for model 'a' (tensor model.embed_tokens.weight has none)\n"
              "c.yaml: ties needs the parameter 'weight' for model 'b' (tensor model.embed_tokens.weight has none)"},
    {TIES AB "parameters:\n  weight:\n  - {filter: mlp, value: 1}\n  - {filter: attn, value: 1}\n"
             "  - {filter: embed, value: 1}\n",
     "c.yaml: ties needs the parameter 'weight' for model 'a' (tensor model.norm.weight has none)\n"
     "c.yaml: ties needs the parameter 'weight' for model 'b' (tensor model.norm.weight has none)"},
    {TIES "models: [{model: a}]\nparameters:\n  weight: 1\n  density: 1.5\n",
     "c.yaml:6: parameter 'density' must lie in [0, 1], found 1.5 for tensor model.embed_tokens.weight"},
    {TIES "models: [{model: a}]\nparameters:\n  weight: 1\n  density: [0.5, -0.5]\n",
     "c.yaml:6: parameter 'density' must lie in [0, 1], found -0.5 for tensor "
     "model.layers.2.self_attn.q_proj.weight"},
    {TIES AB "parameters: {weight: heavy}\n", "c.yaml:4: parameter 'weight' must be a number, found 'heavy'"},
    {TIES AB "parameters: {weight: '0.5x'}\n", "c.yaml:4: parameter 'weight' must be a number, found '0.5x'"},
    {TIES AB "parameters: {weight: true}\n", "c.yaml:4: parameter 'weight' must be a number, found a boolean"},
    {TIES AB "parameters: {weight: 1, scope: layer}\n",
     "c.yaml:4: parameter 'scope' must be one of tensor, model, found 'layer'"},
    {TIES AB "parameters: {weight: 1, scope: 1}\n",
     "c.yaml:4: parameter 'scope' must be one of tensor, model, found another kind of value"},
    {TIES AB "parameters: {weight: 1, normalize: sum}\n",
     "c.yaml:4: parameter 'normalize' must be one of false, true, found 'sum'"},
    {TIES "models: [{model: a, parameters: {lambda: 1}}]\nparameters: {weight: 1}\n",
     "c.yaml:3: parameter 'lambda' holds for all models: it belongs under the top-level parameters"},
    {TIES AB "parameters: {weight: 1, scope: model, density: [0.1, 0.2]}\n",
     "c.yaml: ties, tensor model.layers.1.self_attn.q_proj.weight: with scope: model, density must be the same for all "
     "tensors"},
    {"merge_method: dare_ties\nbase_model: base\n" AB "parameters: {weight: 1, density: 0, rescale: expectation}\n",
     "c.yaml: dare_ties, tensor model.embed_tokens.weight: rescale: expectation divides by the density, which is 0"},
    {"merge_method: breadcrumbs\nbase_model: base\nmodels: [{model: a}]\nparameters: {weight: 1, gamma: 1.5}\n",
     "c.yaml:4: parameter 'gamma' must lie in [0, 1], found 1.5 for tensor model.embed_tokens.weight"},
    {"merge_method: breadcrumbs_ties\nbase_model: base\n" AB "parameters: {weight: 1, gama: 0.1}\n",
     "c.yaml:4: unknown parameter 'gama' of breadcrumbs_ties, did you mean 'gamma'?"},
    {"merge_method: sce\nbase_model: base\n" AB "parameters: {select_topk: 1.5}\n",
     "c.yaml:4: parameter 'select_topk' must lie in [0, 1], found 1.5 for tensor model.embed_tokens.weight"},
    {"merge_method: sce\nbase_model: base\nmodels: [{model: a, parameters: {select_topk: 1}}]\n",
     "c.yaml:3: parameter 'select_topk' holds for all models: it belongs under the top-level parameters"},
    {"merge_method: ramplus_tl\nbase_model: base\n" AB "parameters: {alpha: -1}\n",
     "c.yaml:4: parameter 'alpha' must lie in [0, 1e+30], found -1 for tensor model.embed_tokens.weight"},
    {"merge_method: ram\nmodels: [{model: a}]\n", "c.yaml: ram needs base_model"},
    {"merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: -1}}\n",
     "c.yaml: linear, tensor model.embed_tokens.weight: the weights add up to 0, and normalize: true divides by their "
     "sum"},
    {"merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\n",
     "c.yaml: slerp needs the parameter 't' (tensor model.embed_tokens.weight has none)"},
    {"merge_method: slerp\nbase_model: base\n" AB "parameters: {t: 0.5}\n",
     "c.yaml: slerp takes 2 models (the base counts), found 3"},
    {"merge_method: passthrough\n" AB, "c.yaml: passthrough takes 1 model, found 2"},
    {"merge_method: task_arithmetic\nmodels: [{model: a}]\nparameters: {weight: 1}\n",
     "c.yaml: task_arithmetic needs base_model"},
    {NPS AB "parameters: {scope: model}\n", "c.yaml:4: parameter 'scope' belongs under nps.scope"},
    {NPS AB "parameters: {density: [0.1, 0.2]}\n",
     "c.yaml: nps, tensor model.layers.1.self_attn.q_proj.weight: with nps.scope: model, density must be the same for "
     "all tensors"},
    {NPS AB "parameters: {normalize: true}\n",
     "c.yaml:4: parameter 'normalize' must be one of none, sum, coordinate, found another kind of value"},
    {NPS "models: [{model: a}, {model: b, parameters: {weight: -1}}]\nparameters: {normalize: sum}\n",
     "c.yaml: nps, tensor model.embed_tokens.weight: lambda × weight add up to 0, and normalize: sum divides by their "
     "sum"},
};

START_TEST(what_does_not_fit_is_refused) { refuse(refused[_i][0], refused[_i][1]); }
END_TEST

START_TEST(all_problems_are_listed_together) {
  refuse(TIES "models:\n- {model: a, parameters: {wieght: 1, lambda: 2}}\nparameters:\n  densty: 1\n  scope: no\n",
         "c.yaml:6: unknown parameter 'densty' of ties, did you mean 'density'?\n"
         "c.yaml:7: parameter 'scope' must be one of tensor, model, found another kind of value\n"
         "c.yaml:4: unknown parameter 'wieght' of ties, did you mean 'weight'?\n"
         "c.yaml:4: parameter 'lambda' holds for all models: it belongs under the top-level parameters");
}
END_TEST

START_TEST(settings_of_the_command_line_have_no_line) {
  const nps_override_t set[] = {{"parameters.densty", "0.5"}};
  refuse_with(TIES AB "parameters: {weight: 1}\n", set, 1,
              "--set: unknown parameter 'densty' of ties, did you mean 'density'?");
}
END_TEST

START_TEST(parameters_of_other_methods_are_noted) {
  accept(
      "merge_method: task_arithmetic\nbase_model: base\nmodels:\n- model: a\n  parameters: {weight: 1, density: 0.5}\n"
      "parameters:\n  t: 1\n");
  ck_assert_str_eq(notes.text, "c.yaml:7: parameter 't' has no effect with task_arithmetic\n"
                               "c.yaml:5: parameter 'density' has no effect with task_arithmetic");
  free_merge();
}
END_TEST

/* Each once, though it is looked up for every tensor and model; q_proj of one layer alone is a match. */
START_TEST(filters_that_choose_nothing_are_noted) {
  accept("merge_method: ties\nbase_model: base\nmodels:\n- model: a\n  parameters: &p\n"
         "    weight:\n    - {filter: self_atn, value: 0}\n    - {filter: layers.2.mlp, value: 1}\n    - {value: 0.5}\n"
         "- model: b\n  parameters: *p\n"
         "parameters:\n  density: [{value: 0.5}, {filter: mlp, value: 1}]\n  lambda: [{filter: '*', value: 1}]\n");
  ck_assert_str_eq(
      notes.text, "c.yaml:13: parameter 'density': filter 'mlp' stands behind one that matches every tensor and has no "
                  "effect\n"
                  "c.yaml:7: parameter 'weight': filter 'self_atn' is in no tensor's name and has no effect");
  free_merge();
}
END_TEST

/* ---- methods ---- */

static const char *const built[] = {"linear",    "task_arithmetic", "ties",        "dare_linear",
                                    "dare_ties", "slerp",           "passthrough", "nps"};

static const char *const methods[][2] = {
    {"tiess", "c.yaml:1: unknown merge_method 'tiess', did you mean 'ties'?"},
    {"regmean", "c.yaml:1: merge_method 'regmean' is not built yet"},
    {"quantum_soup",
     "c.yaml:1: unknown merge_method 'quantum_soup'; known are linear, task_arithmetic, ties, "
     "dare_linear, dare_ties, breadcrumbs, breadcrumbs_ties, della, della_linear, sce, ram, "
     "ramplus_tl, slerp, nuslerp, multislerp, karcher, model_stock, nearswap, arcee_fusion, passthrough, "
     "consensus, nps, tsv_m, iso_c, iso_cts, knots, opcm, smile"},
};

START_TEST(methods_are_found_by_name) {
  const nps_merge_method_t *method = NULL;
  for (size_t i = 0; i < sizeof built / sizeof *built; i++) {
    ck_assert_int_eq(nps_merge_method_find(built[i], "", &method), NPS_OK);
    ck_assert_str_eq(method->name, built[i]);
  }
  for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
    ck_assert_int_eq(nps_merge_method_find(methods[i][0], "c.yaml:1: ", &method), NPS_ERR_CONFIG);
    ck_assert_str_eq(nps_problem_text(0), methods[i][1]);
    nps_problem_clear();
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("params");
  tcase_add_test(cases, a_models_own_parameters_come_before_global_ones);
  tcase_add_test(cases, lists_are_interpolated_over_the_layers);
  tcase_add_test(cases, filters_choose_by_name);
  tcase_add_test(cases, defaults_are_those_of_the_method);
  tcase_add_test(cases, choices_are_texts_or_booleans);
  tcase_add_test(cases, tensors_are_described_to_methods);
  tcase_add_test(cases, demands_follow_from_the_values);
  tcase_add_test(cases, nps_has_values_for_all_that_is_not_given);
  tcase_add_test(cases, nps_selects_where_entries_are_dropped);
  tcase_add_test(cases, plain_values_are_those_of_all_tensors);
  tcase_add_loop_test(cases, what_does_not_fit_is_refused, 0, (int)(sizeof refused / sizeof *refused));
  tcase_add_test(cases, all_problems_are_listed_together);
  tcase_add_test(cases, settings_of_the_command_line_have_no_line);
  tcase_add_test(cases, parameters_of_other_methods_are_noted);
  tcase_add_test(cases, filters_that_choose_nothing_are_noted);
  tcase_add_test(cases, methods_are_found_by_name);
  const int code = run_tests("params", cases);
  free(notes.text);
  return code;
}
