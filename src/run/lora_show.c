/* What an adapter holds, and what it does not. */
#include "lora.h"

#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 5 };

/* Matrices of one kind: the same name in all layers. */
typedef struct {
  char *kind;
  int count;
  int64_t least, most, numbers;
  double squares, captured;
} row_t;

static void add_to(row_t *row, const nps_lora_matrix_t *m) {
  if (row->count == 0 || m->rank < row->least) row->least = m->rank;
  if (m->rank > row->most) row->most = m->rank;
  row->count++;
  row->numbers += m->rank * (m->shape[1] + m->shape[2]);
  row->squares += m->squares;
  row->captured += m->captured;
}

static row_t *find_row(row_t *rows, int *count, char *kind) {
  for (int i = 0; i < *count; i++)
    if (strcmp(rows[i].kind, kind) == 0) {
      free(kind);
      return &rows[i];
    }
  rows[*count] = (row_t){.kind = kind};
  return &rows[(*count)++];
}

static void fill_cells(const row_t *row, char **cells) {
  cells[0] = nps_xstrdup(row->kind);
  cells[1] = nps_xstrf("%d", row->count);
  cells[2] = row->least == row->most ? nps_xstrf("%lld", (long long)row->most)
                                     : nps_xstrf("%lld–%lld", (long long)row->least, (long long)row->most);
  cells[3] = nps_xstrf("%.2f %%", row->squares > 0 ? 100 * row->captured / row->squares : 100);
  cells[4] = nps_xstrf("%lld", (long long)row->numbers);
}

static void show_table(nps_report_t *report, const row_t *rows, int count, const row_t *all) {
  static const char *const header[COLUMNS] = {"linear layers", "matrices", "rank", "energy", "numbers"};
  const int lines = count + 2;
  char **cells = nps_xcalloc((size_t)lines * COLUMNS, sizeof *cells);
  for (int c = 0; c < COLUMNS; c++) cells[c] = nps_xstrdup(header[c]);
  for (int i = 0; i < count; i++) fill_cells(&rows[i], cells + (i + 1) * COLUMNS);
  fill_cells(all, cells + (count + 1) * COLUMNS);
  nps_report_table(report, (const char *const *)cells, lines, COLUMNS);
  for (int i = 0; i < lines * COLUMNS; i++) free(cells[i]);
  free(cells);
}

/* What changed in the other tensors, as parts of ‖τ‖². */
static void warn_of_rest(const nps_lora_t *lora, double linear) {
  static const char *const names[NPS_LORA_KINDS] = {
      [NPS_LORA_EMBEDDING] = "embeddings",
      [NPS_LORA_BIAS] = "biases",
      [NPS_LORA_NORM] = "norms and other vectors",
      [NPS_LORA_OTHER] = "other tensors",
  };
  double squares[NPS_LORA_KINDS] = {0}, total = linear;
  for (int t = 0; t < lora->model->tensor_count; t++) {
    const double norm = lora->found->tensors[t].difference;
    if (lora->kind_of[t] == NPS_LORA_LINEAR || lora->kind_of[t] == NPS_LORA_EXTRA) continue;
    squares[lora->kind_of[t]] += norm * norm;
    total += norm * norm;
  }
  nps_text_t text = {0};
  for (int k = 0; k < NPS_LORA_KINDS; k++)
    if (squares[k] > 0) nps_text_add(&text, "%s%s %.3g %%", text.size ? ", " : "", names[k], 100 * squares[k] / total);
  if (text.size)
    nps_note("the adapter does not hold what changed outside of linear layers, in parts of ‖τ‖²: %s", text.text);
  free(text.text);
}

void nps_lora_show(const nps_lora_t *lora, int64_t bytes) {
  row_t *rows = nps_xcalloc((size_t)lora->count + 1, sizeof *rows), all = {.kind = nps_xstrdup("all")};
  int count = 0;
  int64_t whole = 0;
  char size[32], of[32];
  for (int i = 0; i < lora->count; i++) {
    add_to(find_row(rows, &count, nps_inspect_kind(lora->model->tensors[lora->matrices[i].tensor].name)),
           &lora->matrices[i]);
    add_to(&all, &lora->matrices[i]);
  }
  for (int t = 0; t < lora->model->tensor_count; t++)
    whole += lora->model->tensors[t].count * (int64_t)nps_dtype_size(lora->model->tensors[t].dtype);
  show_table(lora->report, rows, count, &all);
  nps_report_line(lora->report, "%s", "");
  nps_report_line(lora->report, "%s: %s; the model has %s", lora->request->target,
                  nps_format_bytes((double)bytes, size), nps_format_bytes((double)whole, of));
  if (lora->extra_count > 0)
    nps_report_line(lora->report, "%d tensors that the base lacks are in it whole (modules_to_save)",
                    lora->extra_count);
  warn_of_rest(lora, all.squares);
  for (int i = 0; i < count; i++) free(rows[i].kind);
  free(all.kind);
  free(rows);
}
