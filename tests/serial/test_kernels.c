#include "../nps_check.h"

#include "../../src/fitness/kernels.h"
#include <math.h>

/* The kernels once more, compiled for the least instruction set. */
#undef NPS_VECTOR_CLONES
#define NPS_VECTOR_CLONES
#define nps_kernel_exp portable_exp
#define nps_kernel_erf portable_erf
#define nps_kernel_fill portable_fill
#define nps_kernel_add portable_add
#define nps_kernel_layer_norm portable_layer_norm
#define nps_kernel_rms_norm portable_rms_norm
#define nps_kernel_cap portable_cap
#define nps_kernel_multiply portable_multiply
#define nps_kernel_rope portable_rope
#define nps_kernel_attention portable_attention
#define nps_activation_find portable_activation_find
#define nps_activation_names portable_activation_names
#include "../../src/fitness/kernels.c"
#undef nps_kernel_exp
#undef nps_kernel_erf
#undef nps_kernel_fill
#undef nps_kernel_add
#undef nps_kernel_layer_norm
#undef nps_kernel_rms_norm
#undef nps_kernel_cap
#undef nps_kernel_multiply
#undef nps_kernel_rope
#undef nps_kernel_attention
#undef nps_activation_find
#undef nps_activation_names

static uint64_t state;

static float random_float(void) { return (float)next_random(&state) / 1073741824.0F - 1.0F; } /* −1 to 1 */

static void fill_random(float *x, int64_t n, float scale) {
  for (int64_t i = 0; i < n; i++) x[i] = scale * random_float();
}

static void set_up(void) { state = 7; }

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
  return (nps_attention_t){.query = query,
                           .keys = keys,
                           .value = value,
                           .out = out,
                           .scores = scores,
                           .queries = queries,
                           .tokens = tokens,
                           .width = width,
                           .ldq = QUERIES,
                           .ldk = WIDTH,
                           .ldv = WIDTH,
                           .ldo = WIDTH,
                           .scale = 0.3F};
}

static bool sees(const nps_attention_t *a, int64_t i, int64_t t) {
  const int64_t last = i + a->tokens - a->queries;
  const bool outside = a->causal && (t > last || (a->window && t <= last - a->window));
  return !outside && !(a->mask && a->mask[t] == 0);
}

static double attend_naively(const nps_attention_t *a, int64_t i, int64_t column) {
  double total = 0, sum = 0, most = -INFINITY, score[TOKENS];
  for (int64_t t = 0; t < a->tokens; t++) {
    score[t] = a->bias ? (double)a->bias[i - t] : 0;
    for (int64_t c = 0; c < a->width; c++)
      score[t] += (double)a->query[c * a->ldq + i] * (double)a->keys[t * a->ldk + c];
    score[t] *= (double)a->scale;
    if (a->cap > 0) score[t] = (double)a->cap * tanh(score[t] / (double)a->cap);
    if (sees(a, i, t)) most = fmax(most, score[t]);
  }
  for (int64_t t = 0; t < a->tokens; t++) {
    if (!sees(a, i, t)) continue;
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

START_TEST(attention_sees_what_it_may) {
  static const int sizes[][3] = {{1, 17, 32}, {17, 17, 32}, {5, 40, 3}, {40, 40, 40}, {3, 4, 16}};
  int32_t mask[TOKENS];
  for (int t = 0; t < TOKENS; t++) mask[t] = t % 5 != 3;
  for (size_t k = 0; k < 4 * (sizeof sizes / sizeof *sizes); k++) {
    float out[TOKENS * WIDTH];
    const int *size = sizes[k / 4];
    nps_attention_t a = attention_of(size[0], size[1], size[2], out);
    a.causal = true;
    a.mask = k % 2 ? mask : NULL;
    a.window = k / 2 % 2 ? 6 : 0;
    nps_kernel_attention(&a);
    for (int i = 0; i < size[0]; i++)
      for (int c = 0; c < size[2]; c++)
        ck_assert_double_eq_tol((double)out[i * WIDTH + c], attend_naively(&a, i, c), 5e-6);
  }
}
END_TEST

START_TEST(attention_has_biases_and_caps) {
  float bias[2 * TOKENS + NPS_PAD];
  fill_random(bias, 2 * TOKENS + NPS_PAD, 5);
  static const int sizes[][3] = {{17, 17, 32}, {1, 33, 8}, {40, 40, 5}, {3, 4, 16}};
  for (size_t k = 0; k < 4 * (sizeof sizes / sizeof *sizes); k++) {
    float out[TOKENS * WIDTH];
    const int *size = sizes[k / 4];
    nps_attention_t a = attention_of(size[0], size[1], size[2], out);
    a.bias = k % 2 ? bias + TOKENS - 1 : NULL;
    a.cap = k / 2 % 2 ? 2.5F : 0;
    a.causal = k % 3;
    nps_kernel_attention(&a);
    for (int i = 0; i < size[0]; i++)
      for (int c = 0; c < size[2]; c++)
        ck_assert_double_eq_tol((double)out[i * WIDTH + c], attend_naively(&a, i, c), 5e-6);
  }
}
END_TEST

START_TEST(numbers_are_capped) {
  enum { N = 1003 };
  float x[N], y[N];
  fill_random(x, N, 90);
  memcpy(y, x, sizeof x);
  nps_kernel_cap(y, N, 0.7F, 30);
  for (int i = 0; i < N; i++) ck_assert_double_eq_tol((double)y[i], 30 * tanh(0.7 * (double)x[i] / 30), 1e-5);
}
END_TEST

START_TEST(a_query_that_sees_nothing_gets_the_mean) {
  float out[TOKENS * WIDTH];
  const int32_t nothing[TOKENS] = {0};
  nps_attention_t a = attention_of(2, 8, 16, out);
  a.mask = nothing;
  nps_kernel_attention(&a);
  for (int c = 0; c < 16; c++) {
    double mean = 0;
    for (int t = 0; t < 8; t++) mean += (double)value[t * WIDTH + c] / 8;
    ck_assert_double_eq_tol((double)out[c], mean, 1e-6);
  }
}
END_TEST

START_TEST(rows_are_divided_by_their_root_mean_square) {
  enum { M = 3, MOST = 40 };
  for (int n = 1; n <= MOST; n++) {
    float x[M * MOST], weight[MOST], y[M * MOST];
    fill_random(x, M * MOST, 3);
    fill_random(weight, MOST, 1);
    nps_kernel_rms_norm(x, M, n, weight, 1e-5, y);
    for (int i = 0; i < M; i++) {
      double squares = 0;
      for (int j = 0; j < n; j++) squares += (double)x[i * n + j] * (double)x[i * n + j];
      for (int j = 0; j < n; j++)
        ck_assert_double_eq_tol((double)y[i * n + j],
                                (double)x[i * n + j] / sqrt(squares / n + 1e-5) * (double)weight[j], 2e-6);
    }
  }
}
END_TEST

/* A pair of numbers is a complex one, multiplied by e^(i·angle). */
START_TEST(heads_are_turned_by_position) {
  enum { POSITIONS = 5, HEADS = 3, HALF = 7, N = POSITIONS * HEADS * 2 * HALF };
  float x[N], y[N], cosine[POSITIONS * HALF], sine[POSITIONS * HALF];
  fill_random(x, N, 3);
  memcpy(y, x, sizeof x);
  for (int k = 0; k < POSITIONS * HALF; k++) {
    cosine[k] = cosf((float)k);
    sine[k] = sinf((float)k);
  }
  nps_kernel_rope(y, POSITIONS, HEADS, 2 * HALF, cosine, sine);
  for (int p = 0; p < POSITIONS; p++)
    for (int head = 0; head < HEADS; head++)
      for (int c = 0; c < HALF; c++) {
        const int at = (p * HEADS + head) * 2 * HALF + c;
        const double length = hypot((double)x[at], (double)x[at + HALF]);
        const double angle = atan2((double)x[at + HALF], (double)x[at]) + p * HALF + c;
        ck_assert_double_eq_tol((double)y[at], length * cos(angle), 2e-6);
        ck_assert_double_eq_tol((double)y[at + HALF], length * sin(angle), 2e-6);
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
  nps_kernel_rms_norm(bias, 10, 99, bias, 1e-6, x[0]);
  portable_rms_norm(bias, 10, 99, bias, 1e-6, x[1]);
  ck_assert_mem_eq(x[0], x[1], 990 * sizeof(float));
  nps_attention_t a = attention_of(13, 19, 37, out[0]);
  a.causal = true;
  a.bias = bias + 40;
  a.cap = 9;
  nps_kernel_attention(&a);
  a.out = out[1];
  portable_attention(&a);
  ck_assert_mem_eq(out[0], out[1], sizeof out[0]);
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("kernels");
  tcase_add_checked_fixture(cases, set_up, NULL);
  tcase_set_timeout(cases, 60);
  tcase_add_test(cases, exp_and_erf_are_accurate);
  tcase_add_test(cases, exp_and_erf_have_ends);
  tcase_add_test(cases, activations_are_what_their_names_say);
  tcase_add_test(cases, rows_are_normalised);
  tcase_add_test(cases, rows_are_divided_by_their_root_mean_square);
  tcase_add_test(cases, heads_are_turned_by_position);
  tcase_add_test(cases, attention_is_softmax_of_products);
  tcase_add_test(cases, attention_sees_what_it_may);
  tcase_add_test(cases, attention_has_biases_and_caps);
  tcase_add_test(cases, numbers_are_capped);
  tcase_add_test(cases, a_query_that_sees_nothing_gets_the_mean);
  tcase_add_test(cases, every_instruction_set_gives_the_same_bits);
  return run_tests("kernels", cases);
}
