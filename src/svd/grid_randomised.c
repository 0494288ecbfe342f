/* As randomised.c, on a grid, in float64. Subspaces are made orthonormal by the eigenvectors of their small Gram matrix. */
#include "grid_internal.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
  nps_dmat_t thin, row; /* [l][m] */
  nps_dmat_t q;         /* [l][n] */
  nps_dmat_t w;         /* [l][l] */
  double *value;        /* [l] of row·rowᵀ, descending */
} space_t;

static nps_err_t make_room(const nps_dtriples_t *t, int64_t l, space_t *s) {
  const nps_grid_t *grid = t->a->grid;
  s->value = nps_xcalloc((size_t)l, sizeof *s->value);
  NPS_TRY(nps_dmat_new(grid, l, t->m, &s->thin));
  NPS_TRY(nps_dmat_new(grid, l, t->m, &s->row));
  NPS_TRY(nps_dmat_new(grid, l, t->n, &s->q));
  return nps_dmat_new(grid, l, l, &s->w);
}

static void free_room(space_t *s) {
  nps_dmat_free(&s->thin);
  nps_dmat_free(&s->row);
  nps_dmat_free(&s->q);
  nps_dmat_free(&s->w);
  free(s->value);
}

/* out ← rows of w·x at length 1, w and value being of x·xᵀ; those that are 0 to rounding become 0. */
static void whiten(const nps_dmat_t *x, space_t *s, nps_dmat_t *out) {
  const double least = s->value[0] * 1e-14;
  for (int64_t i = 0; i < s->w.rows; i++) s->value[i] = s->value[i] > least ? 1 / sqrt(s->value[i]) : 0;
  nps_dmat_scale_rows(&s->w, s->value);
  nps_dmat_gemm(false, false, 1, &s->w, x, 0, out);
}

/* q ← orthonormal rows of thin·op(A)ᵀ; `spare` has room for them. The second time makes up for what rounding leaves. */
static nps_err_t left_space(const nps_dtriples_t *t, space_t *s, nps_dmat_t *spare) {
  nps_dmat_gemm(false, !t->turned, 1, &s->thin, t->a, 0, &s->q);
  NPS_TRY(nps_dmat_gram_vectors(&s->q, false, s->value, &s->w));
  whiten(&s->q, s, spare);
  NPS_TRY(nps_dmat_gram_vectors(spare, false, s->value, &s->w));
  whiten(spare, s, &s->q);
  return NPS_OK;
}

static nps_err_t find_space(const nps_dtriples_t *t, double energy, space_t *s, nps_gains_t *gains) {
  nps_dmat_t spare = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_dmat_new(s->q.grid, s->q.rows, s->q.columns, &spare));
  nps_svd_grid_signs(0, &s->thin);
  for (;;) {
    double captured = 0;
    NPS_GOTO(left_space(t, s, &spare));
    nps_dmat_gemm(false, t->turned, 1, &s->q, t->a, 0, &s->row);
    NPS_GOTO(nps_dmat_gram_vectors(&s->row, false, s->value, &s->w));
    for (int64_t i = 0; i < t->count; i++) captured += s->value[i];
    if (nps_svd_gained(gains, captured, energy)) break;
    whiten(&s->row, s, &s->thin);
  }
done:
  nps_dmat_free(&spare);
  return err;
}

static nps_err_t solve_within(const space_t *s, nps_dtriples_t *t) {
  nps_dtriples_t inner = {.a = &s->row, .n = s->row.rows, .m = t->m, .count = t->count, .sigma = t->sigma};
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_svd_grid_gram(&inner));
  NPS_GOTO(nps_dmat_new(s->q.grid, t->count, t->n, &t->left));
  nps_dmat_gemm(false, false, 1, &inner.left, &s->q, 0, &t->left);
  t->right = inner.right;
  inner.right = (nps_dmat_t){0};
done:
  nps_dmat_free(&inner.left);
  nps_dmat_free(&inner.right);
  return err;
}

nps_err_t nps_svd_grid_randomised(double energy, nps_dtriples_t *t) {
  const int64_t l = t->count + NPS_SVD_OVERSAMPLE < t->n ? t->count + NPS_SVD_OVERSAMPLE : t->n;
  nps_gains_t gains = {0};
  space_t s = {0};
  nps_err_t err = NPS_OK;
  NPS_GOTO(make_room(t, l, &s));
  NPS_GOTO(find_space(t, energy, &s, &gains));
  NPS_GOTO(solve_within(&s, t));
  t->energy = 1 - gains.left;
done:
  free_room(&s);
  return err;
}
