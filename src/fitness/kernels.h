/** @file kernels.h
 *  What forward passes do between matrix products, in float32 on rows of numbers. The same bits for every instruction
 *  set: sums are made in fixed lanes. Everything here is local. */
#ifndef NPS_FITNESS_KERNELS_H
#define NPS_FITNESS_KERNELS_H

#include "nps/base.h"

/** Rows that kernels read beyond their end are padded to a multiple of this many numbers. */
#define NPS_PAD 16

/** e^x, for |x| < 87 within 1e-7 of it (relative); 0 below −87, infinity from 88.4 on. In place. */
void nps_kernel_exp(float *x, int64_t n);

/** erf(x) within 4e-7 of it (relative), exactly ±1 from |x| = 3.9 on. In place. */
void nps_kernel_erf(float *x, int64_t n);

/** x = f(x + bias). In place. @param bias  [n] */
typedef void nps_activation_fn(float *x, const float *bias, int64_t n);

/** Find an activation by its name in transformers. @return NULL when it is not implemented */
nps_activation_fn *nps_activation_find(const char *name);

/** Give the names of all activations: "gelu, gelu_new, …". @return freed with free() */
char *nps_activation_names(void);

/** Set all rows to a bias, or to 0 without one / add it to all rows.
 *  @param c  [m][n], leading dimension ldc; @param bias  [n] or NULL */
void nps_kernel_fill(float *c, int64_t ldc, int64_t m, int64_t n, const float *bias);
void nps_kernel_add(float *c, int64_t ldc, int64_t m, int64_t n, const float *bias);

/** Normalise rows to mean 0 and variance 1, then scale and shift; mean and variance in float64.
 *  @param x  [m][n], leading dimension ldx; @param weight, bias  [n]; @param[out] y  [m][n] without gaps */
void nps_kernel_layer_norm(const float *x, int64_t ldx, int64_t m, int64_t n, const float *weight, const float *bias,
                           double eps, float *y);

/** Divide rows by their root mean square, made in float64, then scale.
 *  @param x  [m][n]; @param weight  [n]; @param[out] y  [m][n] */
void nps_kernel_rms_norm(const float *x, int64_t m, int64_t n, const float *weight, double eps, float *y);

/** x = cap·tanh(factor·x / cap), within cap·1e-7 of it. In place. */
void nps_kernel_cap(float *x, int64_t n, float factor, float cap);

/** x = x · y, element by element. */
void nps_kernel_multiply(float *x, const float *y, int64_t n);

/** Turn the heads of rows by their positions (RoPE): numbers c and c + width/2 of a head form a pair.
 *  @param x  [positions][heads][width], in place; @param cosine, sine  [positions][width/2] */
void nps_kernel_rope(float *x, int64_t positions, int64_t heads, int64_t width, const float *cosine, const float *sine);

/** One head of one sample's attention. */
typedef struct nps_attention {
  const float *query; /**< [width][queries], transposed; leading dimension ldq; NPS_PAD numbers more can be read */
  const float *keys;  /**< [tokens][width], leading dimension ldk */
  const float *value; /**< [tokens][width], leading dimension ldv */
  float *out;         /**< [queries][width], leading dimension ldo */
  float *scores;      /**< working memory: [tokens + 3][queries], the latter padded; aligned to 64 bytes */
  int64_t queries, tokens, width, ldq, ldk, ldv, ldo;
  float scale;
  const float *bias; /**< bias[i − t] is added to query i's score of token t, before it is scaled; it can be read from
                            i − t = 1 − tokens to queries − 1 + NPS_PAD; NULL: none */
  float cap;         /**< scores become cap·tanh(scale·score / cap); 0: scale·score */
  bool causal;       /**< the last query sees all tokens, each one before it one token less */
  int64_t window;    /**< with causal: a query sees at most so many tokens; 0: no bound */
  const int32_t *mask; /**< [tokens] 0: not seen by any query; NULL: all are */
} nps_attention_t;

/** out = softmax(scale · (queryᵀ · keysᵀ + bias), capped) · value, the softmax over the tokens that a query sees. One that sees none gets
 *  the mean of all. */
void nps_kernel_attention(const nps_attention_t *a);

#endif
