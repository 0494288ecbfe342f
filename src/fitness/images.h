/** @file images.h
 *  What networks of images share. Everything here is local. */
#ifndef NPS_FITNESS_IMAGES_H
#define NPS_FITNESS_IMAGES_H

#include "fitness_internal.h"

/** Images in patches; extents are [height, width]. */
typedef struct nps_patches {
  int64_t channels, image[2], patch[2], grid[2]; /**< grid: patches that fit */
} nps_patches_t;

/** Check that data are such images. NPS_ERR_INPUT. */
nps_err_t nps_images_check(const nps_net_t *net, const nps_dataset_t *data, int64_t channels, const int64_t image[2]);

/** Make a row of each patch of an image, after a row of zeros for the class token.
 *  @param image  [channels][height][width]; @param[out] rows  [1 + patches][channels·height·width of a patch] */
void nps_images_cut(const nps_patches_t *p, const float *image, float *rows);

#endif
