#include "../naive_select.h"
#include "../nps_check_mpi.h"
#include "nps/merge.h"

#include <math.h>

enum { MODELS = 3, FILES = MODELS + 1, SUBSPACES = 4, TENSORS = 5, D = 150000 + 3 + 70001 + 1 + 5000 };

/* Names whose byte order is not that of the list; two tensors are cut over ranks. */
static const int64_t counts[TENSORS][1] = {{150000}, {3}, {70001}, {1}, {5000}};
static nps_target_t targets[TENSORS] = {
    {.name = "z.weight", .dtype = NPS_F32, .ndim = 1}, {.name = "a.9", .dtype = NPS_F32, .ndim = 1},
    {.name = "a.10", .dtype = NPS_F32, .ndim = 1},     {.name = "B", .dtype = NPS_F32, .ndim = 1},
    {.name = "m", .dtype = NPS_BF16, .ndim = 1},
};
static const int by_name[TENSORS] = {3, 2, 1, 4, 0};

/* ---- models ---- */

static nps_model_t *inputs[FILES];
static nps_layout_t *layout;

/* Base and models, tensors one after the other in byte order of their names. Multiples of 1/64 for many ties and zeros, all
 * of which bfloat16 holds. */
static float theta[FILES][D];

static void fill_models(void) {
  uint64_t seed = 2024;
  for (int f = 0; f < FILES; f++)
    for (int i = 0; i < D; i++)
      theta[f][i] = f == 0 ? (float)(next_random(&seed) % 5) * 0.25f
                           : theta[0][i] + (float)((int)(next_random(&seed) % (8 + 6 * (uint64_t)f)) - 7) * 0x1p-6f;
}

static int64_t begin_of(int tensor) {
  int64_t at = 0;
  for (int i = 0; by_name[i] != tensor; i++) at += counts[by_name[i]][0];
  return at;
}

static nps_err_t write_model(const nps_comm_t *self, const char *path, const float *values) {
  const nps_layout_t all = {targets, TENSORS, 0, NULL};
  const nps_output_t output = {.path = path, .config_json = "{}", .recipe = "", .model_card = ""};
  static double wide[D];
  static float narrow[D];
  nps_writer_t *writer = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_writer_open(self, &output, &all, &writer));
  for (int t = 0; t < TENSORS; t++) {
    for (int64_t i = 0; i < counts[t][0]; i++) wide[i] = values[begin_of(t) + i];
    nps_tensor_narrow(wide, counts[t][0], targets[t].dtype, narrow);
    NPS_GOTO(nps_writer_write(writer, t, 0, counts[t][0], narrow));
  }
  NPS_GOTO(nps_writer_commit(writer, NULL));
done:
  nps_writer_free(writer);
  return err;
}

static nps_err_t make_models(void) {
  nps_err_t err = NPS_OK;
  nps_comm_t *self = nps_comm_self();
  char path[600];
  fill_models();
  for (int t = 0; t < TENSORS; t++) {
    targets[t].shape = counts[t];
    targets[t].count = counts[t][0];
  }
  for (int f = 0; f < FILES && err == NPS_OK; f++) {
    snprintf(path, sizeof path, "%s/%d.h5", folder, f);
    err = nps_comm_agree(comm, rank == 0 ? write_model(self, path, theta[f]) : NPS_OK);
    if (err == NPS_OK) err = nps_model_open(path, f ? "tuned" : "base", &inputs[f]);
  }
  nps_comm_free(self);
  const nps_dtype_t dtype = NPS_F32;
  if (err == NPS_OK) err = nps_layout_match((const nps_model_t *const *)inputs, FILES, 0, -1, &dtype, &layout);
  return err;
}

/* ---- cases ---- */

typedef struct {
  nps_scope_t scope;
  nps_normalize_t normalize;
  double density;
  double weight[SUBSPACES], priority[SUBSPACES]; /* of the first model; later models' are moved on by one */
  double lambda[MODELS];
} case_t;

static const case_t cases_table[] = {
    {NPS_SCOPE_MODEL, NPS_NORMALIZE_NONE, 0.1, {1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1}},
    {NPS_SCOPE_MODEL, NPS_NORMALIZE_SUM, 0.37, {0.3, -1.7, 0, 1.1}, {0.3, 1.7, 0, 1.1}, {0.7, -0.2, 0.4}},
    {NPS_SCOPE_MODEL, NPS_NORMALIZE_COORDINATE, 0.93, {0.3, -1.7, 0, 1.1}, {5, 0, 0.25, 1}, {0.7, -0.7, 1.4}},
    {NPS_SCOPE_MODEL, NPS_NORMALIZE_NONE, 1, {2, -1, 0.5, 3}, {0, 0, 0, 1}, {0.7, 0, 1}},
    {NPS_SCOPE_MODEL, NPS_NORMALIZE_NONE, 0, {1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1}},
    {NPS_SCOPE_TENSOR, NPS_NORMALIZE_NONE, 0.1, {1, 1, 1, 1}, {1, 1, 1, 1}, {0.7, 0.7, 0.7}},
    {NPS_SCOPE_TENSOR, NPS_NORMALIZE_COORDINATE, 0.37, {0.3, -1.7, 0, 1.1}, {0.3, 1.7, 0, 1.1}, {0.7, -0.7, 1.4}},
    {NPS_SCOPE_TENSOR, NPS_NORMALIZE_SUM, 0.93, {0.3, -1.7, 0, 1.1}, {5, 0, 0.25, 1}, {0.5, 0.5, 1}},
};

static nps_weighting_t *weighting_of(const case_t *c) {
  nps_weighting_t *w = nps_weighting_new(MODELS, SUBSPACES);
  w->scope = c->scope;
  for (int i = 0; i < MODELS; i++) {
    w->lambda[i] = c->lambda[i];
    for (int m = 0; m < SUBSPACES; m++) {
      w->weight[i * SUBSPACES + m] = c->weight[(m + i) % SUBSPACES];
      w->priority[i * SUBSPACES + m] = c->priority[(m + i) % SUBSPACES];
    }
  }
  return w;
}

/* ---- the naive merge ---- */

static int64_t entries[MODELS][SUBSPACES], kept[MODELS][SUBSPACES];
static float thresholds[MODELS][SUBSPACES - 1];

static int by_magnitude(const void *a, const void *b) {
  const float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
  return x < y ? -1 : x > y;
}

/* Prunes and weighs entries among which magnitudes are ranked. */
static void prune_slowly(const case_t *c, int model, const float *tau, int64_t n, float *q) {
  static float sorted[D];
  static entry_t score[D];
  static int bin[D];
  memcpy(sorted, tau, (size_t)n * sizeof *tau);
  qsort(sorted, (size_t)n, sizeof *sorted, by_magnitude);
  for (int m = 1; m < SUBSPACES; m++) thresholds[model][m - 1] = fabsf(sorted[m * n / SUBSPACES]);
  for (int64_t i = 0; i < n; i++) {
    bin[i] = 0;
    for (int m = 1; m < SUBSPACES; m++) bin[i] += thresholds[model][m - 1] <= fabsf(tau[i]);
    const volatile float priority = (float)c->priority[(bin[i] + model) % SUBSPACES];
    score[i] = (entry_t){priority * fabsf(tau[i]), i};
    entries[model][bin[i]]++;
    q[i] = 0;
  }
  qsort(score, (size_t)n, sizeof *score, by_magnitude_then_index);
  for (int64_t k = 0; k < (int64_t)floor(c->density * (double)n); k++) {
    const int64_t i = score[k].index;
    const volatile float weight = (float)c->weight[(bin[i] + model) % SUBSPACES];
    q[i] = weight * tau[i];
    kept[model][bin[i]]++;
  }
}

static void prune_model_slowly(const case_t *c, int model, float *q) {
  static float tau[D];
  for (int i = 0; i < D; i++) tau[i] = theta[model + 1][i] - theta[0][i];
  if (c->scope == NPS_SCOPE_MODEL)
    prune_slowly(c, model, tau, D, q);
  else
    for (int t = 0; t < TENSORS; t++) prune_slowly(c, model, tau + begin_of(t), counts[t][0], q + begin_of(t));
}

static void merge_slowly(const case_t *c, double *out) {
  static float q[MODELS][D];
  memset(entries, 0, sizeof entries);
  memset(kept, 0, sizeof kept);
  for (int m = 0; m < MODELS; m++) prune_model_slowly(c, m, q[m]);
  for (int i = 0; i < D; i++) {
    double sum = 0, all = 0, present = 0;
    for (int m = 0; m < MODELS; m++) {
      const volatile double part = c->lambda[m] * (double)q[m][i];
      sum += part;
      all += c->lambda[m];
      if (q[m][i] != 0) present += c->lambda[m];
    }
    if (c->normalize == NPS_NORMALIZE_SUM) sum /= all;
    if (c->normalize == NPS_NORMALIZE_COORDINATE) sum = present != 0 ? sum / present : 0;
    out[i] = (double)theta[0][i] + sum;
  }
}

/* ---- the merge under test ---- */

static nps_merge_result_t results[MODELS];

static nps_err_t run_merge(nps_merge_t *merge, const char *path) {
  const nps_costs_t costs = {.read_rate = 1e9,
                             .hash_rate = 1e9,
                             .write_rate = 1e9,
                             .compute_time = 1e-9,
                             .cores_per_node = size,
                             .ranks_per_node = size};
  const nps_demand_t demand = nps_merge_demand(merge);
  const nps_output_t output = {.path = path, .force = true, .config_json = "{}", .recipe = "", .model_card = ""};
  nps_plan_t *plan = NULL;
  nps_writer_t *writer = NULL;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_plan_make(layout, (const nps_model_t *const *)inputs, size, &demand, &costs, INT64_C(1) << 30, &plan));
  NPS_GOTO(nps_writer_open(comm, &output, layout, &writer));
  NPS_GOTO(nps_merge_run(merge, comm, plan, NULL, writer, NULL, NULL, results));
  NPS_GOTO(nps_writer_commit(writer, NULL));
done:
  nps_writer_free(writer);
  nps_plan_free(plan);
  return err;
}

static nps_err_t new_merge(const nps_merge_nps_t *nps, const char *parameters, nps_recipe_t **recipe,
                           nps_merge_t **merge) {
  static nps_merge_model_t models[MODELS];
  for (int m = 0; m < MODELS; m++) models[m] = (nps_merge_model_t){m + 1, "tuned", NULL};
  nps_merge_spec_t spec = {.inputs = (const nps_model_t *const *)inputs,
                           .input_count = FILES,
                           .models = models,
                           .model_count = MODELS,
                           .config_file = "c.yaml",
                           .layout = layout,
                           .nps = nps};
  NPS_TRY(nps_recipe_parse(parameters, "c.yaml", NULL, 0, recipe));
  NPS_TRY(nps_merge_method_find("nps", "", &spec.method));
  spec.settings = &(*recipe)->parameters;
  return nps_merge_new(&spec, merge);
}

static bool is_rounded(const float *found, int tensor, const double *expected) {
  bool same = true;
  for (int64_t i = 0; i < counts[tensor][0]; i++) same = same && found[i] == (float)expected[begin_of(tensor) + i];
  return same;
}

static bool has_values(const char *path, const double *expected) {
  static float found[D];
  nps_model_t *model = NULL;
  if (nps_model_open(path, "merged", &model) != NPS_OK) return false;
  nps_reader_t *reader = nps_reader_new(model, NULL);
  bool same = model->tensor_count == TENSORS;
  for (int i = 0; i < model->tensor_count; i++)
    for (int t = 0; t < TENSORS; t++) {
      if (strcmp(model->tensors[i].name, targets[t].name) != 0) continue;
      same = same && nps_reader_read(reader, i, 0, counts[t][0], found) == NPS_OK && is_rounded(found, t, expected);
    }
  nps_reader_free(reader);
  nps_model_free(model);
  return same;
}

static bool subspaces_are_right(const case_t *c, const nps_merge_t *merge) {
  const nps_merge_subspaces_t *s = nps_merge_subspaces(merge);
  bool right = s->models == MODELS && s->subspaces == SUBSPACES && (c->scope == NPS_SCOPE_MODEL) == !!s->thresholds;
  right = right && memcmp(s->entries, entries, sizeof entries) == 0 && memcmp(s->kept, kept, sizeof kept) == 0;
  if (right && s->thresholds) right = memcmp(s->thresholds, thresholds, sizeof thresholds) == 0;
  for (int m = 0; m < MODELS; m++) {
    int64_t sum = 0;
    for (int k = 0; k < SUBSPACES; k++) sum += kept[m][k];
    right = right && results[m].kept == (double)sum / D;
  }
  return right;
}

static const char *const normalize_names[] = {"none", "sum", "coordinate"};

START_TEST(nps_is_what_plain_code_makes) {
  static double expected[D];
  const case_t *c = &cases_table[_i];
  nps_weighting_t *weighting = weighting_of(c);
  const nps_merge_nps_t nps = {.weighting = weighting, .has_lambda = true, .density = c->density};
  nps_recipe_t *recipe = NULL;
  nps_merge_t *merge = NULL;
  char text[200], path[600];
  snprintf(text, sizeof text, "merge_method: ties\nmodels: [{model: a}]\nparameters: {normalize: %s}\n",
           normalize_names[c->normalize]);
  snprintf(path, sizeof path, "%s/merged.h5", folder);
  ck_assert(everywhere(new_merge(&nps, text, &recipe, &merge) == NPS_OK));
  ck_assert(everywhere(run_merge(merge, path) == NPS_OK));
  merge_slowly(c, expected);
  ck_assert(everywhere(rank != 0 || has_values(path, expected)));
  ck_assert(everywhere(subspaces_are_right(c, merge)));
  nps_merge_free(merge);
  nps_recipe_free(recipe);
  nps_weighting_free(weighting);
}
END_TEST

/* Without λ of the weighting's own: lambda × weight. */
START_TEST(lambda_times_weight_scales_a_model) {
  static double expected[D];
  case_t c = cases_table[0];
  for (int m = 0; m < MODELS; m++) c.lambda[m] = 0.7 * 0.5;
  nps_weighting_t *weighting = nps_weighting_new(MODELS, SUBSPACES);
  const nps_merge_nps_t nps = {.weighting = weighting, .density = 0.9};
  nps_recipe_t *recipe = NULL;
  nps_merge_t *merge = NULL;
  char path[600];
  snprintf(path, sizeof path, "%s/merged.h5", folder);
  ck_assert(everywhere(new_merge(&nps,
                                 "merge_method: ties\nmodels: [{model: a}]\n"
                                 "parameters: {density: 0.1, lambda: 0.7, weight: 0.5}\n",
                                 &recipe, &merge) == NPS_OK));
  ck_assert(everywhere(run_merge(merge, path) == NPS_OK));
  merge_slowly(&c, expected);
  ck_assert(everywhere(rank != 0 || has_values(path, expected)));
  nps_merge_free(merge);
  nps_recipe_free(recipe);
  nps_weighting_free(weighting);
}
END_TEST

/* ---- candidates in memory ---- */

/* The values of bfloat16 tensors as they would be written, widened. */
static void round_targets(const nps_layout_t *to, double *values) {
  static uint16_t narrow[D];
  static float wide[D];
  for (int t = 0; t < TENSORS; t++) {
    const nps_target_t *target = NULL;
    for (int i = 0; i < to->count; i++)
      if (strcmp(to->targets[i].name, targets[t].name) == 0) target = &to->targets[i];
    if (target->dtype != NPS_BF16) continue;
    nps_tensor_narrow(values + begin_of(t), counts[t][0], NPS_BF16, narrow);
    nps_tensor_widen_f32(NPS_BF16, narrow, counts[t][0], wide);
    for (int64_t i = 0; i < counts[t][0]; i++) values[begin_of(t) + i] = wide[i];
  }
}

/* How the ranks share the models: each has all of them, or all have one copy together, tensors in turn, of which every
 * third lies on the next rank too. */
typedef struct {
  nps_share_t part;
  nps_hold_t *hold;
  nps_comm_t *copy;
} sharing_t;

static sharing_t share(const nps_layout_t *to, bool together) {
  sharing_t s = {.part = {.copy = together ? 0 : rank, .copies = together ? 1 : size}};
  nps_comm_split(comm, together ? 0 : rank, &s.copy);
  if (!together) return s;
  s.hold = nps_xcalloc((size_t)to->count, sizeof *s.hold);
  for (int t = 0; t < to->count; t++) {
    if (t % 3 == 0 && (t + 1) % size == rank) s.hold[t] = NPS_HOLD_ALSO;
    if (t % size == rank) s.hold[t] = NPS_HOLD;
  }
  s.part.hold = s.hold;
  return s;
}

static void stop_sharing(sharing_t *s) {
  nps_comm_free(s->copy);
  free(s->hold);
}

/* What a rank makes candidates with. */
typedef struct {
  sharing_t sharing;
  nps_store_t *store;
  nps_subspaces_t *subspaces;
  nps_rules_t *rules;
  nps_candidate_t *candidate;
} maker_t;

static maker_t make_maker(const nps_layout_t *to, nps_scope_t scope, bool together) {
  static const int input_of[MODELS] = {1, 2, 3};
  maker_t m = {.sharing = share(to, together)};
  ck_assert(everywhere(nps_store_load(to, (const nps_model_t *const *)inputs, 0, input_of, MODELS, &m.sharing.part,
                                      NULL, &m.store) == NPS_OK));
  ck_assert(everywhere(nps_subspaces_new(comm, m.store, SUBSPACES, scope, &m.subspaces) == NPS_OK));
  m.rules = nps_rules_new(comm, m.sharing.copy, m.store, m.subspaces);
  ck_assert(everywhere(nps_candidate_new(m.store, m.subspaces, m.rules, NULL, true, 0, &m.candidate) == NPS_OK));
  return m;
}

static void free_maker(maker_t *m) {
  nps_candidate_free(m->candidate);
  nps_rules_free(m->rules);
  nps_subspaces_free(m->subspaces);
  nps_store_free(m->store);
  stop_sharing(&m->sharing);
}

/* A tensor made in two parts that no chunk ends between. */
static bool make_tensor(const maker_t *m, int tensor, float *out) {
  const int64_t count = nps_store_count(m->store, tensor), half = count / 3;
  const bool first = nps_candidate_make(m->candidate, tensor, 0, half, out);
  return nps_candidate_make(m->candidate, tensor, half, count - half, out + half) && first;
}

static bool candidate_has(const maker_t *m, const double *expected) {
  static float values[D];
  bool same = nps_store_tensors(m->store) == TENSORS && nps_store_elements(m->store) == D;
  for (int t = 0; t < TENSORS; t++) {
    const int tensor = nps_store_find(m->store, targets[t].name);
    if (!nps_store_holds(m->store, tensor)) continue;
    same = same && make_tensor(m, tensor, values) && is_rounded(values, t, expected);
  }
  return same;
}

static bool thresholds_are_right(nps_scope_t scope, const nps_subspaces_t *subspaces) {
  bool right = true;
  for (int m = 0; m < MODELS && scope == NPS_SCOPE_MODEL; m++)
    right = right && memcmp(nps_subspaces_thresholds(subspaces, m, 0), thresholds[m], sizeof thresholds[m]) == 0;
  return right;
}

/* All cases of a scope one after the other in one candidate, twice: what is kept from build to build must not show. */
static bool builds_are_right(nps_scope_t scope, const nps_layout_t *to, const maker_t *m) {
  static double expected[D];
  const int rows = (int)(sizeof cases_table / sizeof *cases_table);
  bool right = true;
  for (int k = 0; k < 2 * rows; k++) {
    const case_t *c = &cases_table[k % rows];
    if (c->scope != scope) continue;
    nps_weighting_t *weighting = weighting_of(c);
    weighting->normalize = c->normalize;
    for (int i = 0; i < MODELS; i++) weighting->density[i] = c->density;
    merge_slowly(c, expected);
    round_targets(to, expected);
    right = nps_rules_find(m->rules, (const nps_weighting_t *const[]){weighting}, 1, NULL, NULL) && right;
    nps_candidate_set(m->candidate, weighting);
    right = right && candidate_has(m, expected) && thresholds_are_right(scope, m->subspaces);
    nps_weighting_free(weighting);
  }
  return right;
}

/* Bits of the number: every tensor as it is stored, not float32; scope tensor; one copy over all ranks. */
START_TEST(candidates_are_what_plain_code_makes) {
  const nps_scope_t scope = _i & 2 ? NPS_SCOPE_TENSOR : NPS_SCOPE_MODEL;
  nps_layout_t *stored = NULL;
  ck_assert(everywhere(nps_layout_match((const nps_model_t *const *)inputs, FILES, 0, -1, NULL, &stored) == NPS_OK));
  const nps_layout_t *to = _i & 1 ? stored : layout;
  maker_t m = make_maker(to, scope, _i & 4);
  ck_assert(everywhere(builds_are_right(scope, to, &m)));
  free_maker(&m);
  nps_layout_free(stored);
}
END_TEST

static bool stop_at_once(void *ctx) {
  (void)ctx;
  return nps_comm_rank(comm) == nps_comm_size(comm) - 1;
}

/* Rules that a weighting shares with the one before are there already; a rank that is asked to stop ends the search for
 * others, on all ranks. */
START_TEST(rules_are_kept_and_looking_for_them_can_be_stopped) {
  nps_weighting_t *first = nps_weighting_new(MODELS, SUBSPACES);
  for (int i = 0; i < MODELS; i++) first->density[i] = 0.3;
  nps_weighting_t *second = nps_weighting_copy(first);
  maker_t m = make_maker(layout, NPS_SCOPE_MODEL, true);
  ck_assert(everywhere(nps_rules_find(m.rules, (const nps_weighting_t *const[]){first}, 1, NULL, NULL)));
  second->lambda[1] = 0.5;
  const nps_weighting_t *const both[] = {first, second};
  ck_assert(everywhere(nps_rules_find(m.rules, both, 2, stop_at_once, NULL)));
  second->priority[0] = 2;
  ck_assert(everywhere(!nps_rules_find(m.rules, both, 2, stop_at_once, NULL)));
  ck_assert(everywhere(nps_rules_find(m.rules, both, 2, NULL, NULL)));
  free_maker(&m);
  nps_weighting_free(first);
  nps_weighting_free(second);
}
END_TEST

static bool makes_all(const maker_t *m, const nps_weighting_t *weighting) {
  static float values[D];
  bool good = nps_rules_find(m->rules, &weighting, 1, NULL, NULL);
  nps_candidate_set(m->candidate, weighting);
  for (int t = 0; t < TENSORS; t++) good = make_tensor(m, t, values) && good;
  return good;
}

START_TEST(candidates_without_a_result_are_told) {
  nps_weighting_t *weighting = nps_weighting_new(MODELS, SUBSPACES);
  maker_t m = make_maker(layout, NPS_SCOPE_MODEL, false);
  ck_assert(everywhere(makes_all(&m, weighting)));
  weighting->lambda[0] = 1e41; /* beyond float32 */
  ck_assert(everywhere(!makes_all(&m, weighting)));
  weighting->normalize = NPS_NORMALIZE_SUM;
  weighting->lambda[0] = -2;
  ck_assert(!nps_weighting_has_result(weighting));
  weighting->lambda[0] = 1;
  ck_assert(nps_weighting_has_result(weighting));
  ck_assert(everywhere(makes_all(&m, weighting)));
  nps_weighting_free(weighting);
  free_maker(&m);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("nps");
  tcase_add_loop_test(cases, nps_is_what_plain_code_makes, 0, sizeof cases_table / sizeof *cases_table);
  tcase_add_test(cases, lambda_times_weight_scales_a_model);
  tcase_add_loop_test(cases, candidates_are_what_plain_code_makes, 0, 8);
  tcase_add_test(cases, rules_are_kept_and_looking_for_them_can_be_stopped);
  tcase_add_test(cases, candidates_without_a_result_are_told);
  int64_t failed = 1;
  if (make_common_folder() && everywhere(make_models() == NPS_OK)) failed = run_tests_everywhere("nps", cases);
  nps_layout_free(layout);
  for (int f = 0; f < FILES; f++) nps_model_free(inputs[f]);
  remove_common_folder();
  return end_mpi(failed);
}
