/* Rows on their way between ranks, in steps of bounded memory. */
#include "dmat_internal.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { STEP_BYTES = 8 << 20 };

/* What goes from and to every rank in a step, in elements. */
typedef struct {
  int *send, *send_at, *receive, *receive_at;
  void *out, *in;
} mail_t;

static void mail_free(mail_t *mail) {
  free(mail->send);
  free(mail->out);
  free(mail->in);
}

/* @param out, in  the most elements that a step sends and receives. Collective. */
static nps_err_t mail_new(const nps_grid_t *grid, size_t element, int64_t out, int64_t in, mail_t *mail) {
  const size_t ranks = (size_t)grid->ranks;
  nps_err_t err = NPS_OK;
  mail->send = nps_xcalloc(4 * ranks, sizeof *mail->send);
  mail->send_at = mail->send + ranks;
  mail->receive = mail->send + 2 * ranks;
  mail->receive_at = mail->send + 3 * ranks;
  if (out > INT_MAX || in > INT_MAX)
    NPS_GOTO(nps_fail(NPS_ERR_RUNTIME, "rows of a matrix are too long to be sent between %d ranks", grid->ranks));
  NPS_GOTO(nps_buffer_alloc((size_t)out * element, "rows of a matrix", &mail->out));
  NPS_GOTO(nps_buffer_alloc((size_t)in * element, "rows of a matrix", &mail->in));
done:
  return nps_grid_agree(grid, err);
}

static void mail_address(const nps_grid_t *grid, mail_t *mail) {
  for (int r = 1; r < grid->ranks; r++) {
    mail->send_at[r] = mail->send_at[r - 1] + mail->send[r - 1];
    mail->receive_at[r] = mail->receive_at[r - 1] + mail->receive[r - 1];
  }
}

static void mail_exchange(const nps_grid_t *grid, size_t element, const mail_t *mail) {
  const MPI_Datatype type = element == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE;
  MPI_Alltoallv(mail->out, mail->send, mail->send_at, type, mail->in, mail->receive, mail->receive_at, type, grid->mpi);
}

/* ---- slabs of whole rows ---- */

/* Every rank's slab is cut into steps of equal height. Between slabs and pieces go, from (to) rank q's slab to (from) the piece
 * of rank p, the rows of the step that p has, with the columns that p has. */
typedef struct {
  const nps_dmat_t *shape;
  size_t element;
  bool put;
  int64_t *slabs; /* [ranks][2] first and count */
  int64_t height, steps;
  char *slab, *piece;
} rows_t;

static int64_t columns_at(const nps_dmat_t *m, int column) {
  return nps_cyclic_count(m->columns, m->grid->block, column, m->grid->column_ranks);
}

/* Rows of rank q's slab in a step. */
static void step_of(const rows_t *x, int64_t step, int q, int64_t *first, int64_t *end) {
  const int64_t *slab = x->slabs + 2 * q;
  *first = slab[0] + nps_min64(slab[1], step * x->height);
  *end = slab[0] + nps_min64(slab[1], (step + 1) * x->height);
}

static int64_t rows_between(const nps_grid_t *grid, int64_t first, int64_t end, int row) {
  return nps_cyclic_count(end, grid->block, row, grid->row_ranks) -
         nps_cyclic_count(first, grid->block, row, grid->row_ranks);
}

/* Elements between this rank's slab and rank p's piece. */
static int64_t slab_count(const rows_t *x, int64_t step, int p) {
  const nps_grid_t *grid = x->shape->grid;
  int64_t first, end;
  step_of(x, step, grid->row * grid->column_ranks + grid->column, &first, &end);
  return rows_between(grid, first, end, p / grid->column_ranks) * columns_at(x->shape, p % grid->column_ranks);
}

/* Elements between rank q's slab and this rank's piece. */
static int64_t piece_count(const rows_t *x, int64_t step, int q) {
  int64_t first, end;
  step_of(x, step, q, &first, &end);
  return rows_between(x->shape->grid, first, end, x->shape->grid->row) * x->shape->local_columns;
}

static int64_t most_of(const rows_t *x, int64_t (*count)(const rows_t *, int64_t, int)) {
  int64_t most = 0;
  for (int64_t step = 0; step < x->steps; step++) {
    int64_t sum = 0;
    for (int r = 0; r < x->shape->grid->ranks; r++) sum += count(x, step, r);
    most = nps_max64(most, sum);
  }
  return most;
}

static void move(char *home, char *away, size_t bytes, bool to_home) {
  if (to_home)
    memcpy(home, away, bytes);
  else
    memcpy(away, home, bytes);
}

/* Between the slab and the messages: a row's blocks of columns go to (come from) the ranks of one grid row in turn. */
static void move_slab(const rows_t *x, int64_t step, char *messages, const int *at) {
  const nps_dmat_t *m = x->shape;
  const nps_grid_t *grid = m->grid;
  int64_t first, end, *done = nps_xcalloc((size_t)grid->ranks, sizeof *done);
  step_of(x, step, grid->row * grid->column_ranks + grid->column, &first, &end);
  const int64_t begin = x->slabs[2 * (grid->row * grid->column_ranks + grid->column)];
  for (int64_t i = first; i < end; i++) {
    const int row = nps_cyclic_owner(i, grid->block, grid->row_ranks);
    for (int64_t j = 0; j < m->columns; j += grid->block) {
      const int p = row * grid->column_ranks + nps_cyclic_owner(j, grid->block, grid->column_ranks);
      const int64_t n = nps_min64(grid->block, m->columns - j);
      move(x->slab + (size_t)((i - begin) * m->columns + j) * x->element,
           messages + (size_t)(at[p] + done[p]) * x->element, (size_t)n * x->element, !x->put);
      done[p] += n;
    }
  }
  free(done);
}

static void move_piece(const rows_t *x, int64_t step, char *messages, const int *at) {
  const nps_dmat_t *m = x->shape;
  const nps_grid_t *grid = m->grid;
  const size_t row = (size_t)m->local_columns * x->element;
  for (int q = 0; q < grid->ranks; q++) {
    int64_t first, end;
    step_of(x, step, q, &first, &end);
    const int64_t place = nps_cyclic_count(first, grid->block, grid->row, grid->row_ranks);
    const int64_t rows = rows_between(grid, first, end, grid->row);
    if (rows > 0)
      move(x->piece + (size_t)place * row, messages + (size_t)at[q] * x->element, (size_t)rows * row, x->put);
  }
}

static void run_step(const rows_t *x, int64_t step, mail_t *mail) {
  const nps_grid_t *grid = x->shape->grid;
  for (int r = 0; r < grid->ranks; r++) {
    const int slab = (int)slab_count(x, step, r), piece = (int)piece_count(x, step, r);
    mail->send[r] = x->put ? slab : piece;
    mail->receive[r] = x->put ? piece : slab;
  }
  mail_address(grid, mail);
  if (x->put)
    move_slab(x, step, mail->out, mail->send_at);
  else
    move_piece(x, step, mail->out, mail->send_at);
  mail_exchange(grid, x->element, mail);
  if (x->put)
    move_piece(x, step, mail->in, mail->receive_at);
  else
    move_slab(x, step, mail->in, mail->receive_at);
}

static nps_err_t exchange_rows(rows_t *x, int64_t first, int64_t count) {
  const nps_dmat_t *m = x->shape;
  const nps_grid_t *grid = m->grid;
  const int64_t mine[2] = {first, count};
  int64_t longest = 0;
  mail_t mail = {0};
  x->slabs = nps_xcalloc(2 * (size_t)grid->ranks, sizeof *x->slabs);
  MPI_Allgather(mine, 2, MPI_INT64_T, x->slabs, 2, MPI_INT64_T, grid->mpi);
  for (int r = 0; r < grid->ranks; r++) longest = nps_max64(longest, x->slabs[2 * r + 1]);
  x->height = nps_max64(1, STEP_BYTES / grid->row_ranks / (nps_max64(1, m->columns) * (int64_t)x->element));
  x->steps = (longest + x->height - 1) / x->height;
  const int64_t slab = most_of(x, slab_count), piece = most_of(x, piece_count);
  const nps_err_t err = mail_new(grid, x->element, x->put ? slab : piece, x->put ? piece : slab, &mail);
  for (int64_t step = 0; step < x->steps && err == NPS_OK; step++) run_step(x, step, &mail);
  mail_free(&mail);
  free(x->slabs);
  return err;
}

nps_err_t nps_dmat_put_rows(const nps_dmat_t *shape, size_t element, int64_t first, int64_t count, const void *slab,
                            void *piece) {
  const size_t row = (size_t)shape->columns * element;
  assert(element == 4 || element == 8);
  if (shape->grid->ranks == 1) {
    if (count > 0) memcpy((char *)piece + (size_t)first * row, slab, (size_t)count * row);
    return NPS_OK;
  }
  return exchange_rows(&(rows_t){.shape = shape, .element = element, .put = true, .slab = (char *)slab, .piece = piece},
                       first, count);
}

nps_err_t nps_dmat_get_rows(const nps_dmat_t *shape, size_t element, int64_t first, int64_t count, void *slab,
                            const void *piece) {
  const size_t row = (size_t)shape->columns * element;
  assert(element == 4 || element == 8);
  if (shape->grid->ranks == 1) {
    if (count > 0) memcpy(slab, (const char *)piece + (size_t)first * row, (size_t)count * row);
    return NPS_OK;
  }
  return exchange_rows(&(rows_t){.shape = shape, .element = element, .slab = slab, .piece = (char *)piece}, first,
                       count);
}

int64_t nps_dmat_exchange_bytes(int64_t rows, int64_t columns, int ranks) {
  const int64_t slab = 8 * ((rows + ranks - 1) / ranks) * columns;
  return ranks > 1 ? 2 * nps_min64(slab, STEP_BYTES + 8 * columns) : 0;
}

/* ---- rows in another order ---- */

static void address_rows(const nps_dmat_t *from, const int64_t *order, int64_t first, int64_t end, mail_t *mail) {
  const nps_grid_t *grid = from->grid;
  memset(mail->send, 0, 4 * (size_t)grid->ranks * sizeof *mail->send);
  for (int64_t i = first; i < end; i++) {
    const int source = nps_cyclic_owner(order[i], grid->block, grid->row_ranks);
    const int target = nps_cyclic_owner(i, grid->block, grid->row_ranks);
    if (source == grid->row) mail->send[target * grid->column_ranks + grid->column] += (int)from->local_columns;
    if (target == grid->row) mail->receive[source * grid->column_ranks + grid->column] += (int)from->local_columns;
  }
  mail_address(grid, mail);
}

static double *post(double *buffer, int *at, int64_t n) {
  double *place = buffer + *at;
  *at += (int)n;
  return place;
}

static void take_step(const nps_dmat_t *from, const int64_t *order, int64_t first, int64_t end, mail_t *mail,
                      nps_dmat_t *to) {
  const nps_grid_t *grid = from->grid;
  const int64_t n = from->local_columns;
  const size_t row = (size_t)n * sizeof(double);
  address_rows(from, order, first, end, mail);
  for (int64_t i = first; i < end; i++) {
    const int target = nps_cyclic_owner(i, grid->block, grid->row_ranks) * grid->column_ranks + grid->column;
    if (nps_cyclic_owner(order[i], grid->block, grid->row_ranks) != grid->row) continue;
    memcpy(post(mail->out, &mail->send_at[target], n),
           from->local + nps_cyclic_place(order[i], grid->block, grid->row_ranks) * n, row);
  }
  for (int r = 0; r < grid->ranks; r++) mail->send_at[r] -= mail->send[r];
  mail_exchange(grid, sizeof(double), mail);
  for (int64_t i = first; i < end; i++) {
    const int source = nps_cyclic_owner(order[i], grid->block, grid->row_ranks) * grid->column_ranks + grid->column;
    if (nps_cyclic_owner(i, grid->block, grid->row_ranks) != grid->row) continue;
    memcpy(to->local + nps_cyclic_place(i, grid->block, grid->row_ranks) * n,
           post(mail->in, &mail->receive_at[source], n), row);
  }
}

nps_err_t nps_dmat_take_rows(const nps_dmat_t *from, const int64_t *order, nps_dmat_t *to) {
  const nps_grid_t *grid = from->grid;
  const int64_t n = from->local_columns, height = nps_max64(1, STEP_BYTES / (nps_max64(1, from->columns) * 8));
  const int64_t most = nps_min64(height, to->rows) * n;
  mail_t mail = {0};
  if (grid->ranks == 1) {
    for (int64_t i = 0; i < to->rows; i++)
      memcpy(to->local + i * n, from->local + order[i] * n, (size_t)n * sizeof(double));
    return NPS_OK;
  }
  const nps_err_t err = mail_new(grid, sizeof(double), most, most, &mail);
  for (int64_t i = 0; i < to->rows && err == NPS_OK; i += height)
    take_step(from, order, i, nps_min64(i + height, to->rows), &mail, to);
  mail_free(&mail);
  return err;
}
