#include "h5_internal.h"

static hid_t make_float(size_t sign, size_t exponent_at, size_t exponent, size_t mantissa, size_t bias) {
  hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  if (type < 0) return type;
  if (H5Tset_fields(type, sign, exponent_at, exponent, 0, mantissa) >= 0 && H5Tset_precision(type, 16) >= 0 &&
      H5Tset_size(type, 2) >= 0 && H5Tset_ebias(type, bias) >= 0)
    return type;
  H5Tclose(type);
  return H5I_INVALID_HID;
}

/* As h5py stores numpy's booleans. */
static hid_t make_bool(void) {
  const signed char no = 0, yes = 1;
  hid_t type = H5Tenum_create(H5T_STD_I8LE);
  if (type < 0) return type;
  if (H5Tenum_insert(type, "FALSE", &no) >= 0 && H5Tenum_insert(type, "TRUE", &yes) >= 0) return type;
  H5Tclose(type);
  return H5I_INVALID_HID;
}

static hid_t make_type(nps_dtype_t dtype) {
  switch (dtype) {
  case NPS_F64:
    return H5Tcopy(H5T_IEEE_F64LE);
  case NPS_F32:
    return H5Tcopy(H5T_IEEE_F32LE);
  case NPS_F16:
    return make_float(15, 10, 5, 10, 15);
  case NPS_BF16:
    return make_float(15, 7, 8, 7, 127);
  case NPS_I64:
    return H5Tcopy(H5T_STD_I64LE);
  case NPS_I32:
    return H5Tcopy(H5T_STD_I32LE);
  case NPS_I16:
    return H5Tcopy(H5T_STD_I16LE);
  case NPS_I8:
    return H5Tcopy(H5T_STD_I8LE);
  case NPS_U64:
    return H5Tcopy(H5T_STD_U64LE);
  case NPS_U32:
    return H5Tcopy(H5T_STD_U32LE);
  case NPS_U16:
    return H5Tcopy(H5T_STD_U16LE);
  case NPS_U8:
    return H5Tcopy(H5T_STD_U8LE);
  case NPS_BOOL:
    return make_bool();
  default:
    return H5I_INVALID_HID;
  }
}

nps_err_t nps_h5_types_make(nps_h5_t *file) {
  for (int i = 0; i < NPS_DTYPE_COUNT; i++) file->types[i] = H5I_INVALID_HID;
  for (int i = 0; i < NPS_DTYPE_COUNT; i++) {
    nps_dtype_t dtype = (nps_dtype_t)i;
    if (nps_dtype_kind(dtype) == NPS_KIND_OPAQUE) continue;
    file->types[i] = make_type(dtype);
    if (file->types[i] < 0)
      return nps_h5_fail(file, NPS_ERR_RUNTIME, "the HDF5 type for %s cannot be made", nps_dtype_name(dtype));
  }
  return NPS_OK;
}

void nps_h5_types_free(nps_h5_t *file) {
  for (int i = 0; i < NPS_DTYPE_COUNT; i++)
    if (file->types[i] >= 0) H5Tclose(file->types[i]);
}

bool nps_h5_types_find(const nps_h5_t *file, hid_t type, nps_dtype_t *dtype) {
  for (int i = 0; i < NPS_DTYPE_COUNT; i++) {
    if (file->types[i] < 0 || H5Tequal(type, file->types[i]) <= 0) continue;
    *dtype = (nps_dtype_t)i;
    return true;
  }
  return false;
}
