#include "../nps_check.h"

#include "nps/fitness.h"
#include <math.h>
#include <sys/stat.h>

static uint64_t state;

static float random_float(void) { return (float)next_random(&state) / 1073741824.0F - 1.0F; } /* −1 to 1 */

static void fill_random(float *x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) x[i] = scale * random_float();
}

static double gelu_of(double z) { return 0.5 * z * (1 + erf(z / sqrt(2))); }

static void set_up(void) {
  state = 7;
  ck_assert(make_new_folder());
}

static void tear_down(void) {
  remove_all(folder);
  nps_problem_clear();
}

static void check_problem(const char *part) {
  ck_assert_int_ge(nps_problem_count(), 1);
  ck_assert_msg(strstr(nps_problem_text(0), part) != NULL, "'%s' not in '%s'", part, nps_problem_text(0));
  nps_problem_clear();
}

/* ---- kernels ---- */

/* ---- a tiny network ---- */

enum { H = 6, HEADS = 2, INNER = 5, LAYERS = 2, CHANNELS = 2, PATCHES = 4, TINY_TOKENS = 5, CLASSES = 3, SAMPLES = 7 };
enum { PATCH_H = 2, PATCH_W = 3, IMAGE_H = 4, IMAGE_W = 6, PATCH = CHANNELS * PATCH_H * PATCH_W };

static const char config[] =
    "{\"model_type\": \"vit\", \"hidden_size\": 6, \"num_hidden_layers\": 2, \"num_attention_heads\": 2, "
    "\"intermediate_size\": 5, \"num_channels\": 2, \"image_size\": [4, 6], \"patch_size\": [2, 3], "
    "\"layer_norm_eps\": 0.01}";

static void write_file(const char *name, const char *text, const float *data, size_t n) {
  char *path = nps_xstrf("%s/%s", folder, name);
  FILE *f = fopen(path, "w");
  free(path);
  ck_assert_ptr_nonnull(f);
  const uint64_t size = strlen(text);
  if (data) fwrite(&size, sizeof size, 1, f);
  fputs(text, f);
  if (data) fwrite(data, sizeof *data, n, f);
  fclose(f);
}

static nps_text_t header;
static size_t numbers;

static void add_tensor(const char *name, int ndim, const int64_t *shape) {
  nps_text_t dims = {0};
  size_t count = 1;
  for (int i = 0; i < ndim; i++) {
    nps_text_add(&dims, "%s%d", i ? "," : "", (int)shape[i]);
    count *= (size_t)shape[i];
  }
  nps_text_add(&header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
               header.size ? "," : "{", name, dims.text, 4 * numbers, 4 * (numbers + count));
  numbers += count;
  free(dims.text);
}

static void add_both(const char *name, int ndim, const int64_t *shape) {
  char *full = nps_xstrf("%s.weight", name);
  add_tensor(full, ndim, shape);
  free(full);
  full = nps_xstrf("%s.bias", name);
  add_tensor(full, 1, shape);
  free(full);
}

static void add_body(void) {
  static const char *const square[] = {"attention.attention.query", "attention.attention.key",
                                       "attention.attention.value", "attention.output.dense"};
  add_tensor("vit.embeddings.cls_token", 3, (const int64_t[]){1, 1, H});
  add_tensor("vit.embeddings.position_embeddings", 3, (const int64_t[]){1, TINY_TOKENS, H});
  add_both("vit.embeddings.patch_embeddings.projection", 4, (const int64_t[]){H, CHANNELS, PATCH_H, PATCH_W});
  for (int l = 0; l < LAYERS; l++) {
    char name[100];
    const int at = snprintf(name, sizeof name, "vit.encoder.layer.%d.", l);
    for (int k = 0; k < 4; k++) {
      snprintf(name + at, sizeof name - (size_t)at, "%s", square[k]);
      add_both(name, 2, (const int64_t[]){H, H});
    }
    snprintf(name + at, sizeof name - (size_t)at, "layernorm_before");
    add_both(name, 1, (const int64_t[]){H});
    snprintf(name + at, sizeof name - (size_t)at, "layernorm_after");
    add_both(name, 1, (const int64_t[]){H});
    snprintf(name + at, sizeof name - (size_t)at, "intermediate.dense");
    add_both(name, 2, (const int64_t[]){INNER, H});
    snprintf(name + at, sizeof name - (size_t)at, "output.dense");
    add_both(name, 2, (const int64_t[]){H, INNER});
  }
  add_both("vit.layernorm", 1, (const int64_t[]){H});
}

static nps_model_t *write_model(const char *name, const char *text, bool body, bool classifier) {
  char *file = nps_xstrf("%s/config.json", name), *whole = nps_xstrf("%s/%s", folder, name);
  mkdir(whole, 0777);
  write_file(file, text, NULL, 0);
  free(file);
  file = nps_xstrf("%s/model.safetensors", name);
  header = (nps_text_t){0};
  numbers = 0;
  if (body) add_body();
  if (classifier) add_both("classifier", 2, (const int64_t[]){CLASSES, H});
  nps_text_add(&header, "}");
  float *data = nps_xcalloc(numbers, sizeof *data);
  fill_random(data, (int64_t)numbers, 0.8F);
  write_file(file, header.text, data, numbers);
  nps_model_t *model = NULL;
  ck_assert_int_eq(nps_model_open(whole, name, &model), NPS_OK);
  free(header.text);
  free(data);
  free(file);
  free(whole);
  return model;
}

static nps_dataset_t tiny_data(float *inputs, int32_t *labels) {
  fill_random(inputs, (int64_t)SAMPLES * CHANNELS * IMAGE_H * IMAGE_W, 1);
  for (int i = 0; i < SAMPLES; i++) labels[i] = i % CLASSES;
  return (nps_dataset_t){.path = "data.h5",
                         .group = "g",
                         .samples = SAMPLES,
                         .channels = CHANNELS,
                         .height = IMAGE_H,
                         .width = IMAGE_W,
                         .inputs = inputs,
                         .labels = labels};
}

/* ---- the same network in float64, by the definition ---- */

typedef struct {
  const nps_net_t *net;
  float **weights;
} naive_t;

static const float *get(const naive_t *n, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  char *name = nps_xvstrf(fmt, args);
  va_end(args);
  const float *found = NULL;
  for (int i = 0; i < nps_net_tensor_count(n->net); i++)
    if (strcmp(nps_net_tensor(n->net, i)->name, name) == 0) found = n->weights[i];
  ck_assert_msg(found != NULL, "%s", name);
  free(name);
  return found;
}

static void affine(const naive_t *n, const char *name, const double *x, int in, int out, double *y) {
  const float *weight = get(n, "%s.weight", name), *bias = get(n, "%s.bias", name);
  for (int o = 0; o < out; o++) {
    y[o] = (double)bias[o];
    for (int i = 0; i < in; i++) y[o] += (double)weight[o * in + i] * x[i];
  }
}

static void norm(const naive_t *n, const char *name, const double *x, double *y) {
  const float *weight = get(n, "%s.weight", name), *bias = get(n, "%s.bias", name);
  double mean = 0, variance = 0;
  for (int i = 0; i < H; i++) mean += x[i] / H;
  for (int i = 0; i < H; i++) variance += (x[i] - mean) * (x[i] - mean) / H;
  for (int i = 0; i < H; i++) y[i] = (x[i] - mean) / sqrt(variance + 0.01) * (double)weight[i] + (double)bias[i];
}

static void mix(double q[][H], double k[][H], double v[][H], double out[][H]) {
  const int width = H / HEADS;
  for (int t = 0; t < TINY_TOKENS; t++)
    for (int c = 0; c < H; c++) {
      double sum = 0, total = 0;
      for (int u = 0; u < TINY_TOKENS; u++) {
        double score = 0;
        for (int i = c / width * width; i < (c / width + 1) * width; i++) score += q[t][i] * k[u][i];
        total += exp(score / sqrt(width));
        sum += exp(score / sqrt(width)) * v[u][c];
      }
      out[t][c] = sum / total;
    }
}

static void naive_layer(const naive_t *n, int l, double x[][H]) {
  char prefix[64], name[128];
  double y[H], q[TINY_TOKENS][H], k[TINY_TOKENS][H], v[TINY_TOKENS][H], mixed[TINY_TOKENS][H], inner[INNER];
  snprintf(prefix, sizeof prefix, "vit.encoder.layer.%d", l);
#define NAME(part) (snprintf(name, sizeof name, "%s.%s", prefix, part), name)
  for (int t = 0; t < TINY_TOKENS; t++) {
    norm(n, NAME("layernorm_before"), x[t], y);
    affine(n, NAME("attention.attention.query"), y, H, H, q[t]);
    affine(n, NAME("attention.attention.key"), y, H, H, k[t]);
    affine(n, NAME("attention.attention.value"), y, H, H, v[t]);
  }
  mix(q, k, v, mixed);
  for (int t = 0; t < TINY_TOKENS; t++) {
    affine(n, NAME("attention.output.dense"), mixed[t], H, H, y);
    for (int i = 0; i < H; i++) x[t][i] += y[i];
    norm(n, NAME("layernorm_after"), x[t], y);
    affine(n, NAME("intermediate.dense"), y, H, INNER, inner);
    for (int i = 0; i < INNER; i++) inner[i] = gelu_of(inner[i]);
    affine(n, NAME("output.dense"), inner, INNER, H, y);
    for (int i = 0; i < H; i++) x[t][i] += y[i];
  }
#undef NAME
}

static void naive_logits(const naive_t *n, const float *image, double *logits) {
  const float *class_token = get(n, "vit.embeddings.cls_token");
  const float *position = get(n, "vit.embeddings.position_embeddings");
  double x[TINY_TOKENS][H], patch[PATCH], y[H];
  for (int t = 0; t < TINY_TOKENS; t++) {
    for (int i = 0; i < H; i++) x[t][i] = (double)class_token[i];
    const int row = (t - 1) / 2 * PATCH_H, column = (t - 1) % 2 * PATCH_W;
    for (int i = 0; t > 0 && i < PATCH; i++) {
      const int c = i / (PATCH_H * PATCH_W), dy = i / PATCH_W % PATCH_H, dx = i % PATCH_W;
      patch[i] = (double)image[(c * IMAGE_H + row + dy) * IMAGE_W + column + dx];
    }
    if (t > 0) affine(n, "vit.embeddings.patch_embeddings.projection", patch, PATCH, H, x[t]);
    for (int i = 0; i < H; i++) x[t][i] += (double)position[t * H + i];
  }
  for (int l = 0; l < LAYERS; l++) naive_layer(n, l, x);
  norm(n, "vit.layernorm", x[0], y);
  affine(n, "classifier", y, H, CLASSES, logits);
}

/* Runs a network on some of the samples, in the order given. */
static void run_net(const naive_t *n, const nps_dataset_t *data, const int64_t *samples, int count, float *logits) {
  void *scratch = NULL;
  ck_assert_int_eq(nps_buffer_alloc(nps_net_scratch_bytes(n->net, data, count), "scratch", &scratch), NPS_OK);
  memset(scratch, 0xff, nps_net_scratch_bytes(n->net, data, count)); /* NaN */
  nps_net_logits(n->net, (const float *const *)n->weights, data, samples, count, scratch, logits);
  free(scratch);
}

START_TEST(a_network_is_what_its_definition_says) {
  float inputs[SAMPLES * CHANNELS * IMAGE_H * IMAGE_W], logits[SAMPLES * CLASSES], alone[CLASSES];
  int32_t labels[SAMPLES];
  const nps_dataset_t data = tiny_data(inputs, labels);
  const int64_t samples[SAMPLES] = {6, 2, 0, 5, 1, 3, 4};
  nps_model_t *model = write_model("model", config, true, true);
  nps_net_t *net = NULL;
  float **weights = NULL;
  ck_assert_int_eq(nps_net_new(model, NULL, &net), NPS_OK);
  ck_assert_int_eq(nps_net_classes(net), CLASSES);
  ck_assert_int_eq(nps_net_tensor_count(net), model->tensor_count);
  ck_assert_int_eq(nps_net_check_data(net, &data), NPS_OK);
  ck_assert_int_eq(nps_net_read_weights(net, false, &weights), NPS_OK);
  const naive_t naive = {net, weights};
  run_net(&naive, &data, samples, SAMPLES, logits);
  for (int i = 0; i < SAMPLES; i++) {
    double expected[CLASSES];
    naive_logits(&naive, inputs + samples[i] * CHANNELS * IMAGE_H * IMAGE_W, expected);
    run_net(&naive, &data, samples + i, 1, alone);
    for (int c = 0; c < CLASSES; c++) {
      ck_assert_double_eq_tol((double)logits[i * CLASSES + c], expected[c], 1e-5);
      ck_assert_double_eq_tol((double)alone[c], expected[c], 1e-5);
    }
  }
  nps_net_free_weights(net, weights);
  nps_net_free(net);
  nps_model_free(model);
}
END_TEST

/* Weights of one stage alone, and a state that is moved from stage to stage, as between ranks. */
START_TEST(stages_see_their_own_tensors_only) {
  float inputs[SAMPLES * CHANNELS * IMAGE_H * IMAGE_W];
  int32_t labels[SAMPLES];
  const nps_dataset_t data = tiny_data(inputs, labels);
  const int64_t samples[SAMPLES] = {6, 2, 0, 5, 1, 3, 4};
  nps_model_t *model = write_model("model", config, true, true);
  nps_net_t *net = NULL;
  float **weights = NULL, *states[2] = {NULL};
  void *scratch = NULL;
  ck_assert_int_eq(nps_net_new(model, NULL, &net), NPS_OK);
  ck_assert_int_eq(nps_net_read_weights(net, false, &weights), NPS_OK);
  ck_assert_int_eq(nps_net_stages(net), LAYERS + 2);
  ck_assert_int_eq(nps_net_steps(net), LAYERS + 2);
  const size_t room = (size_t)nps_net_state(net, &data, SAMPLES) * sizeof(float);
  const size_t moved = (size_t)nps_net_activation(net, &data, SAMPLES) * sizeof(float);
  for (int i = 0; i < 2; i++) ck_assert_int_eq(nps_buffer_alloc(room, "a state", &states[i]), NPS_OK);
  ck_assert_int_eq(nps_buffer_alloc(nps_net_scratch_bytes(net, &data, SAMPLES), "scratch", &scratch), NPS_OK);
  const float **seen = nps_xcalloc((size_t)nps_net_tensor_count(net), sizeof *seen);
  for (int i = 0; i < nps_net_steps(net); i++) {
    for (int t = 0; t < nps_net_tensor_count(net); t++)
      seen[t] = nps_net_needs_whole(net, nps_net_step(net, i)->stage, t) ? weights[t] : NULL;
    memset(scratch, 0xff, nps_net_step_bytes(net, &data, SAMPLES));
    memset(states[1], 0xff, room);
    memcpy(states[1], states[0], moved);
    nps_net_run(net, nps_net_step(net, i), seen, NULL, &data, samples, SAMPLES, scratch, states[1]);
    memcpy(states[0], states[1], room);
  }
  const nps_score_t found = nps_net_finish(net, &data, SAMPLES, states[0]);
  const nps_score_t whole = nps_net_score(net, (const float *const *)weights, &data, samples, SAMPLES, scratch);
  ck_assert(found.correct == whole.correct && found.total == SAMPLES && found.nll_sum == whole.nll_sum);
  for (int i = 0; i < 2; i++) free(states[i]);
  free(seen);
  free(scratch);
  nps_net_free_weights(net, weights);
  nps_net_free(net);
  nps_model_free(model);
}
END_TEST

START_TEST(operations_are_counted) {
  nps_model_t *model = write_model("model", config, true, true);
  nps_net_t *net = NULL;
  ck_assert_int_eq(nps_net_new(model, NULL, &net), NPS_OK);
  const int token = 2 * H * H + 2 * H * INNER + 2 * TINY_TOKENS * H, pairs = 2 * TINY_TOKENS * H * H;
  const int all = TINY_TOKENS * PATCH * H + 2 * pairs + TINY_TOKENS * token + token + H * CLASSES;
  ck_assert_double_eq(nps_net_flops(net, NULL, 1), 2.0 * all);
  ck_assert_double_eq(nps_net_flops(net, NULL, 64), 128.0 * all);
  nps_net_free(net);
  nps_model_free(model);
}
END_TEST

/* The classifier comes from the body, unless it has none or the head model's is asked for. */
START_TEST(heads_come_from_where_they_should) {
  nps_model_t *full = write_model("full", config, true, true), *bare = write_model("bare", config, true, false);
  nps_model_t *head = write_model("head", config, false, true);
  const struct {
    const nps_model_t *body;
    nps_err_t (*make)(const nps_model_t *, const nps_model_t *, nps_net_t **);
    int from_head;
  } cases[] = {{full, nps_net_new, 0}, {bare, nps_net_new, 2}, {full, nps_net_new_with_head, 2}};
  for (int k = 0; k < 3; k++) {
    nps_net_t *net = NULL;
    float **weights = NULL;
    int from_head = 0;
    ck_assert_int_eq(cases[k].make(cases[k].body, head, &net), NPS_OK);
    ck_assert_int_eq(nps_net_read_weights(net, true, &weights), NPS_OK);
    for (int i = 0; i < nps_net_tensor_count(net); i++) {
      const nps_net_tensor_t *tensor = nps_net_tensor(net, i);
      const nps_model_t *model = tensor->of_head ? head : cases[k].body;
      ck_assert_str_eq(model->tensors[tensor->source].name, tensor->name);
      ck_assert_int_eq(model->tensors[tensor->source].count, tensor->count);
      ck_assert((weights[i] != NULL) == tensor->of_head);
      from_head += tensor->of_head;
    }
    ck_assert_int_eq(from_head, cases[k].from_head);
    nps_net_free_weights(net, weights);
    nps_net_free(net);
  }
  nps_net_t *net = NULL;
  ck_assert_int_eq(nps_net_new(bare, NULL, &net), NPS_ERR_INPUT);
  check_problem("needs tensor classifier.weight, which is not there; a head model can give it");
  ck_assert_int_eq(nps_net_new(bare, bare, &net), NPS_ERR_INPUT);
  check_problem("which is neither there nor in the head model");
  ck_assert_int_eq(nps_net_new_with_head(full, bare, &net), NPS_ERR_INPUT);
  check_problem("which this head model lacks");
  ck_assert_int_eq(nps_net_new(head, full, &net), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_problem_count(), 4 + 2); /* outside of the layers, which are not looked at any more */
  check_problem("needs tensor vit.embeddings.cls_token, which is not there");
  nps_model_free(full);
  nps_model_free(bare);
  nps_model_free(head);
}
END_TEST

/* By the family where it is known, else by names; never what is no layer of the body. */
START_TEST(linear_layers_are_found) {
  static const struct {
    const char *name;
    int ndim;
    bool of_vit, of_others;
  } cases[] = {
      {"vit.encoder.layer.0.attention.attention.query.weight", 2, true, true},
      {"encoder.layer.11.attention.output.dense.weight", 2, true, true},
      {"vit.encoder.layer.3.output.dense.weight", 2, true, true},
      {"vit.encoder.layer.3.output.dense.weight", 1, false, false},
      {"vit.encoder.layer.3.output.dense.bias", 1, false, false},
      {"vit.encoder.layer.x3.output.dense.weight", 2, false, false},
      {"vit.encoder.layer.output.dense.weight", 2, false, false},
      {"3.output.dense.weight", 2, false, false},
      {"vit.encoder.layer.3.layernorm_after.weight", 1, false, false},
      {"vit.embeddings.patch_embeddings.projection.weight", 4, false, false},
      {"classifier.weight", 2, false, false},
      {"model.layers.0.self_attn.q_proj.weight", 2, false, true},
      {"model.layers.0.mlp.down_proj.weight", 2, false, true},
      {"model.layers.0.embed_positions.weight", 2, false, false},
      {"model.embed_tokens.weight", 2, false, false},
      {"lm_head.weight", 2, false, false},
  };
  enum { CASES = sizeof cases / sizeof *cases };
  const char *names[CASES];
  int ndim[CASES];
  bool vit[CASES], others[CASES], none[CASES];
  for (int i = 0; i < CASES; i++) {
    names[i] = cases[i].name;
    ndim[i] = cases[i].ndim;
  }
  ck_assert(nps_net_find_linear("{\"model_type\": \"vit\"}", names, ndim, CASES, vit));
  ck_assert(!nps_net_find_linear("{\"model_type\": \"of another world\"}", names, ndim, CASES, others));
  ck_assert(!nps_net_find_linear(NULL, names, ndim, CASES, none));
  for (int i = 0; i < CASES; i++) {
    ck_assert_msg(vit[i] == cases[i].of_vit, "vit: %s", names[i]);
    ck_assert_msg(others[i] == cases[i].of_others && none[i] == others[i], "others: %s", names[i]);
  }
}
END_TEST

/* ---- scores ---- */

START_TEST(scores_count_the_first_largest) {
  int32_t labels[5] = {0, 1, 2, 1, 0};
  const nps_dataset_t data = {.samples = 5, .labels = labels};
  const float logits[12] = {2,  2, 1, /* of equal ones the first: right */
                            2,  2, 1, /* label 1: wrong */
                            -1, 0, 3, 0, 100, -100};
  const int64_t samples[4] = {0, 1, 2, 3};
  const nps_score_t score = nps_logits_score(logits, 3, &data, samples, 4);
  const double equal = log(2 + exp(-1));
  ck_assert_int_eq(score.correct, 3);
  ck_assert_int_eq(score.total, 4);
  ck_assert_double_eq_tol(score.nll_sum, 2 * equal + log(1 + exp(-3) + exp(-4)), 1e-12);
}
END_TEST

START_TEST(logits_that_are_not_finite_have_no_nll) {
  int32_t labels[1] = {1};
  const nps_dataset_t data = {.samples = 1, .labels = labels};
  const float bad[4][3] = {{0, NAN, 0}, {NAN, 1, 0}, {0, INFINITY, 0}, {0, 1, -INFINITY}};
  const int64_t sample = 0;
  for (int i = 0; i < 4; i++) {
    const nps_score_t score = nps_logits_score(bad[i], 3, &data, &sample, 1);
    ck_assert(isnan(score.nll_sum));
    ck_assert_int_eq(score.correct, i >= 2); /* NaN is not the largest, nor smaller than another */
    ck_assert_int_eq(score.total, 1);
  }
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("fitness");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_set_timeout(cases, 60);
  tcase_add_test(cases, a_network_is_what_its_definition_says);
  tcase_add_test(cases, stages_see_their_own_tensors_only);
  tcase_add_test(cases, operations_are_counted);
  tcase_add_test(cases, heads_come_from_where_they_should);
  tcase_add_test(cases, linear_layers_are_found);
  tcase_add_test(cases, scores_count_the_first_largest);
  tcase_add_test(cases, logits_that_are_not_finite_have_no_nll);
  return run_tests("fitness", cases);
}
