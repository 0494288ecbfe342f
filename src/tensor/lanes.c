#include "nps/tensor.h"

#define LANES 16

NPS_VECTOR_CLONES
void nps_lanes_add_squares(nps_lanes_t *lanes, const float *x, int64_t n) {
  double lane[LANES];
  int64_t i = 0;
  for (int j = 0; j < LANES; j++) lane[j] = lanes->lane[j];
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
  for (int j = 0; i + j < n; j++) lane[j] += (double)x[i + j] * (double)x[i + j];
  for (int j = 0; j < LANES; j++) lanes->lane[j] = lane[j];
}

NPS_VECTOR_CLONES
void nps_lanes_add_products(nps_lanes_t *lanes, const double *x, const double *y, int64_t n) {
  double lane[LANES];
  int64_t i = 0;
  for (int j = 0; j < LANES; j++) lane[j] = lanes->lane[j];
  for (; i + LANES <= n; i += LANES)
    for (int j = 0; j < LANES; j++) lane[j] += x[i + j] * y[i + j];
  for (int j = 0; i + j < n; j++) lane[j] += x[i + j] * y[i + j];
  for (int j = 0; j < LANES; j++) lanes->lane[j] = lane[j];
}

double nps_lanes_sum(const nps_lanes_t *lanes) {
  double half[LANES];
  for (int j = 0; j < LANES; j++) half[j] = lanes->lane[j];
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int j = 0; j < width; j++) half[j] += half[j + width];
  return half[0];
}
