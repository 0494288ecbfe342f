#include "../nps_check.h"

#include "nps/fitness.h"
#include <math.h>
#include <sys/stat.h>

#include "../../src/fitness/kernels.h"

/* The kernels once more, compiled for the least instruction set. */
#undef NPS_VECTOR_CLONES
#define NPS_VECTOR_CLONES
#define nps_kernel_exp portable_exp
#define nps_kernel_erf portable_erf
#define nps_kernel_fill portable_fill
#define nps_kernel_add portable_add
#define nps_kernel_layer_norm portable_layer_norm
#define nps_kernel_attention portable_attention
#define nps_activation_find portable_activation_find
#define nps_activation_names portable_activation_names
#include "../../src/fitness/kernels.c"
#undef nps_kernel_exp
#undef nps_kernel_erf
#undef nps_kernel_layer_norm
#undef nps_kernel_attention
#undef nps_activation_find
#undef nps_activation_names

static uint64_t state;

static float random_float(void) { return (float)next_random(&state) / 1073741824.0F - 1.0F; } /* −1 to 1 */

static void fill_random(float *x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) x[i] = scale * random_float();
}

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

START_TEST(exp_and_erf_are_accurate) {
  enum { N = 100003 };
  static float x[N], e[N], f[N];
  for (int i = 0; i < N; i++) x[i] = e[i] = f[i] = (i % 2 ? 87.0F : 5.0F) * random_float();
  nps_kernel_exp(e, N);
  nps_kernel_erf(f, N);
  for (int i = 0; i < N; i++) {
    ck_assert_double_le(fabs((double)e[i] / exp((double)x[i]) - 1), 1e-7);
    ck_assert_double_le(fabs((double)f[i] - erf((double)x[i])), 4e-7 * fabs(erf((double)x[i])));
  }
}
END_TEST

START_TEST(exp_and_erf_have_ends) {
  float e[6] = {0, -88, -INFINITY, 89, INFINITY, NAN}, f[6] = {0, 4, -INFINITY, -1000, INFINITY, NAN};
  nps_kernel_exp(e, 6);
  nps_kernel_erf(f, 6);
  ck_assert(e[0] == 1 && e[1] == 0 && e[2] == 0 && e[3] == INFINITY && e[4] == INFINITY && isnan(e[5]));
  ck_assert(f[0] == 0 && f[1] == 1 && f[2] == -1 && f[3] == -1 && f[4] == 1 && isnan(f[5]));
}
END_TEST

static double gelu_tanh_of(double z) { return 0.5 * z * (1 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))); }
static double gelu_of(double z) { return 0.5 * z * (1 + erf(z / sqrt(2))); }
static double quick_of(double z) { return z / (1 + exp(-1.702 * z)); }
static double silu_of(double z) { return z / (1 + exp(-z)); }
static double relu_of(double z) { return z > 0 ? z : 0; }

START_TEST(activations_are_what_their_names_say) {
  static const struct {
    const char *name;
    double (*function)(double);
  } known[] = {{"gelu", gelu_of},
               {"gelu_python", gelu_of},
               {"gelu_new", gelu_tanh_of},
               {"gelu_fast", gelu_tanh_of},
               {"gelu_pytorch_tanh", gelu_tanh_of},
               {"gelu_python_tanh", gelu_tanh_of},
               {"gelu_accurate", gelu_tanh_of},
               {"quick_gelu", quick_of},
               {"silu", silu_of},
               {"swish", silu_of},
               {"relu", relu_of}};
  enum { N = 1003 };
  float x[N], bias[N], y[N];
  for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
    nps_activation_fn *function = nps_activation_find(known[k].name);
    ck_assert_ptr_nonnull(function);
    for (int i = 0; i < N; i++) x[i] = y[i] = (i % 3 ? 4.0F : 120.0F) * random_float();
    fill_random(bias, N, 1);
    function(y, bias, N);
    for (int i = 0; i < N; i++) {
      const double z = (double)(x[i] + bias[i]);
      ck_assert_double_le(fabs((double)y[i] - known[k].function(z)), 5e-7 * (1 + fabs(z)));
    }
  }
  ck_assert_ptr_null(nps_activation_find("mish"));
  char *names = nps_activation_names();
  ck_assert_ptr_nonnull(strstr(names, "gelu, "));
  free(names);
}
END_TEST

START_TEST(rows_are_normalised) {
  enum { M = 3, LARGEST = 133, LD = 140 };
  float x[M * LD], weight[LARGEST], bias[LARGEST], y[M * LARGEST];
  for (int n = 1; n <= LARGEST; n += 11) {
    fill_random(x, M * LD, 1);
    for (int i = 0; i < M * LD; i++) x[i] += 1000; /* a mean that would swallow the variance in float32 */
    fill_random(weight, n, 1);
    fill_random(bias, n, 1);
    nps_kernel_layer_norm(x, LD, M, n, weight, bias, 1e-5, y);
    for (int i = 0; i < M; i++) {
      double mean = 0, variance = 0;
      for (int j = 0; j < n; j++) mean += (double)x[i * LD + j] / n;
      for (int j = 0; j < n; j++) variance += ((double)x[i * LD + j] - mean) * ((double)x[i * LD + j] - mean) / n;
      for (int j = 0; j < n; j++) {
        const double z = ((double)x[i * LD + j] - mean) / sqrt(variance + 1e-5);
        ck_assert_double_eq_tol((double)y[i * n + j], z * (double)weight[j] + (double)bias[j], 2e-4);
      }
    }
  }
}
END_TEST

enum { TOKENS = 40, WIDTH = 40, QUERIES = 57 }; /* most; leading dimension of the queries */

static float query[WIDTH * QUERIES + NPS_PAD], keys[TOKENS * WIDTH], value[TOKENS * WIDTH];
static _Alignas(64) float scores[(TOKENS + 3) * 48];

static nps_attention_t attention_of(int64_t queries, int64_t tokens, int64_t width, float *out) {
  fill_random(query, WIDTH * QUERIES + NPS_PAD, 4);
  fill_random(keys, TOKENS * WIDTH, 4);
  fill_random(value, TOKENS * WIDTH, 1);
  return (nps_attention_t){query, keys, value, out, scores, queries, tokens, width, QUERIES, WIDTH, WIDTH, WIDTH, 0.3F};
}

static double attend_naively(const nps_attention_t *a, int64_t i, int64_t column) {
  double total = 0, sum = 0, most = -INFINITY, score[TOKENS];
  for (int64_t t = 0; t < a->tokens; t++) {
    score[t] = 0;
    for (int64_t c = 0; c < a->width; c++)
      score[t] += (double)a->query[c * a->ldq + i] * (double)a->keys[t * a->ldk + c] * (double)a->scale;
    most = fmax(most, score[t]);
  }
  for (int64_t t = 0; t < a->tokens; t++) {
    total += exp(score[t] - most);
    sum += exp(score[t] - most) * (double)a->value[t * a->ldv + column];
  }
  return sum / total;
}

START_TEST(attention_is_softmax_of_products) {
  static const int sizes[][3] = {{1, 17, 32}, {17, 17, 32}, {5, 1, 3}, {3, 16, 16},
                                 {2, 40, 17}, {40, 33, 40}, {4, 2, 1}};
  for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
    float out[TOKENS * WIDTH];
    const int width = sizes[k][2];
    for (int i = 0; i < TOKENS * WIDTH; i++) out[i] = 9;
    const nps_attention_t a = attention_of(sizes[k][0], sizes[k][1], width, out);
    nps_kernel_attention(&a);
    for (int i = 0; i < TOKENS * WIDTH; i++)
      if (i / WIDTH < sizes[k][0] && i % WIDTH < width)
        ck_assert_double_eq_tol((double)out[i], attend_naively(&a, i / WIDTH, i % WIDTH), 5e-6);
      else
        ck_assert(out[i] == 9);
  }
}
END_TEST

START_TEST(every_instruction_set_gives_the_same_bits) {
  enum { N = 1003 };
  float x[2][N], bias[N], out[2][TOKENS * WIDTH] = {{0}};
  static const char *const names[] = {"gelu", "gelu_new", "quick_gelu", "silu", "relu"};
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    fill_random(x[0], N, 9);
    fill_random(bias, N, 1);
    memcpy(x[1], x[0], sizeof x[0]);
    nps_activation_find(names[k])(x[0], bias, N);
    portable_activation_find(names[k])(x[1], bias, N);
    ck_assert_mem_eq(x[0], x[1], sizeof x[0]);
  }
  nps_kernel_layer_norm(bias, 100, 10, 99, bias, bias, 1e-6, x[0]);
  portable_layer_norm(bias, 100, 10, 99, bias, bias, 1e-6, x[1]);
  ck_assert_mem_eq(x[0], x[1], 990 * sizeof(float));
  nps_attention_t a = attention_of(13, 19, 37, out[0]);
  nps_kernel_attention(&a);
  a.out = out[1];
  portable_attention(&a);
  ck_assert_mem_eq(out[0], out[1], sizeof out[0]);
}
END_TEST

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
  return (nps_dataset_t){"data.h5", "g", SAMPLES, CHANNELS, IMAGE_H, IMAGE_W, inputs, labels};
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
  tcase_add_test(cases, exp_and_erf_are_accurate);
  tcase_add_test(cases, exp_and_erf_have_ends);
  tcase_add_test(cases, activations_are_what_their_names_say);
  tcase_add_test(cases, rows_are_normalised);
  tcase_add_test(cases, attention_is_softmax_of_products);
  tcase_add_test(cases, every_instruction_set_gives_the_same_bits);
  tcase_add_test(cases, a_network_is_what_its_definition_says);
  tcase_add_test(cases, operations_are_counted);
  tcase_add_test(cases, heads_come_from_where_they_should);
  tcase_add_test(cases, scores_count_the_first_largest);
  tcase_add_test(cases, logits_that_are_not_finite_have_no_nll);
  return run_tests("fitness", cases);
}
