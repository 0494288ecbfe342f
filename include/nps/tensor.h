/** @file tensor.h
 *  Element types, shapes, conversion and checks of raw tensor data. Layer 1. Everything here is local.
 *
 *  Raw data is little-endian, as in safetensors files. Vectorised code gives the same bits as the portable one. */
#ifndef NPS_TENSOR_H
#define NPS_TENSOR_H

#include "nps/base.h"

/** Dimensions a tensor may have. */
#define NPS_MAX_DIMS 8

/** Elements in a block: sums over tensors are made over blocks of this size, then over blocks in order, so that they do
 *  not depend on how tensors are cut. Cuts lie on multiples of it, counted from the tensor's start. */
#define NPS_BLOCK 65536

/** Every element type: name here, name in safetensors, bytes, kind. Kinds: FLOAT can be merged; EXACT (integers,
 *  booleans) is copied; OPAQUE (fp8 and smaller) is known but refused. */
#define NPS_DTYPES(X)                                                                                                  \
  X(F64, "F64", 8, FLOAT)                                                                                              \
  X(F32, "F32", 4, FLOAT)                                                                                              \
  X(F16, "F16", 2, FLOAT)                                                                                              \
  X(BF16, "BF16", 2, FLOAT)                                                                                            \
  X(I64, "I64", 8, EXACT)                                                                                              \
  X(I32, "I32", 4, EXACT)                                                                                              \
  X(I16, "I16", 2, EXACT)                                                                                              \
  X(I8, "I8", 1, EXACT)                                                                                                \
  X(U64, "U64", 8, EXACT)                                                                                              \
  X(U32, "U32", 4, EXACT)                                                                                              \
  X(U16, "U16", 2, EXACT)                                                                                              \
  X(U8, "U8", 1, EXACT)                                                                                                \
  X(BOOL, "BOOL", 1, EXACT)                                                                                            \
  X(F8_E4M3, "F8_E4M3", 1, OPAQUE)                                                                                     \
  X(F8_E5M2, "F8_E5M2", 1, OPAQUE)                                                                                     \
  X(F8_E8M0, "F8_E8M0", 1, OPAQUE)

typedef enum nps_dtype {
#define X(name, text, size, kind) NPS_##name,
  NPS_DTYPES(X)
#undef X
      NPS_DTYPE_COUNT
} nps_dtype_t;

typedef enum nps_dtype_kind { NPS_KIND_FLOAT, NPS_KIND_EXACT, NPS_KIND_OPAQUE } nps_dtype_kind_t;

/** Give bytes an element / the safetensors name ("BF16") / the kind of a type. */
size_t nps_dtype_size(nps_dtype_t dtype);
const char *nps_dtype_name(nps_dtype_t dtype);
nps_dtype_kind_t nps_dtype_kind(nps_dtype_t dtype);

/** Find a type by its safetensors name ("BF16").
 *  @return false when unknown */
bool nps_dtype_from_name(const char *name, nps_dtype_t *dtype);

/** Find a floating-point type by the name users write ("bfloat16", "float32", "float16", "float64", "bf16", …).
 *  @return false when unknown or not a floating-point type */
bool nps_dtype_from_user_name(const char *name, nps_dtype_t *dtype);

/** Multiply the extents of a shape, checked.
 *  @param ndim   number of dimensions, 0 to NPS_MAX_DIMS (0: one element)
 *  @param[out] count  elements
 *  @return false when an extent is negative or the product does not fit in int64_t */
bool nps_shape_count(int ndim, const int64_t *shape, int64_t *count);

/** Write a shape as "[32000, 2048]".
 *  @param[out] out  [192] characters
 *  @return out */
const char *nps_shape_format(int ndim, const int64_t *shape, char out[192]);

/** Widen stored floating-point values to float64: exact.
 *  @param dtype  F64, F32, F16 or BF16
 *  @param src    [n] elements of it
 *  @param[out] dst  [n] */
void nps_tensor_widen(nps_dtype_t dtype, const void *src, int64_t n, double *dst);

/** Widen stored values of at most 32 bits to float32: exact. dtype: F32, F16 or BF16. */
void nps_tensor_widen_f32(nps_dtype_t dtype, const void *src, int64_t n, float *dst);

/** Round float64 values to a stored type once, to nearest even (overflow gives infinity, as IEEE 754 says).
 *  @param src  [n]
 *  @param dtype  F64, F32, F16 or BF16
 *  @param[out] dst  [n] elements of it */
void nps_tensor_narrow(const double *src, int64_t n, nps_dtype_t dtype, void *dst);

/** Find the first NaN or infinity of stored values.
 *  @return its index, or -1 when all are finite (always for types that are not floating-point) */
int64_t nps_tensor_find_nonfinite(nps_dtype_t dtype, const void *src, int64_t n);

/** Round values to whole multiples of one scale: code i is x_i / scale to the nearest (ties to even), the scale
 *  fl32(max |x| / (2^(bits−1) − 1)). Infinity gives the scale infinity.
 *  @param x     [n]; @param bits  2 to 16
 *  @param[out] codes  [n] of magnitude at most 2^(bits−1) − 1
 *  @return the scale; 0: all codes are 0 */
float nps_quantise(const float *x, int64_t n, int bits, int16_t *codes);

/** Give back what codes stand for: fl32(scale · code). @param[out] x  [n] */
void nps_dequantise(float scale, const int16_t *codes, int64_t n, float *x);

/** A matrix of low rank: x_ij = fl32(Σ_k u_ki·v_kj), products exact, sums in float64 with k ascending: the same bits on every
 *  machine. Borrowed. */
typedef struct nps_low_rank {
  int64_t rank, rows, columns;
  const float *u; /**< [rank][rows] */
  const float *v; /**< [rank][columns] */
} nps_low_rank_t;

/** Make entries [first, first + n) of it, in row-major order. @param[out] out  [n] */
void nps_low_rank_entries(const nps_low_rank_t *matrix, int64_t first, int64_t n, float *out);

/** Add up f(x) over part of a block in 16 interleaved lanes: lane j takes the elements whose index in the block is j
 *  modulo 16, in order. The result does not depend on how the block was cut into calls whose starts are multiples of
 *  16. Zero-initialise at the start of a block. */
typedef struct nps_lanes {
  double lane[16];
} nps_lanes_t;

/** Add x_i² / x_i·y_i for i in [0, n). */
void nps_lanes_add_squares(nps_lanes_t *lanes, const float *x, int64_t n);
void nps_lanes_add_products(nps_lanes_t *lanes, const double *x, const double *y, int64_t n);

/** Sum the lanes, in a fixed order. */
double nps_lanes_sum(const nps_lanes_t *lanes);

/** Hash a name with 64-bit FNV-1a. */
uint64_t nps_name_hash(const char *name);

#endif
