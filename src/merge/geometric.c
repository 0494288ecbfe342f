/* Combinations Σ c_i x_i of a tensor's models, or of their task vectors, whose factors follow from norms and angles: from the
 * Gram matrix of the x_i, over the whole tensor, or row by row. In mergekit's conventions:
 * slerp (Shoemake 1985), nuslerp, multislerp, karcher (the Fréchet mean on the sphere; Karcher 1977), model_stock (Jang et al.,
 * arXiv 2403.19522). */
#include "combine.h"
#include "merge_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Gram matrices of tensors, or of their rows ---- */

typedef struct geometry geometry_t;

/* Gives the factors of the models from the Gram matrix. */
typedef void factors_fn(const nps_merge_tensor_t *tensor, geometry_t *g);

struct geometry {
  factors_fn *find_factors;
  const nps_merge_method_t *method;
  int models;             /* most of a tensor */
  nps_block_sums_t *sums; /* [pairs] of products */
  double *gram;           /* [T][T] of the tensor or row in work */
  double *norm;           /* [T] */
  double *factor;         /* [T] */
  double *spare;          /* [T][2] */
  double *wide;           /* [models][NPS_CHUNK] of task vectors */
  double *row;            /* [T][row_length] the row in work */
  double *row_factor;     /* [rows][T]; of other ranks' pieces never touched */
};

static int pairs_of(int models) { return models * (models + 1) / 2; }

static void *geometry_new(const nps_merge_spec_t *spec, factors_fn *find_factors) {
  geometry_t *g = nps_xcalloc(1, sizeof *g);
  const size_t models = (size_t)spec->model_count;
  *g = (geometry_t){.find_factors = find_factors, .method = spec->method, .models = spec->model_count};
  g->sums = nps_xcalloc((size_t)pairs_of(g->models), sizeof *g->sums);
  g->gram = nps_xcalloc(models * models, sizeof *g->gram);
  g->norm = nps_xcalloc(4 * models, sizeof *g->norm);
  g->factor = g->norm + models;
  g->spare = g->norm + 2 * models;
  if (spec->method->base == NPS_BASE_TASK_VECTORS) g->wide = nps_xcalloc(models * NPS_CHUNK, sizeof *g->wide);
  return g;
}

static void free_rows(geometry_t *g) {
  free(g->row);
  free(g->row_factor);
  g->row = g->row_factor = NULL;
}

static void geometry_free(void *state) {
  geometry_t *g = state;
  for (int k = 0; k < pairs_of(g->models); k++) nps_block_sums_free(&g->sums[k]);
  free_rows(g);
  free(g->sums);
  free(g->gram);
  free(g->norm);
  free(g->wide);
  free(g);
}

/* Whether a parameter is set somewhere. */
static bool is_set(const nps_merge_spec_t *spec, const char *name) {
  bool set = nps_settings_find(spec->settings, name) || (spec->module && nps_settings_find(spec->module, name));
  for (int s = 0; s < spec->slice_count && !set; s++)
    set = spec->slices[s].settings && nps_settings_find(spec->slices[s].settings, name);
  return set;
}

static size_t geometry_bytes(const nps_merge_spec_t *spec) {
  const size_t models = (size_t)spec->model_count;
  const nps_extent_t most = nps_merge_extent(spec->layout);
  const bool rows = is_set(spec, "filter_wise") || is_set(spec, "nuslerp_flatten");
  const size_t wide = spec->method->base == NPS_BASE_TASK_VECTORS ? models * NPS_CHUNK : 0;
  const size_t blocks = (size_t)((most.count + NPS_BLOCK - 1) / NPS_BLOCK);
  return sizeof(geometry_t) +
         (size_t)pairs_of(spec->model_count) * (sizeof(nps_block_sums_t) + blocks * sizeof(double)) +
         (models * models + 4 * models + wide + (rows ? models * (size_t)(most.row + most.rows) : 0)) * sizeof(double);
}

/* Whether each row of a tensor has factors of its own. */
static bool has_rows(const geometry_t *g, const nps_merge_tensor_t *tensor) {
  return g->method->whole_rows && g->method->whole_rows(tensor);
}

static void geometry_start(void *state, const nps_merge_tensor_t *tensor) {
  geometry_t *g = state;
  free_rows(g);
  if (!has_rows(g, tensor)) {
    for (int k = 0; k < pairs_of(tensor->models); k++) nps_block_sums_start(&g->sums[k], tensor->count);
    return;
  }
  const size_t models = (size_t)tensor->models, rows = (size_t)(tensor->count / nps_max64(tensor->row_length, 1));
  g->row = nps_xcalloc(models * (size_t)tensor->row_length, sizeof *g->row);
  g->row_factor = nps_xcalloc(models * rows, sizeof *g->row_factor);
}

/* A model's weights, or its task vector, in float64. */
static const double *values_of(const geometry_t *g, const nps_merge_chunk_t *chunk, int m) {
  return g->wide ? g->wide + (int64_t)m * NPS_CHUNK : chunk->theta[m];
}

static void widen_all(geometry_t *g, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  for (int m = 0; g->wide && m < tensor->models; m++)
    nps_tensor_widen(NPS_F32, chunk->tau[m], chunk->count, g->wide + (int64_t)m * NPS_CHUNK);
}

static void set_product(geometry_t *g, int models, int i, int j, double value) {
  g->gram[i * models + j] = g->gram[j * models + i] = value;
  if (i == j) g->norm[i] = sqrt(value);
}

/* The factors of the row that has been gathered. */
static void finish_row(geometry_t *g, const nps_merge_tensor_t *tensor, int64_t row) {
  const int models = tensor->models;
  const int64_t n = tensor->row_length;
  for (int i = 0; i < models; i++)
    for (int j = 0; j <= i; j++) {
      nps_lanes_t lanes = {{0}};
      nps_lanes_add_products(&lanes, g->row + i * n, g->row + j * n, n);
      set_product(g, models, i, j, nps_lanes_sum(&lanes));
    }
  g->find_factors(tensor, g);
  memcpy(g->row_factor + row * models, g->factor, (size_t)models * sizeof *g->factor);
}

static void scan_rows(geometry_t *g, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  const int64_t length = tensor->row_length;
  for (int64_t at = 0, n; at < chunk->count; at += n) {
    const int64_t row = (chunk->first + at) / length, place = (chunk->first + at) % length;
    n = nps_merge_within_row(tensor, chunk, at);
    for (int m = 0; m < tensor->models; m++)
      memcpy(g->row + m * length + place, values_of(g, chunk, m) + at, (size_t)n * sizeof(double));
    if (place + n == length) finish_row(g, tensor, row);
  }
}

static void scan_whole(geometry_t *g, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk) {
  nps_block_sums_t *sums = g->sums;
  for (int i = 0; i < tensor->models; i++)
    for (int j = 0; j <= i; j++, sums++) {
      nps_lanes_add_products(&sums->lanes, values_of(g, chunk, i), values_of(g, chunk, j), chunk->count);
      nps_block_sums_advance(sums, chunk->first, chunk->count, chunk->piece_ends);
    }
}

static void geometry_scan(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_merge_chunk_t *chunk) {
  (void)pass;
  geometry_t *g = state;
  widen_all(g, tensor, chunk);
  if (has_rows(g, tensor))
    scan_rows(g, tensor, chunk);
  else
    scan_whole(g, tensor, chunk);
}

static void geometry_reduce(void *state, const nps_merge_tensor_t *tensor, int pass, const nps_comm_t *comm) {
  (void)pass;
  geometry_t *g = state;
  nps_block_sums_t *sums = g->sums;
  if (has_rows(g, tensor)) return;
  for (int i = 0; i < tensor->models; i++)
    for (int j = 0; j <= i; j++) set_product(g, tensor->models, i, j, nps_block_sums_total(sums++, comm));
  g->find_factors(tensor, g);
}

static void geometry_merge(void *state, const nps_merge_tensor_t *tensor, const nps_merge_chunk_t *chunk, double *out,
                           int64_t *kept) {
  geometry_t *g = state;
  const bool rows = has_rows(g, tensor);
  widen_all(g, tensor, chunk);
  for (int64_t at = 0, n; at < chunk->count; at += n) {
    const double *factor = g->factor;
    n = chunk->count;
    if (rows) n = nps_merge_within_row(tensor, chunk, at);
    if (rows) factor = g->row_factor + (chunk->first + at) / tensor->row_length * tensor->models;
    nps_scale(values_of(g, chunk, 0) + at, factor[0], n, out + at);
    for (int m = 1; m < tensor->models; m++) nps_add_scaled(values_of(g, chunk, m) + at, factor[m], n, out + at);
  }
  for (int m = 0; g->wide && m < tensor->models; m++) kept[m] += chunk->count;
}

#define ON_GRAM_MATRICES                                                                                               \
  .element_seconds = 1e-9, .passes = nps_merge_one_pass, .state_free = geometry_free, .state_bytes = geometry_bytes,   \
  .start = geometry_start, .scan = geometry_scan, .reduce = geometry_reduce, .merge = geometry_merge

#define WEIGHT                                                                                                         \
  { .name = "weight", .per_model = true, .required = true, .least = -1e30, .most = 1e30 }

static double clamp(double x, double least, double most) { return fmin(fmax(x, least), most); }

/* The cosine between two models, of which lengths below `shortest` count as `instead`. */
static double cosine(const nps_merge_tensor_t *tensor, const geometry_t *g, int i, int j, double shortest,
                     double instead) {
  const double a = g->norm[i] > shortest ? g->norm[i] : instead, b = g->norm[j] > shortest ? g->norm[j] : instead;
  return g->gram[i * tensor->models + j] / (a * b);
}

/* From x_0 (t = 0) to x_1 (t = 1). */
static void interpolate(double t, bool parallel, double cosine, double *factor) {
  const double angle = acos(cosine);
  factor[0] = parallel ? 1 - t : sin((1 - t) * angle) / sin(angle);
  factor[1] = parallel ? t : sin(t * angle) / sin(angle);
}

/* ---- slerp ---- */

/* Nearly parallel tensors are interpolated linearly; shorter ones than SLERP_SHORTEST are not normalised. */
#define SLERP_PARALLEL 0.9995
#define SLERP_SHORTEST 1e-8

static void slerp_factors(const nps_merge_tensor_t *tensor, geometry_t *g) {
  const double c = cosine(tensor, g, 0, 1, SLERP_SHORTEST, 1);
  interpolate(tensor->param[0][0], fabs(c) > SLERP_PARALLEL, c, g->factor);
}

static void *slerp_new(const nps_merge_spec_t *spec) { return geometry_new(spec, slerp_factors); }

const nps_merge_method_t nps_method_slerp = {
    .name = "slerp",
    .summary = "spherical interpolation from the base (t = 0) to one model (t = 1)",
    .base = NPS_BASE_FIRST,
    .min_models = 2,
    .max_models = 2,
    .params = {{.name = "t", .required = true, .least = -1e30, .most = 1e30}},
    .param_count = 1,
    .state_new = slerp_new,
    ON_GRAM_MATRICES,
};

/* ---- nuslerp ---- */

enum { NUSLERP_WEIGHT, NUSLERP_FLATTEN, NUSLERP_ROW_WISE };

#define NUSLERP_SHORTEST 1e-7
#define NUSLERP_PARALLEL 1e-16 /* of 1 − cos² */
#define NUSLERP_TINY_WEIGHT 1e-6

static bool nuslerp_by_rows(const nps_merge_tensor_t *tensor) { return tensor->param[NUSLERP_FLATTEN][0] == 0; }

static bool nuslerp_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  if (!nuslerp_by_rows(tensor) || tensor->param[NUSLERP_ROW_WISE][0] == 0) return true;
  snprintf(why, 160, "nuslerp_row_wise: true, which takes the angles of columns, is not built yet");
  return false;
}

static void nuslerp_factors(const nps_merge_tensor_t *tensor, geometry_t *g) {
  const double *weight = tensor->param[NUSLERP_WEIGHT], total = weight[0] + weight[1];
  const double t = fabs(total) < NUSLERP_TINY_WEIGHT ? 0.5 : weight[1] / total;
  const double c = clamp(cosine(tensor, g, 0, 1, NUSLERP_SHORTEST, NUSLERP_SHORTEST), -1, 1);
  interpolate(t, 1 - c * c <= NUSLERP_PARALLEL, c, g->factor);
}

static void *nuslerp_new(const nps_merge_spec_t *spec) { return geometry_new(spec, nuslerp_factors); }

#define NUSLERP                                                                                                        \
  .name = "nuslerp", .whole_rows = nuslerp_by_rows, .min_models = 2, .max_models = 2,                                  \
  .params = {[NUSLERP_WEIGHT] = WEIGHT,                                                                                \
             [NUSLERP_FLATTEN] = {.name = "nuslerp_flatten",                                                           \
                                  .kind = NPS_PARAM_CHOICE,                                                            \
                                  .fallback = 1,                                                                       \
                                  .choices = nps_choices_bool},                                                        \
             [NUSLERP_ROW_WISE] = {.name = "nuslerp_row_wise",                                                         \
                                   .kind = NPS_PARAM_CHOICE,                                                           \
                                   .choices = nps_choices_bool}},                                                      \
  .param_count = 3, .check = nuslerp_check, .state_new = nuslerp_new

static const nps_merge_method_t nuslerp_of_task_vectors = {
    NUSLERP,
    .summary = "spherical interpolation of two task vectors",
    .base = NPS_BASE_TASK_VECTORS,
    ON_GRAM_MATRICES,
};

const nps_merge_method_t nps_method_nuslerp = {
    NUSLERP,
    .summary = "spherical interpolation of two models, or of their task vectors",
    .base = NPS_BASE_LISTED,
    .with_base = &nuslerp_of_task_vectors,
    ON_GRAM_MATRICES,
};

/* ---- multislerp ---- */

enum { MULTISLERP_WEIGHT, MULTISLERP_NORMALIZE, MULTISLERP_EPS };

static bool multislerp_check(const nps_merge_tensor_t *tensor, const nps_merge_tensor_t *first, char why[160]) {
  (void)first;
  if (tensor->param[MULTISLERP_NORMALIZE][0] == 0 ||
      nps_merge_sum_of(tensor->param[MULTISLERP_WEIGHT], tensor->models) != 0)
    return true;
  snprintf(why, 160, "the weights add up to 0, and normalize_weights: true divides by their sum");
  return false;
}

/* m = Σ w_i u_i, u_i = x_i/(‖x_i‖ + ε); the result is m/‖m‖ · Σ w_i‖x_i‖. What mergekit adds in the space tangent to m,
 * Σ w_i (u_i − (u_i·m̂) m̂) = m − ‖m‖ m̂, is 0 but for rounding. Without a direction: Σ w_i x_i. */
static void multislerp_factors(const nps_merge_tensor_t *tensor, geometry_t *g) {
  const int models = tensor->models;
  const double *weight = tensor->param[MULTISLERP_WEIGHT], eps = tensor->param[MULTISLERP_EPS][0];
  const double divisor = tensor->param[MULTISLERP_NORMALIZE][0] != 0 ? nps_merge_sum_of(weight, models) : 1;
  double square = 0, length = 0;
  for (int i = 0; i < models; i++) {
    g->factor[i] = weight[i] / divisor;
    g->spare[i] = g->norm[i] > 0 ? g->factor[i] / (g->norm[i] + eps) : 0;
    length += g->factor[i] * g->norm[i];
  }
  for (int i = 0; i < models; i++)
    for (int j = 0; j < models; j++) square += g->spare[i] * g->spare[j] * g->gram[i * models + j];
  const double mean = sqrt(fmax(square, 0));
  if (models == 1) g->factor[0] = 1;
  if (models == 1 || mean <= eps) return;
  for (int i = 0; i < models; i++) g->factor[i] = g->spare[i] / mean * cos(eps) * length;
}

static void *multislerp_new(const nps_merge_spec_t *spec) { return geometry_new(spec, multislerp_factors); }

#define MULTISLERP                                                                                                     \
  .name = "multislerp", .min_models = 1,                                                                               \
  .params = {[MULTISLERP_WEIGHT] = WEIGHT,                                                                             \
             [MULTISLERP_NORMALIZE] = {.name = "normalize_weights",                                                    \
                                       .kind = NPS_PARAM_CHOICE,                                                       \
                                       .fallback = 1,                                                                  \
                                       .choices = nps_choices_bool},                                                   \
             [MULTISLERP_EPS] = {.name = "eps", .fallback = 1e-8, .least = 0, .most = 1}},                             \
  .param_count = 3, .check = multislerp_check, .state_new = multislerp_new

static const nps_merge_method_t multislerp_of_task_vectors = {
    MULTISLERP,
    .summary = "weighted mean direction of the task vectors, at their mean length",
    .base = NPS_BASE_TASK_VECTORS,
    ON_GRAM_MATRICES,
};

const nps_merge_method_t nps_method_multislerp = {
    MULTISLERP,
    .summary = "weighted mean direction of the models, or of their task vectors, at their mean length",
    .base = NPS_BASE_LISTED,
    .with_base = &multislerp_of_task_vectors,
    ON_GRAM_MATRICES,
};

/* ---- karcher ---- */

enum { KARCHER_MAX_ITER, KARCHER_TOL };

#define KARCHER_OPPOSITE 1e-6 /* of an angle, from π */

/* On combinations Σ c_i u_i of unit vectors: their inner products with one of them, and their length. */

static double along(const nps_merge_tensor_t *tensor, const geometry_t *g, const double *c, int i) {
  double sum = 0;
  for (int j = 0; j < tensor->models; j++)
    if (c[j] != 0) sum += c[j] * (g->gram[i * tensor->models + j] / (g->norm[i] * g->norm[j]));
  return sum;
}

static double length_of(const nps_merge_tensor_t *tensor, const geometry_t *g, const double *c) {
  double sum = 0;
  for (int i = 0; i < tensor->models; i++)
    if (c[i] != 0) sum += c[i] * along(tensor, g, c, i);
  return sqrt(fmax(sum, 0));
}

static void divide(double *c, int n, double by) {
  for (int i = 0; i < n; i++) c[i] /= by;
}

/* tangent ← Σ over models present of share · log_mean(u_i), the sphere's logarithm at the mean, which one opposite to the
 * mean does not have. */
static void find_tangent(const nps_merge_tensor_t *tensor, const geometry_t *g, double tol, double share,
                         const double *mean, double *tangent) {
  for (int i = 0; i < tensor->models; i++) tangent[i] = 0;
  for (int i = 0; i < tensor->models; i++) {
    if (!(g->norm[i] > tol)) continue;
    const double c = clamp(along(tensor, g, mean, i), -1, 1), angle = acos(c);
    if (angle <= tol || angle > M_PI - KARCHER_OPPOSITE) continue;
    const double by = share * (angle / sin(angle));
    tangent[i] += by;
    for (int j = 0; j < tensor->models; j++) tangent[j] -= by * c * mean[j];
  }
}

/* One step along the tangent. @return false when there is nowhere to go */
static bool step(const nps_merge_tensor_t *tensor, const geometry_t *g, double tol, double share, double *mean,
                 double *tangent) {
  const int models = tensor->models;
  find_tangent(tensor, g, tol, share, mean, tangent);
  const double way = length_of(tensor, g, tangent);
  if (way <= tol) return false;
  for (int i = 0; i < models; i++) mean[i] = cos(way) * mean[i] + sin(way) * (tangent[i] / way);
  const double length = length_of(tensor, g, mean);
  if (length > tol) divide(mean, models, length);
  return true;
}

/* The mean of the unit vectors to models longer than tol, at the mean length of all. */
static void karcher_factors(const nps_merge_tensor_t *tensor, geometry_t *g) {
  const int models = tensor->models;
  const double tol = tensor->param[KARCHER_TOL][0];
  double *mean = g->factor, *tangent = g->spare;
  int present = 0, first = 0;
  for (int i = models - 1; i >= 0; i--) {
    mean[i] = g->norm[i] > tol;
    present += g->norm[i] > tol;
    if (g->norm[i] > tol) first = i;
  }
  if (models == 1) mean[0] = 1;
  if (models == 1 || present == 0) return;
  divide(mean, models, present);
  const double length = length_of(tensor, g, mean);
  if (length <= tol)
    for (int i = 0; i < models; i++) mean[i] = i == first;
  else
    divide(mean, models, length);
  for (int k = 0; k < (int)tensor->param[KARCHER_MAX_ITER][0]; k++)
    if (!step(tensor, g, tol, 1.0 / present, mean, tangent)) break;
  const double scale = nps_merge_sum_of(g->norm, models) / models;
  for (int i = 0; i < models; i++)
    if (mean[i] != 0) mean[i] *= scale / g->norm[i];
}

static void *karcher_new(const nps_merge_spec_t *spec) { return geometry_new(spec, karcher_factors); }

#define KARCHER                                                                                                        \
  .name = "karcher", .summary = "mean of the models' directions on the sphere, at their mean length", .min_models = 1, \
  .params = {[KARCHER_MAX_ITER] = {.name = "max_iter", .fallback = 10, .least = 0, .most = 1e6},                       \
             [KARCHER_TOL] = {.name = "tol", .fallback = 1e-5, .least = 0, .most = 1}},                                \
  .param_count = 2, .state_new = karcher_new

static const nps_merge_method_t karcher_with_base = {KARCHER, .base = NPS_BASE_FIRST, ON_GRAM_MATRICES};

const nps_merge_method_t nps_method_karcher = {
    KARCHER,
    .base = NPS_BASE_LISTED,
    .with_base = &karcher_with_base,
    ON_GRAM_MATRICES,
};

/* ---- model_stock ---- */

#define STOCK_SHORTEST 1e-6 /* product of two lengths */
#define STOCK_SINGULAR 1e-6

static bool model_stock_by_rows(const nps_merge_tensor_t *tensor) { return tensor->param[0][0] != 0; }

/* θ0 + t·mean(τ_i), t = Tc/(1 + (T − 1)c), c the mean cosine of two task vectors. */
static void model_stock_factors(const nps_merge_tensor_t *tensor, geometry_t *g) {
  const int models = tensor->models;
  double sum = 0;
  for (int i = 0; i < models; i++)
    for (int j = 0; j < i; j++)
      sum += clamp(g->gram[i * models + j] / fmax(g->norm[i] * g->norm[j], STOCK_SHORTEST), -1, 1);
  const double c = sum / (pairs_of(models) - models), divisor = 1 + (models - 1) * c;
  const double t = fabs(divisor) < STOCK_SINGULAR ? 0 : models * c / divisor;
  for (int i = 0; i < models; i++) g->factor[i] = t / models;
}

static void *model_stock_new(const nps_merge_spec_t *spec) { return geometry_new(spec, model_stock_factors); }

const nps_merge_method_t nps_method_model_stock = {
    .name = "model_stock",
    .summary = "base + the mean of the task vectors, as far as their angles agree",
    .base = NPS_BASE_TASK_VECTORS,
    .min_models = 2,
    .params = {{.name = "filter_wise", .kind = NPS_PARAM_CHOICE, .choices = nps_choices_bool}},
    .param_count = 1,
    .whole_rows = model_stock_by_rows,
    .state_new = model_stock_new,
    ON_GRAM_MATRICES,
};
