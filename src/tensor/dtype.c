#include "nps/tensor.h"

#include <stdio.h>
#include <string.h>

static const struct {
  const char *name;
  size_t size;
  nps_dtype_kind_t kind;
} dtypes[NPS_DTYPE_COUNT] = {
#define X(name, text, size, kind) {text, size, NPS_KIND_##kind},
    NPS_DTYPES(X)
#undef X
};

static const struct {
  const char *name;
  nps_dtype_t dtype;
} user_names[] = {
    {"float32", NPS_F32}, {"float", NPS_F32},   {"fp32", NPS_F32}, {"f32", NPS_F32},  {"bfloat16", NPS_BF16},
    {"bf16", NPS_BF16},   {"float16", NPS_F16}, {"half", NPS_F16}, {"fp16", NPS_F16}, {"f16", NPS_F16},
    {"float64", NPS_F64}, {"double", NPS_F64},  {"fp64", NPS_F64}, {"f64", NPS_F64},
};

size_t nps_dtype_size(nps_dtype_t dtype) { return dtypes[dtype].size; }

const char *nps_dtype_name(nps_dtype_t dtype) { return dtypes[dtype].name; }

nps_dtype_kind_t nps_dtype_kind(nps_dtype_t dtype) { return dtypes[dtype].kind; }

bool nps_dtype_from_name(const char *name, nps_dtype_t *dtype) {
  for (int i = 0; i < NPS_DTYPE_COUNT; i++)
    if (strcmp(dtypes[i].name, name) == 0) {
      *dtype = (nps_dtype_t)i;
      return true;
    }
  return false;
}

bool nps_dtype_from_user_name(const char *name, nps_dtype_t *dtype) {
  const char prefix[] = "torch.";
  if (strncmp(name, prefix, sizeof prefix - 1) == 0) name += sizeof prefix - 1;
  for (size_t i = 0; i < sizeof user_names / sizeof *user_names; i++)
    if (strcmp(user_names[i].name, name) == 0) {
      *dtype = user_names[i].dtype;
      return true;
    }
  return false;
}

bool nps_shape_count(int ndim, const int64_t *shape, int64_t *count) {
  if (ndim < 0 || ndim > NPS_MAX_DIMS) return false;
  bool empty = false;
  int64_t product = 1;
  for (int i = 0; i < ndim; i++) {
    if (shape[i] < 0) return false;
    if (shape[i] == 0)
      empty = true;
    else if (__builtin_mul_overflow(product, shape[i], &product))
      return false;
  }
  *count = empty ? 0 : product;
  return true;
}

const char *nps_shape_format(int ndim, const int64_t *shape, char out[192]) {
  int at = snprintf(out, 192, "[");
  for (int i = 0; i < ndim; i++) at += snprintf(out + at, 192 - (size_t)at, i ? ", %lld" : "%lld", (long long)shape[i]);
  snprintf(out + at, 192 - (size_t)at, "]");
  return out;
}

uint64_t nps_name_hash(const char *name) {
  uint64_t hash = UINT64_C(0xcbf29ce484222325);
  for (const unsigned char *c = (const unsigned char *)name; *c; c++) hash = (hash ^ *c) * UINT64_C(0x100000001b3);
  return hash;
}
