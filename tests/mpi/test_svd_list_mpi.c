#include "../nps_check_mpi.h"
#include "nps/svd.h"

#include <math.h>

/* ---- a list: square, wide, tall, a row, zeros, of low rank; the last is the largest ---- */

enum { JOBS = 8, LARGEST = JOBS - 1 };

static const int64_t shapes[JOBS][2] = {{40, 40}, {30, 75}, {80, 20}, {1, 64},
                                        {25, 33}, {60, 60}, {48, 50}, {230, 190}};
static const char *const names[JOBS] = {"a.0", "b.1", "c.2", "d.3", "e.4", "f.5", "g.6", "h.7"};
static double *matrices[JOBS];
static nps_svd_job_t jobs[JOBS];

static double *random_values(int64_t n, uint64_t seed) {
  double *x = nps_xcalloc((size_t)n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = (double)next_random(&seed) / 1073741824.0 - 1;
  return x;
}

static void make_matrices(void) {
  for (int i = 0; i < JOBS; i++) {
    const int64_t rows = shapes[i][0], columns = shapes[i][1];
    matrices[i] = random_values(rows * columns, 100 + (uint64_t)i);
    if (i == 4) memset(matrices[i], 0, (size_t)(rows * columns) * sizeof(double));
    for (int64_t k = 5 * columns; i == 5 && k < rows * columns; k++) matrices[i][k] = matrices[i][k % (5 * columns)];
    jobs[i] = (nps_svd_job_t){.rows = rows, .columns = columns, .options = {.name = names[i]}, .work = rows * columns};
  }
}

static void free_matrices(void) {
  for (int i = 0; i < JOBS; i++) free(matrices[i]);
}

/* ---- what the list asks for ---- */

typedef struct {
  int fails_to_load, fails_when_done; /* a matrix, on the last rank of its group; or -1 */
  int64_t calls[JOBS];                /* on ranks 0 of the groups */
  int64_t shared[JOBS];               /* whether a group has it */
  double worst;                       /* distance from A, or of the vectors from orthonormal ones */
  int64_t progress;
} list_t;

static nps_err_t load(void *ctx, int i, int64_t first, int64_t count, double *rows) {
  const list_t *list = ctx;
  const int64_t columns = shapes[i][1];
  if (i == list->fails_to_load && first + count == shapes[i][0])
    return nps_fail(NPS_ERR_INPUT, "no rows of %s", names[i]);
  if (count > 0) memcpy(rows, matrices[i] + first * columns, (size_t)(count * columns) * sizeof *rows);
  return NPS_OK;
}

/* The largest |A − UᵀSV|; infinity where one is NaN. */
static double distance_from(const double *a, const nps_svd_t *s, const double *u, const double *v) {
  double most = 0;
  for (int64_t i = 0; i < s->rows * s->columns; i++) {
    double sum = 0;
    for (int64_t k = 0; k < s->count; k++)
      sum += u[k * s->rows + i / s->columns] * s->sigma[k] * v[k * s->columns + i % s->columns];
    const double d = fabs(sum - a[i]);
    if (!(d <= most)) most = isnan(d) ? INFINITY : d;
  }
  return most;
}

/* Every rank of the group looks at the whole decomposition. */
static void look_at(list_t *list, int i, const nps_dsvd_t *svd) {
  const int64_t rows = shapes[i][0], columns = shapes[i][1], k = svd->svd.count;
  double *u = nps_xcalloc((size_t)(k * rows), sizeof *u), *v = nps_xcalloc((size_t)(k * columns), sizeof *v);
  if (nps_dmat_get_rows(&svd->u, sizeof *u, 0, k, u, svd->u.local) != NPS_OK ||
      nps_dmat_get_rows(&svd->v, sizeof *v, 0, k, v, svd->v.local) != NPS_OK)
    list->worst = INFINITY;
  list->worst = fmax(list->worst, distance_from(matrices[i], &svd->svd, u, v));
  for (int64_t j = 1; j < k; j++)
    if (svd->svd.sigma[j] > svd->svd.sigma[j - 1]) list->worst = INFINITY;
  free(u);
  free(v);
}

static nps_err_t done(void *ctx, int i, int rank_in_group, nps_dsvd_t *svd) {
  list_t *list = ctx;
  const int ranks = nps_grid_ranks(svd->u.grid);
  look_at(list, i, svd);
  list->calls[i] += rank_in_group == 0;
  list->shared[i] += rank_in_group == 0 && ranks > 1;
  if (i == list->fails_when_done && rank_in_group == ranks - 1)
    return nps_fail(NPS_ERR_RUNTIME, "no room for %s", names[i]);
  return NPS_OK;
}

static void hear(void *ctx, int64_t work) { ((list_t *)ctx)->progress = work; }

/* One byte less than the largest matrix takes on one rank. */
static int64_t too_little_for_one(void) {
  const int64_t rows = shapes[LARGEST][0], columns = shapes[LARGEST][1], k = columns;
  const int64_t bytes = nps_svd_bytes(rows, columns, 0, nps_svd_choose(rows, columns, &jobs[LARGEST].options));
  return 8 * (rows * columns + k * (rows + columns)) + bytes - 1;
}

static nps_err_t factorise(list_t *list, int64_t memory) {
  nps_problem_clear();
  return nps_svd_list(
      comm,
      &(nps_svd_list_t){
          .jobs = jobs, .count = JOBS, .memory = memory, .load = load, .done = done, .progress = hear, .ctx = list});
}

static const list_t plain = {.fails_to_load = -1, .fails_when_done = -1};

/* One message on rank 0 with the name, none elsewhere. */
static bool told_once(const char *name) {
  return nps_problem_count() == (rank == 0) && (rank != 0 || strstr(nps_problem_text(0), name));
}

/* ---- tests ---- */

START_TEST(every_matrix_is_factorised_once) {
  list_t list = plain;
  int64_t work = 0;
  for (int i = 0; i < JOBS; i++) work += jobs[i].work;
  ck_assert(everywhere(factorise(&list, INT64_MAX / 2) == NPS_OK));
  nps_comm_sum_i64(comm, list.calls, JOBS);
  for (int i = 0; i < JOBS; i++) ck_assert_int_eq(list.calls[i], 1);
  ck_assert(everywhere(list.worst < 1e-11 && list.progress == work));
}
END_TEST

START_TEST(a_matrix_that_is_too_large_for_one_rank_is_shared) {
  list_t list = plain;
  const nps_err_t err = factorise(&list, too_little_for_one());
  if (size == 1) {
    ck_assert_int_eq(err, NPS_ERR_CONFIG);
    ck_assert(told_once("h.7 (230 × 190)") && strstr(nps_problem_text(0), "or 2 ranks that share it"));
    return;
  }
  ck_assert(everywhere(err == NPS_OK));
  nps_comm_sum_i64(comm, list.calls, JOBS);
  nps_comm_sum_i64(comm, list.shared, JOBS);
  for (int i = 0; i < JOBS; i++) ck_assert(list.calls[i] == 1 && list.shared[i] == (i == LARGEST));
  ck_assert(everywhere(list.worst < 1e-11));
}
END_TEST

START_TEST(what_is_not_finite_is_told_once) {
  const int64_t memory = size > 1 ? too_little_for_one() : INT64_MAX / 2;
  const int which = _i ? LARGEST : 2;
  const double right = matrices[which][700];
  list_t list = plain;
  matrices[which][700] = NAN;
  const bool ok = factorise(&list, memory) == NPS_ERR_INPUT && told_once(names[which]);
  matrices[which][700] = right;
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_callback_that_fails_on_one_rank_ends_all) {
  const int64_t memory = size > 1 ? too_little_for_one() : INT64_MAX / 2;
  const int which = _i % 2 ? LARGEST : 6;
  list_t list = plain;
  if (_i < 2)
    list.fails_to_load = which;
  else
    list.fails_when_done = which;
  ck_assert(everywhere(factorise(&list, memory) == (_i < 2 ? NPS_ERR_INPUT : NPS_ERR_RUNTIME)));
  ck_assert(everywhere(told_once(names[which])));
}
END_TEST

START_TEST(an_empty_list_is_fine) {
  const nps_svd_list_t none = {.memory = 1, .load = load, .done = done};
  ck_assert(everywhere(nps_svd_list(comm, &none) == NPS_OK));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  make_matrices();
  TCase *cases = tcase_create("svd_list");
  tcase_add_test(cases, every_matrix_is_factorised_once);
  tcase_add_test(cases, a_matrix_that_is_too_large_for_one_rank_is_shared);
  tcase_add_loop_test(cases, what_is_not_finite_is_told_once, 0, 2);
  tcase_add_loop_test(cases, a_callback_that_fails_on_one_rank_ends_all, 0, 4);
  tcase_add_test(cases, an_empty_list_is_fine);
  const int64_t failed = run_tests_everywhere("svd_list", cases);
  free_matrices();
  return end_mpi(failed);
}
