/* The plan and the summary, as tables and as events. */
#include "run_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A table in the making. */
typedef struct {
  char **cells;
  int count;
} cells_t;

static void add_cell(cells_t *cells, char *text) {
  cells->cells = nps_xrealloc(cells->cells, (size_t)cells->count + 1, sizeof(char *));
  cells->cells[cells->count++] = text;
}

static void show_cells(nps_report_t *report, cells_t *cells, int columns) {
  nps_report_table(report, (const char *const *)cells->cells, cells->count / columns, columns);
  for (int i = 0; i < cells->count; i++) free(cells->cells[i]);
  free(cells->cells);
}

static void add_bytes(cells_t *cells, int64_t bytes) {
  char text[32];
  add_cell(cells, nps_xstrdup(nps_format_bytes((double)bytes, text)));
}

static int count_action(const nps_layout_t *layout, nps_action_t action) {
  int count = 0;
  for (int t = 0; t < layout->count; t++) count += layout->targets[t].action == action;
  return count;
}

static int64_t sum64(const int64_t *x, int n) {
  int64_t sum = 0;
  for (int i = 0; i < n; i++) sum += x[i];
  return sum;
}

/* Rows of the plan's table; more ranks than that are summed up. */
#define MOST_ROWS 64

static void add_rank_row(const nps_plan_t *plan, cells_t *cells, int rank) {
  int64_t elements = 0;
  for (int i = plan->first_piece[rank]; i < plan->first_piece[rank + 1]; i++) elements += plan->pieces[i].count;
  add_cell(cells, nps_xstrf("%d", rank));
  add_cell(cells, nps_xstrf("%d", plan->first_piece[rank + 1] - plan->first_piece[rank]));
  add_cell(cells, nps_xstrf("%lld", (long long)elements));
  add_bytes(cells, plan->read[rank]);
  add_bytes(cells, plan->write[rank]);
  add_bytes(cells, plan->memory[rank]);
  add_cell(cells, nps_xstrf("%.1f s", plan->time[rank]));
}

static void show_rank_table(nps_report_t *report, const nps_plan_t *plan) {
  static const char *const header[] = {"rank", "tensors", "elements", "read", "write", "memory", "time"};
  enum { COLUMNS = sizeof header / sizeof *header };
  cells_t cells = {0};
  for (int c = 0; c < COLUMNS; c++) add_cell(&cells, nps_xstrdup(header[c]));
  int rows = plan->ranks < MOST_ROWS ? plan->ranks : MOST_ROWS;
  for (int r = 0; r < rows; r++) add_rank_row(plan, &cells, r);
  show_cells(report, &cells, COLUMNS);
  if (rows < plan->ranks) nps_report_line(report, "… and %d more ranks", plan->ranks - rows);
}

/* How many tensors groups of each size share, and how evenly the ranks end. */
static void show_schedule(nps_report_t *report, const nps_schedule_t *schedule) {
  for (int l = 0; l < nps_schedule_levels(schedule->ranks); l++) {
    int shared = 0, least = schedule->ranks, most = 0;
    for (int t = 0; t < schedule->jobs; t++) {
      if (schedule->level[t] != l || schedule->group[t].size == 1) continue;
      shared++;
      if (schedule->group[t].size < least) least = schedule->group[t].size;
      if (schedule->group[t].size > most) most = schedule->group[t].size;
    }
    if (shared == 0) continue;
    char size[32];
    snprintf(size, sizeof size, least < most ? "%d to %d" : "%d", least, most);
    nps_report_line(report, "groups of %s ranks share %d %s, a part on each", size, shared,
                    shared == 1 ? "tensor" : "tensors");
  }
  nps_report_line(report, "balance: ranks work %.1f s in the mean, %.1f s at most", schedule->mean, schedule->longest);
}

static void show_totals(nps_report_t *report, const nps_run_output_t *output) {
  const nps_plan_t *plan = output->plan;
  char read[32], written[32], memory[32], limit[32];
  int64_t most = 0;
  double longest = 0;
  int shared = 0;
  for (int r = 0; r < plan->ranks; r++) {
    if (plan->memory[r] > most) most = plan->memory[r];
    if (plan->time[r] > longest) longest = plan->time[r];
  }
  for (int t = 0; t < output->layout->count; t++) shared += plan->owner_first[t] != plan->owner_last[t];
  nps_report_line(report, "%s", "");
  nps_report_line(report, "reads %s, writes %s", nps_format_bytes((double)sum64(plan->read, plan->ranks), read),
                  nps_format_bytes((double)sum64(plan->write, plan->ranks), written));
  nps_report_line(report, "memory: at most %s a rank, of %s; slabs of %lld elements, %d tensors shared among ranks",
                  nps_format_bytes((double)most, memory), nps_format_bytes((double)plan->memory_limit, limit),
                  (long long)plan->slab, shared);
  if (plan->schedule) show_schedule(report, plan->schedule);
  nps_report_line(report, "time: about %.1f s with the inputs in the page cache", longest);
  nps_report_event(
      report, "plan",
      json_pack("{s:i, s:I, s:I, s:I, s:f}", "ranks", plan->ranks, "read", (json_int_t)sum64(plan->read, plan->ranks),
                "write", (json_int_t)sum64(plan->write, plan->ranks), "memory", (json_int_t)most, "seconds", longest));
}

void nps_run_show_plan(const nps_run_state_t *run, const nps_run_output_t *output) {
  const nps_layout_t *layout = output->layout;
  const int copied = count_action(layout, NPS_ACTION_COPY), head = count_action(layout, NPS_ACTION_HEAD);
  if (!run->report) return;
  nps_report_line(run->report, "%s: %s", run->method->name, run->method->summary);
  nps_report_line(run->report, "models: %d%s; tensors: %d merged, %d copied as they are, %d of a head",
                  output->model_count, run->method->base == NPS_BASE_TASK_VECTORS ? " and the base" : "",
                  layout->count - copied - head, copied, head);
  nps_run_show_slices(run);
  nps_report_line(run->report, "ranks: %d, at most %d a node of %d cores%s", output->plan->ranks,
                  output->plan->ranks_per_node, output->plan->cores_per_node,
                  run->options->ranks ? " (--ranks-per-node)" : "");
  for (int t = 0; t < layout->count; t++)
    if (layout->targets[t].action == NPS_ACTION_HEAD)
      nps_report_line(run->report, "  head: %s", layout->targets[t].name);
  nps_report_line(run->report, "%s", "");
  show_rank_table(run->report, output->plan);
  show_totals(run->report, output);
  nps_run_show_output_factors(run, output);
}

static json_t *model_event(const char *name, const nps_merge_result_t *result) {
  json_t *norm = isnan(result->norm) ? json_null() : json_real(result->norm);
  return json_pack("{s:s, s:o, s:f}", "name", name, "norm", norm, "kept", result->kept);
}

void nps_run_show_summary(const nps_run_state_t *run, const nps_run_output_t *output, const nps_merge_result_t *results,
                          int64_t bytes) {
  char size[32];
  cells_t cells = {0};
  if (!run->report) return;
  json_t *models = json_array();
  add_cell(&cells, nps_xstrdup("model"));
  add_cell(&cells, nps_xstrdup("‖task vector‖"));
  add_cell(&cells, nps_xstrdup("kept"));
  for (int m = 0; m < output->model_count; m++) {
    const nps_merge_result_t *r = &results[m];
    add_cell(&cells, nps_xstrdup(output->models[m].name));
    add_cell(&cells, isnan(r->norm) ? nps_xstrdup("–") : nps_xstrf("%.6g", r->norm));
    add_cell(&cells, isnan(r->norm) ? nps_xstrdup("–") : nps_xstrf("%.2f %%", 100 * r->kept));
    json_array_append_new(models, model_event(output->models[m].name, r));
  }
  show_cells(run->report, &cells, 3);
  const double seconds = nps_now() - run->started;
  nps_report_line(run->report, "%s", "");
  nps_report_line(run->report, "%s: %d tensors, %s, %s, in %.1f s", output->path, output->layout->count,
                  nps_format_bytes((double)bytes, size), run->method->name, seconds);
  nps_report_event(run->report, "done",
                   json_pack("{s:o, s:s, s:I, s:f, s:i, s:o}", "output", nps_report_json_text(output->path), "method",
                             run->method->name, "bytes", (json_int_t)bytes, "seconds", seconds, "ranks",
                             nps_comm_size(run->comm), "models", models));
}
