#include "images.h"

#include <string.h>

nps_err_t nps_images_check(const nps_net_t *net, const nps_dataset_t *data, int64_t channels, const int64_t image[2]) {
  if (!data->inputs)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: expected images (inputs), as %s needs them, found texts", data->path,
                    data->group, net->body->path);
  if (data->channels == channels && data->height == image[0] && data->width == image[1]) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT,
                  "%s: group %s: expected images of %lldx%lldx%lld, as %s needs them, found "
                  "%lldx%lldx%lld (channels, height, width)",
                  data->path, data->group, (long long)channels, (long long)image[0], (long long)image[1],
                  net->body->path, (long long)data->channels, (long long)data->height, (long long)data->width);
}

void nps_images_cut(const nps_patches_t *p, const float *image, float *rows) {
  const int64_t size = p->channels * p->patch[0] * p->patch[1];
  const int64_t height = p->image[0], width = p->image[1];
  memset(rows, 0, (size_t)size * sizeof *rows);
  rows += size;
  for (int64_t gy = 0; gy < p->grid[0]; gy++)
    for (int64_t gx = 0; gx < p->grid[1]; gx++)
      for (int64_t c = 0; c < p->channels; c++)
        for (int64_t y = 0; y < p->patch[0]; y++) {
          const float *from = image + (c * height + gy * p->patch[0] + y) * width + gx * p->patch[1];
          memcpy(rows, from, (size_t)p->patch[1] * sizeof *rows);
          rows += p->patch[1];
        }
}
