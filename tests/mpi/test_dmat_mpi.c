/* Matrices on grids of every shape: places, slabs, products, eigenvectors, each against plain loops. */
#include "../grids.h"

/* ---- places and slabs ---- */

static double value_at(int64_t i, int64_t j) { return (double)(i * 10007 + j); }

START_TEST(pieces_cover_the_matrix_once) {
  const nps_grid_t *grid = grids[_i];
  const int64_t rows = 45, columns = 31;
  nps_dmat_t m = nps_dmat_shape(grid, rows, columns);
  int64_t *seen = nps_xcalloc((size_t)(rows * columns), sizeof *seen);
  bool ok = true;
  for (int64_t i = 0; i < m.local_rows; i++)
    for (int64_t j = 0; j < m.local_columns; j++) seen[nps_dmat_row(&m, i) * columns + nps_dmat_column(&m, j)]++;
  if (nps_grid_ranks(grid) > 1) nps_comm_sum_i64(nps_grid_comm(grid), seen, rows * columns);
  for (int64_t i = 0; i < rows * columns; i++) ok = ok && seen[i] == 1;
  free(seen);
  ck_assert(everywhere(ok));
}
END_TEST

/* Rank r's slab: uneven, some empty. */
static void slab_of(int r, int ranks, int64_t rows, int64_t *first, int64_t *count) {
  int64_t begin = 0;
  for (int k = 0; k < r; k++) begin += k == 1 ? 0 : (rows - begin) / 3;
  *first = begin;
  *count = r == ranks - 1 ? rows - begin : r == 1 ? 0 : (rows - begin) / 3;
}

/* Longer than one step of the exchange. */
START_TEST(slabs_go_to_pieces_and_back) {
  const nps_grid_t *grid = grids[_i];
  const int64_t rows = 1201, columns = 1003;
  const int ranks = nps_grid_ranks(grid), me = ranks > 1 ? nps_comm_rank(nps_grid_comm(grid)) : 0;
  int64_t first, count;
  slab_of(me, ranks, rows, &first, &count);
  double *slab = nps_xcalloc((size_t)(count * columns) + 1, sizeof *slab);
  for (int64_t i = 0; i < count * columns; i++) slab[i] = value_at(first + i / columns, i % columns);
  nps_dmat_t m = spread(grid, rows, columns, NULL);
  ck_assert(everywhere(nps_dmat_put_rows(&m, sizeof *slab, first, count, slab, m.local) == NPS_OK));
  bool ok = true;
  for (int64_t i = 0; i < m.local_rows; i++)
    for (int64_t j = 0; j < m.local_columns; j++)
      ok = ok && m.local[i * m.local_columns + j] == value_at(nps_dmat_row(&m, i), nps_dmat_column(&m, j));
  ck_assert(everywhere(ok));
  free(slab);

  const int64_t from = 7 * me, number = rows - 40 * me - from; /* overlapping */
  double *back = nps_xcalloc((size_t)(number * columns), sizeof *back);
  ck_assert(everywhere(nps_dmat_get_rows(&m, sizeof *back, from, number, back, m.local) == NPS_OK));
  for (int64_t i = 0; i < number * columns; i++) ok = ok && back[i] == value_at(from + i / columns, i % columns);
  ck_assert(everywhere(ok));
  free(back);
  nps_dmat_free(&m);
}
END_TEST

/* float32, a few rows at a time; rows that nobody gives stay. */
START_TEST(floats_go_in_portions) {
  const nps_grid_t *grid = grids[_i];
  const int64_t rows = 57, columns = 23;
  const int ranks = nps_grid_ranks(grid), me = ranks > 1 ? nps_comm_rank(nps_grid_comm(grid)) : 0;
  nps_dmat_t shape = nps_dmat_shape(grid, rows, columns);
  float slab[3 * 23], *piece = nps_xcalloc((size_t)(shape.local_rows * shape.local_columns) + 1, sizeof *piece);
  bool ok = true;
  for (int64_t at = 0; at < rows; at += 4 * ranks) {
    const int64_t first = at + 4 * me < rows ? at + 4 * me : rows, count = rows - first < 3 ? rows - first : 3;
    for (int64_t i = 0; i < count * columns; i++) slab[i] = (float)value_at(first + i / columns, i % columns);
    ok = nps_dmat_put_rows(&shape, sizeof *slab, first, count, slab, piece) == NPS_OK && ok;
  }
  for (int64_t i = 0; i < shape.local_rows; i++)
    for (int64_t j = 0; j < shape.local_columns; j++) {
      const int64_t row = nps_dmat_row(&shape, i);
      const float expected = row % 4 == 3 ? 0 : (float)value_at(row, nps_dmat_column(&shape, j));
      ok = ok && piece[i * shape.local_columns + j] == expected;
    }
  ck_assert(everywhere(ok));
  free(piece);
}
END_TEST

START_TEST(rows_in_another_order) {
  const nps_grid_t *grid = grids[_i];
  const int64_t rows = 41, columns = 26;
  double *values = random_values(rows * columns, 3);
  int64_t order[30];
  for (int64_t i = 0; i < 30; i++) order[i] = (i * 17 + 5) % rows;
  nps_dmat_t m = spread(grid, rows, columns, values), some = spread(grid, 30, columns, NULL);
  ck_assert(everywhere(nps_dmat_take_rows(&m, order, &some) == NPS_OK));
  double *all = collect(&some);
  bool ok = true;
  for (int64_t i = 0; i < 30 * columns; i++) ok = ok && all[i] == values[order[i / columns] * columns + i % columns];
  ck_assert(everywhere(ok));
  free(all);
  free(values);
  nps_dmat_free(&m);
  nps_dmat_free(&some);
}
END_TEST

/* ---- sums and checks ---- */

START_TEST(norms_of_rows_and_all) {
  const int64_t rows = 19, columns = 50;
  double *values = random_values(rows * columns, 8), norm[19], by[19], sum = 0;
  nps_dmat_t m = spread(grids[_i], rows, columns, values);
  for (int64_t i = 0; i < rows; i++) by[i] = (double)i - 3;
  nps_dmat_scale_rows(&m, by);
  nps_dmat_row_norms2(&m, norm);
  bool ok = true;
  for (int64_t i = 0; i < rows; i++) {
    double expected = 0;
    for (int64_t j = 0; j < columns; j++) expected += pow(by[i] * values[i * columns + j], 2);
    ok = ok && fabs(norm[i] - expected) <= 1e-13 * expected;
    sum += expected;
  }
  const double all = nps_dmat_norm2(&m);
  ck_assert(everywhere(ok && fabs(all - sum) <= 1e-13 * sum));
  nps_dmat_clear(&m);
  const double none = nps_dmat_norm2(&m);
  ck_assert(everywhere(none == 0));
  free(values);
  nps_dmat_free(&m);
}
END_TEST

START_TEST(what_is_not_finite_is_found) {
  const int64_t rows = 30, columns = 20;
  double *values = random_values(rows * columns, 8);
  values[29 * columns + 17] = _i % 2 ? NAN : -INFINITY;
  nps_dmat_t m = spread(grids[_i], rows, columns, values);
  const nps_err_t err = nps_dmat_check_finite(&m, "layer.3.weight");
  const int me = nps_grid_ranks(m.grid) > 1 ? nps_comm_rank(nps_grid_comm(m.grid)) : 0;
  const char *expected =
      _i % 2 ? "layer.3.weight: NaN at row 29, column 17" : "layer.3.weight: infinity at row 29, column 17";
  const bool told = nps_problem_count() == (me == 0) && (me != 0 || strcmp(nps_problem_text(0), expected) == 0);
  nps_problem_clear();
  ck_assert(everywhere(err == NPS_ERR_INPUT && told));
  free(values);
  nps_dmat_free(&m);
}
END_TEST

START_TEST(what_is_too_large_is_an_error) {
  nps_dmat_t m;
  const nps_err_t err = nps_dmat_new(grids[_i], 3000000, 3000000, &m);
  nps_problem_clear();
  nps_dmat_free(&m);
  ck_assert(everywhere(err == (nps_grid_ranks(grids[_i]) > 1 ? NPS_ERR_RUNTIME : NPS_ERR_MEMORY)));
}
END_TEST

START_TEST(the_largest_piece_is_foreseen) {
  nps_grid_t *grid = nps_grid_new(comm);
  for (int64_t n = 1; n < 3000; n += 177) {
    const nps_dmat_t m = nps_dmat_shape(grid, n, 2 * n + 1);
    double most = (double)(m.local_rows * m.local_columns);
    nps_comm_max_f64(comm, &most, 1);
    ck_assert(everywhere(most == (double)nps_dmat_most_local(n, 2 * n + 1, size)));
  }
  nps_grid_free(grid);
}
END_TEST

/* Contexts of BLACS are few: they have to be given back. */
START_TEST(grids_come_and_go) {
  for (int i = 0; i < 300; i++) nps_grid_free(nps_grid_new(comm));
  ck_assert(everywhere(true));
}
END_TEST

/* ---- products ---- */

START_TEST(products_of_all_kinds) {
  const nps_grid_t *grid = grids[_i / 4];
  const bool ta = _i % 4 / 2, tb = _i % 2;
  const int64_t m = 37, n = 23, k = 29;
  double *a = random_values(m * k, 1), *b = random_values(k * n, 2), *c = random_values(m * n, 3);
  nps_dmat_t da = spread(grid, ta ? k : m, ta ? m : k, a), db = spread(grid, tb ? n : k, tb ? k : n, b);
  nps_dmat_t dc = spread(grid, m, n, c), fresh = spread(grid, m, n, NULL);
  nps_dmat_gemm(ta, tb, -1.5, &da, &db, 0.25, &dc);
  nps_dmat_gemm(ta, tb, 1, &da, &db, 0, &fresh);
  double *found = collect(&dc), *anew = collect(&fresh), *plain = random_values(m * n, 3);
  multiply(ta, tb, m, n, k, -1.5, a, b, 0.25, c);
  multiply(ta, tb, m, n, k, 1, a, b, 0, plain);
  ck_assert(everywhere(distance(found, c, m * n) < 1e-13 && distance(anew, plain, m * n) < 1e-13));
  free(a), free(b), free(c), free(found), free(anew), free(plain);
  nps_dmat_free(&da), nps_dmat_free(&db), nps_dmat_free(&dc), nps_dmat_free(&fresh);
}
END_TEST

/* uᵀ·v over the leading rows of both, down to none of them. */
START_TEST(products_of_leading_rows) {
  const nps_grid_t *grid = grids[_i];
  const int64_t all = 21, m = 18, n = 33;
  double *u = random_values(all * m, 1), *v = random_values(all * n, 2), *c = random_values(m * n, 3);
  nps_dmat_t du = spread(grid, all, m, u), dv = spread(grid, all, n, v), dc = spread(grid, m, n, NULL);
  for (int64_t k = all; k >= 0; k -= 7) {
    const nps_dmat_t uk = nps_dmat_leading_rows(&du, k), vk = nps_dmat_leading_rows(&dv, k);
    nps_dmat_gemm(true, false, 2, &uk, &vk, 0, &dc);
    double *found = collect(&dc);
    multiply(true, false, m, n, k, 2, u, v, 0, c);
    ck_assert(everywhere(distance(found, c, m * n) < 1e-13));
    free(found);
  }
  free(u), free(v), free(c);
  nps_dmat_free(&du), nps_dmat_free(&dv), nps_dmat_free(&dc);
}
END_TEST

START_TEST(parts_are_copied) {
  const nps_grid_t *grid = grids[_i];
  double *from = random_values(30 * 25, 1), *to = random_values(40 * 35, 2);
  nps_dmat_t a = spread(grid, 30, 25, from), b = spread(grid, 40, 35, to);
  nps_dmat_copy(&a, 3, 5, 21, 13, &b, 11, 17);
  nps_dmat_copy(&a, 0, 0, 0, 25, &b, 0, 0);
  for (int64_t i = 0; i < 21; i++)
    for (int64_t j = 0; j < 13; j++) to[(11 + i) * 35 + 17 + j] = from[(3 + i) * 25 + 5 + j];
  double *found = collect(&b);
  ck_assert(everywhere(distance(found, to, 40 * 35) == 0));
  nps_dmat_t fresh = spread(grid, 21, 13, NULL);
  nps_dmat_copy(&a, 3, 5, 21, 13, &fresh, 0, 0);
  double *part_of = collect(&fresh);
  bool ok = true;
  for (int64_t i = 0; i < 21 * 13; i++) ok = ok && part_of[i] == from[(3 + i / 13) * 25 + 5 + i % 13];
  ck_assert(everywhere(ok));
  free(from), free(to), free(found), free(part_of);
  nps_dmat_free(&a), nps_dmat_free(&b), nps_dmat_free(&fresh);
}
END_TEST

/* ---- eigenvectors ---- */

static const struct {
  int64_t n, inner, count;
} grams[] = {{1, 1, 1}, {5, 40, 5}, {8, 8, 3}, {9, 20, 9}, {50, 61, 50}, {50, 61, 17}, {40, 12, 40}};

enum { GRAMS = sizeof grams / sizeof *grams };

/* W·G = diag(λ)·W, W·Wᵀ = I, λ descending. */
START_TEST(eigenvectors_of_gram_matrices) {
  const nps_grid_t *grid = grids[_i / (2 * GRAMS)];
  const bool by_columns = _i % 2;
  const int64_t n = grams[_i / 2 % GRAMS].n, k = grams[_i / 2 % GRAMS].inner, count = grams[_i / 2 % GRAMS].count;
  double *a = random_values(n * k, 5), *value = nps_xcalloc((size_t)n, sizeof *value);
  double *g = nps_xcalloc((size_t)(n * n), sizeof *g), *wg = nps_xcalloc((size_t)(n * n), sizeof *wg);
  nps_dmat_t da = spread(grid, by_columns ? k : n, by_columns ? n : k, a), dw = spread(grid, count, n, NULL);
  ck_assert(everywhere(nps_dmat_gram_vectors(&da, by_columns, value, &dw) == NPS_OK));
  double *w = collect(&dw), worst = 0;
  multiply(by_columns, !by_columns, n, n, k, 1, a, a, 0, g);
  multiply(false, false, count, n, n, 1, w, g, 0, wg);
  bool falling = true;
  for (int64_t i = 0; i < count * n; i++) worst = fmax(worst, fabs(wg[i] - value[i / n] * w[i]));
  for (int64_t i = 1; i < count; i++) falling = falling && value[i] <= value[i - 1];
  multiply(false, true, count, count, n, 1, w, w, 0, g);
  for (int64_t i = 0; i < count * count; i++) worst = fmax(worst, fabs(g[i] - (i / count == i % count)));
  double trace = 0, sum = 0;
  for (int64_t i = 0; i < n * k; i++) trace += a[i] * a[i];
  for (int64_t i = 0; i < count; i++) sum += value[i];
  const bool largest = count == n ? fabs(sum - trace) <= 1e-12 * trace : sum >= trace * (double)count / (double)n;
  ck_assert(everywhere(worst < 1e-11 && falling && largest));
  free(a), free(value), free(g), free(wg), free(w);
  nps_dmat_free(&da), nps_dmat_free(&dw);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  make_grids(8);
  TCase *cases = tcase_create("dmat");
  tcase_set_timeout(cases, 60);
  tcase_add_loop_test(cases, pieces_cover_the_matrix_once, 0, grid_count);
  tcase_add_loop_test(cases, slabs_go_to_pieces_and_back, 0, grid_count);
  tcase_add_loop_test(cases, floats_go_in_portions, 0, grid_count);
  tcase_add_loop_test(cases, rows_in_another_order, 0, grid_count);
  tcase_add_loop_test(cases, norms_of_rows_and_all, 0, grid_count);
  tcase_add_loop_test(cases, what_is_not_finite_is_found, 0, grid_count);
  tcase_add_loop_test(cases, what_is_too_large_is_an_error, 0, grid_count);
  tcase_add_test(cases, the_largest_piece_is_foreseen);
  tcase_add_test(cases, grids_come_and_go);
  tcase_add_loop_test(cases, products_of_all_kinds, 0, 4 * grid_count);
  tcase_add_loop_test(cases, products_of_leading_rows, 0, grid_count);
  tcase_add_loop_test(cases, parts_are_copied, 0, grid_count);
  tcase_add_loop_test(cases, eigenvectors_of_gram_matrices, 0, 2 * GRAMS * grid_count);
  const int64_t failed = run_tests_everywhere("dmat", cases);
  free_grids();
  return end_mpi(failed);
}
