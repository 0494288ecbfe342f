#include "kernels.h"

#include <math.h>
#include <string.h>

/* Independent partial sums and maxima, so that loops over them become vector instructions. */
#define LANES NPS_PAD

typedef union {
  float value;
  uint32_t bits;
} float_bits_t;

/* e^x = 2^n e^r with |r| ≤ ln 2 / 2. Adding 1.5·2^23 rounds to a whole number n, which then stands in the low bits.
 * The polynomial is the least largest relative error over r; n·LN2_HIGH is exact. */
static inline float exp_of(float x) {
  const float shift = 12582912.0F, ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  const float bounded = x > 89.0F ? 89.0F : x < -88.0F ? -88.0F : x;
  const float_bits_t rounded = {.value = bounded * 1.44269504F + shift};
  const float n = rounded.value - shift, r = (bounded - n * ln2_high) - n * ln2_low;
  float p = 1.381314476e-03F;
  p = p * r + 8.369418792e-03F;
  p = p * r + 4.166845605e-02F;
  p = p * r + 1.666651517e-01F;
  p = p * r + 4.999999404e-01F;
  const float_bits_t power = {.bits = (rounded.bits << 23) + UINT32_C(0x3f800000)};
  const float y = ((r * r) * p + r + 1.0F) * power.value;
  return x < -87.0F ? 0.0F : y;
}

/* A rational function in x², fitted for the least largest relative error up to 3.9; from there on erf rounds to ±1. */
static inline float erf_of(float x) {
  const float most = 3.9F, bounded = x > most ? most : x < -most ? -most : x, t = bounded * bounded;
  float p = 2.066468141e-06F, q = 3.827003457e-05F;
  p = p * t + 2.850634337e-04F;
  p = p * t + 3.738391912e-03F;
  p = p * t + 5.266822502e-02F;
  p = p * t + 1.896678507e-01F;
  p = p * t + 1.128379107e+00F;
  q = q * t + 1.157387625e-03F;
  q = q * t + 1.491436828e-02F;
  q = q * t + 1.138193905e-01F;
  q = q * t + 5.014215708e-01F;
  q = q * t + 1.0F;
  const float y = bounded * p / q;
  return x >= most ? 1.0F : x <= -most ? -1.0F : y;
}

NPS_VECTOR_CLONES
void nps_kernel_exp(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = exp_of(x[i]);
}

NPS_VECTOR_CLONES
void nps_kernel_erf(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = erf_of(x[i]);
}

/* ---- activations ---- */

static inline float sigmoid_of(float x) { return 1.0F / (1.0F + exp_of(-x)); }

NPS_VECTOR_CLONES
static void gelu(float *x, const float *bias, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float z = x[i] + bias[i];
    x[i] = 0.5F * z * (1.0F + erf_of(z * 0.707106781F));
  }
}

/* ½ z (1 + tanh u) = z sigmoid(2u). */
NPS_VECTOR_CLONES
static void gelu_tanh(float *x, const float *bias, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float z = x[i] + bias[i];
    x[i] = z * sigmoid_of(1.59576912F * (z + 0.044715F * (z * z * z)));
  }
}

NPS_VECTOR_CLONES
static void quick_gelu(float *x, const float *bias, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float z = x[i] + bias[i];
    x[i] = z * sigmoid_of(1.702F * z);
  }
}

NPS_VECTOR_CLONES
static void silu(float *x, const float *bias, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float z = x[i] + bias[i];
    x[i] = z * sigmoid_of(z);
  }
}

NPS_VECTOR_CLONES
static void relu(float *x, const float *bias, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float z = x[i] + bias[i];
    x[i] = z < 0 ? 0 : z;
  }
}

static const struct {
  const char *name;
  nps_activation_fn *function;
} activations[] = {
    {"gelu", gelu},
    {"gelu_python", gelu},
    {"gelu_new", gelu_tanh},
    {"gelu_pytorch_tanh", gelu_tanh},
    {"gelu_fast", gelu_tanh},
    {"gelu_python_tanh", gelu_tanh},
    {"gelu_accurate", gelu_tanh},
    {"quick_gelu", quick_gelu},
    {"silu", silu},
    {"swish", silu},
    {"relu", relu},
};

#define ACTIVATIONS (sizeof activations / sizeof *activations)

nps_activation_fn *nps_activation_find(const char *name) {
  for (size_t i = 0; i < ACTIVATIONS; i++)
    if (strcmp(activations[i].name, name) == 0) return activations[i].function;
  return NULL;
}

char *nps_activation_names(void) {
  nps_text_t t = {0};
  for (size_t i = 0; i < ACTIVATIONS; i++) nps_text_add(&t, "%s%s", i ? ", " : "", activations[i].name);
  return t.text;
}

/* ---- rows ---- */

void nps_kernel_fill(float *c, int64_t ldc, int64_t m, int64_t n, const float *bias) {
  for (int64_t i = 0; i < m; i++)
    if (bias)
      memcpy(c + i * ldc, bias, (size_t)n * sizeof *c);
    else
      memset(c + i * ldc, 0, (size_t)n * sizeof *c);
}

NPS_VECTOR_CLONES
void nps_kernel_add(float *c, int64_t ldc, int64_t m, int64_t n, const float *bias) {
  for (int64_t i = 0; i < m; i++) {
    float *row = c + i * ldc;
    for (int64_t j = 0; j < n; j++) row[j] += bias[j];
  }
}

static inline double sum_lanes(double *lane) {
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int j = 0; j < width; j++) lane[j] += lane[j + width];
  return lane[0];
}

static inline double sum_of(const float *x, int64_t n) {
  double lane[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j];
  for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j];
  return sum_lanes(lane);
}

static inline double variance_of(const float *x, int64_t n, double mean) {
  double lane[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] += ((double)x[i + j] - mean) * ((double)x[i + j] - mean);
  for (int j = 0; i + j < n; j++) lane[j] += ((double)x[i + j] - mean) * ((double)x[i + j] - mean);
  return sum_lanes(lane) / (double)n;
}

NPS_VECTOR_CLONES
void nps_kernel_layer_norm(const float *x, int64_t ldx, int64_t m, int64_t n, const float *weight, const float *bias,
                           double eps, float *y) {
  for (int64_t i = 0; i < m; i++) {
    const float *from = x + i * ldx;
    float *to = y + i * n;
    const double mean = sum_of(from, n) / (double)n;
    const float centre = (float)mean, factor = (float)(1.0 / sqrt(variance_of(from, n, mean) + eps));
    for (int64_t j = 0; j < n; j++) to[j] = (from[j] - centre) * factor * weight[j] + bias[j];
  }
}

static inline double squares_of(const float *x, int64_t n) {
  double lane[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
  for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
  return sum_lanes(lane);
}

NPS_VECTOR_CLONES
void nps_kernel_rms_norm(const float *x, int64_t m, int64_t n, const float *weight, double eps, float *y) {
  for (int64_t i = 0; i < m; i++) {
    const float *from = x + i * n;
    float *to = y + i * n;
    const float factor = (float)(1.0 / sqrt(squares_of(from, n) / (double)n + eps));
    for (int64_t j = 0; j < n; j++) to[j] = from[j] * factor * weight[j];
  }
}

/* tanh u = 2 sigmoid(2u) − 1. */
static inline float cap_of(float x, float factor, float cap) {
  return cap * (2.0F * sigmoid_of(2.0F * factor * x / cap) - 1.0F);
}

NPS_VECTOR_CLONES
void nps_kernel_cap(float *x, int64_t n, float factor, float cap) {
  for (int64_t i = 0; i < n; i++) x[i] = cap_of(x[i], factor, cap);
}

NPS_VECTOR_CLONES
void nps_kernel_multiply(float *x, const float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] *= y[i];
}

NPS_VECTOR_CLONES
void nps_kernel_rope(float *x, int64_t positions, int64_t heads, int64_t width, const float *cosine,
                     const float *sine) {
  const int64_t half = width / 2;
  for (int64_t p = 0; p < positions; p++)
    for (int64_t head = 0; head < heads; head++) {
      float *low = x + (p * heads + head) * width, *high = low + half;
      const float *c = cosine + p * half, *s = sine + p * half;
      for (int64_t i = 0; i < half; i++) {
        const float a = low[i], b = high[i];
        low[i] = a * c[i] - b * s[i];
        high[i] = b * c[i] + a * s[i];
      }
    }
}

/* ---- attention ---- */

/* Inlined, so that they are compiled for the instruction set of the function that they are part of. */
#define PART static inline __attribute__((always_inline))

/* Rows that are made at once, so that b is read from memory fewer times. */
enum { TOGETHER = 4 };

/* out[r][j] = Σ_c a[r·lda + c·step]·b[c][j] for rows r, at most TOGETHER, and `columns` columns, at most LANES; four terms at a
 * time. The order of a sum does not depend on the rows. */
PART void combine(int rows, int columns, int64_t k, const float *a, int64_t lda, int64_t step, const float *b,
                  int64_t ldb, float out[TOGETHER][LANES]) {
  float sum[TOGETHER][LANES];
  int64_t c = 0;
  for (int r = 0; r < rows; r++)
    for (int j = 0; j < LANES; j++) sum[r][j] = 0;
  for (; c + 4 <= k; c += 4) {
    const float *b0 = b + c * ldb, *b1 = b0 + ldb, *b2 = b1 + ldb, *b3 = b2 + ldb;
    for (int r = 0; r < rows; r++) {
      const float *x = a + r * lda + c * step, a0 = x[0], a1 = x[step], a2 = x[2 * step], a3 = x[3 * step];
      for (int j = 0; j < columns; j++) sum[r][j] += (a0 * b0[j] + a1 * b1[j]) + (a2 * b2[j] + a3 * b3[j]);
    }
  }
  for (; c < k; c++)
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < columns; j++) sum[r][j] += a[r * lda + c * step] * b[c * ldb + j];
  memcpy(out, sum, (size_t)rows * sizeof *sum);
}

/* scores[t][i] = key t · query i for some tokens: queries lie in the lanes, so that softmax over tokens needs no sum across
 * lanes. */
PART void make_scores_of(const nps_attention_t *a, int rows, int64_t t, int64_t lanes) {
  float product[TOGETHER][LANES];
  for (int64_t i = 0; i < lanes; i += LANES) {
    combine(rows, LANES, a->width, a->keys + t * a->ldk, a->ldk, 1, a->query + i, a->ldq, product);
    for (int r = 0; r < rows; r++) memcpy(a->scores + (t + r) * lanes + i, product[r], sizeof product[r]);
  }
}

PART void make_scores(const nps_attention_t *a, int64_t lanes) {
  int64_t t = 0;
  for (; t + TOGETHER <= a->tokens; t += TOGETHER) make_scores_of(a, TOGETHER, t, lanes);
  for (; t < a->tokens; t++) make_scores_of(a, 1, t, lanes);
}

/* Queries lie in the lanes: a token's biases for them follow each other. */
PART void add_bias(const nps_attention_t *a, int64_t lanes) {
  for (int64_t t = 0; a->bias && t < a->tokens; t++) {
    float *row = a->scores + t * lanes;
    const float *bias = a->bias - t;
    for (int64_t i = 0; i < lanes; i++) row[i] += bias[i];
  }
}

PART void cap_scores(const nps_attention_t *a, int64_t lanes) {
  for (int64_t i = 0; i < a->tokens * lanes; i++) a->scores[i] = cap_of(a->scores[i], a->scale, a->cap);
}

/* Puts the scores of tokens that a query does not see far below all others. */
PART void hide_unseen(const nps_attention_t *a, int64_t lanes) {
  const float far = -1e30F;
  for (int64_t t = 0; a->mask && t < a->tokens; t++)
    for (int64_t i = 0; !a->mask[t] && i < lanes; i++) a->scores[t * lanes + i] = far;
  const int64_t before = a->tokens - a->queries; /* query i sees the tokens up to before + i */
  for (int64_t t = before + 1; a->causal && t < a->tokens; t++)
    for (int64_t i = 0; i < t - before; i++) a->scores[t * lanes + i] = far;
  for (int64_t t = 0; a->window && t + a->window < a->tokens; t++)
    for (int64_t i = nps_max64(t + a->window - before, 0); i < a->queries; i++) a->scores[t * lanes + i] = far;
}

/* x[t][i] = e^(scale·(x[t][i] − the largest of column i)), and sum[i] = Σ_t of them.
 * @param x  [tokens][lanes], and a row more for the largest */
PART void exp_columns(float *x, int64_t tokens, int64_t lanes, float scale, double *sum) {
  float *most = x + tokens * lanes;
  memcpy(most, x, (size_t)lanes * sizeof *x);
  for (int64_t t = 1; t < tokens; t++)
    for (int64_t i = 0; i < lanes; i++) most[i] = x[t * lanes + i] > most[i] ? x[t * lanes + i] : most[i];
  for (int64_t i = 0; i < lanes; i++) sum[i] = 0;
  for (int64_t t = 0; t < tokens; t++) {
    float *row = x + t * lanes;
    for (int64_t i = 0; i < lanes; i++) row[i] = exp_of(scale * (row[i] - most[i]));
    for (int64_t i = 0; i < lanes; i++) sum[i] += (double)row[i];
  }
}

/* Columns from j on of some queries' outputs. */
PART void make_outputs_of(const nps_attention_t *a, int rows, int columns, int64_t i, int64_t j, int64_t lanes,
                          const double *sum) {
  float product[TOGETHER][LANES];
  combine(rows, columns, a->tokens, a->scores + i, 1, lanes, a->value + j, a->ldv, product);
  for (int r = 0; r < rows; r++) {
    const float factor = (float)(1.0 / sum[i + r]);
    for (int k = 0; k < columns; k++) a->out[(i + r) * a->ldo + j + k] = product[r][k] * factor;
  }
}

PART void make_rows(const nps_attention_t *a, int rows, int64_t i, int64_t lanes, const double *sum) {
  int64_t j = 0;
  for (; j + LANES <= a->width; j += LANES) make_outputs_of(a, rows, LANES, i, j, lanes, sum);
  if (j < a->width) make_outputs_of(a, rows, (int)(a->width - j), i, j, lanes, sum);
}

PART void make_outputs(const nps_attention_t *a, int64_t lanes, const double *sum) {
  int64_t i = 0;
  for (; i + TOGETHER <= a->queries; i += TOGETHER) make_rows(a, TOGETHER, i, lanes, sum);
  for (; i < a->queries; i++) make_rows(a, 1, i, lanes, sum);
}

NPS_VECTOR_CLONES
void nps_kernel_attention(const nps_attention_t *a) {
  const int64_t lanes = (a->queries + LANES - 1) / LANES * LANES;
  double *sum = (void *)(a->scores + (a->tokens + 1) * lanes);
  make_scores(a, lanes);
  add_bias(a, lanes);
  if (a->cap > 0) cap_scores(a, lanes);
  hide_unseen(a, lanes);
  exp_columns(a->scores, a->tokens, lanes, a->cap > 0 ? 1 : a->scale, sum);
  make_outputs(a, lanes, sum);
}
