#include "search_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALL = NPS_PARTS }; /* both parts together */

/* A column of scores. */
typedef struct {
  const char *name, *key; /* for people, and in the log */
  size_t which;
} column_t;

static const column_t columns[] = {{"base", "base", offsetof(nps_search_row_t, base)},
                                   {"fine-tuned", "fine_tuned", offsetof(nps_search_row_t, tuned)},
                                   {"start", "start", offsetof(nps_search_row_t, start)},
                                   {"merged", "merged", offsetof(nps_search_row_t, merged)}};
enum { BASE, TUNED, START, MERGED, COLUMNS };

/* ---- numbers ---- */

const char *nps_format_score(double score, char out[32]) {
  char text[32];
  if (isnan(score)) return strcpy(out, "-");
  snprintf(text, sizeof text, "%.4f", score);
  const bool minus = text[0] == '-', bare = strncmp(text + minus, "0.", 2) == 0;
  snprintf(out, 32, "%s%s", minus ? "-" : "", text + minus + bare);
  return out;
}

/* A search of one row: means over it are its scores. */
static nps_search_t row_alone(const nps_search_t *search, int r) {
  nps_search_t alone = *search;
  alone.rows += r;
  alone.row_count = 1;
  return alone;
}

static double score(const nps_search_t *search, int column) {
  return nps_search_mean_score(search, columns[column].which, ALL);
}

static double nll(const nps_search_t *search, int column) {
  return nps_search_mean_nll(search, columns[column].which, ALL);
}

/* ---- the table ---- */

/* Cells of a table, row by row; the texts are owned. */
typedef struct {
  char **cells;
  int count;
} table_t;

static void add_cell(table_t *table, char *text) {
  table->cells = nps_xrealloc(table->cells, (size_t)table->count + 1, sizeof *table->cells);
  table->cells[table->count++] = text;
}

static void add_score(table_t *table, double score) {
  char text[32];
  add_cell(table, nps_xstrdup(nps_format_score(score, text)));
}

static void add_difference(table_t *table, double difference) {
  char text[32];
  nps_format_score(difference, text);
  add_cell(table, nps_xstrf("%s%s", difference > 0 ? "+" : "", text));
}

static int add_header(table_t *table, bool with_nll) {
  const char *const names[] = {"task",       "base",     "fine-tuned",     "merged",    "kept",
                               "difference", "base nll", "fine-tuned nll", "merged nll"};
  const int count = with_nll ? 9 : 6;
  for (int i = 0; i < count; i++) add_cell(table, nps_xstrdup(names[i]));
  return count;
}

static void add_line(table_t *table, const char *name, const nps_search_t *rows, double kept, bool with_nll) {
  add_cell(table, nps_xstrdup(name));
  add_score(table, score(rows, BASE));
  add_score(table, score(rows, TUNED));
  add_score(table, score(rows, MERGED));
  add_score(table, kept);
  add_difference(table, score(rows, MERGED) - score(rows, TUNED));
  if (!with_nll) return;
  add_score(table, nll(rows, BASE));
  add_score(table, nll(rows, TUNED));
  add_score(table, nll(rows, MERGED));
}

/* The H-score of a model's rows; there is none without tasks of both kinds. */
static void add_h_score(table_t *table, const nps_search_t *search, const nps_search_spec_t *spec, int model,
                        bool with_nll) {
  double h[COLUMNS];
  for (int c = 0; c < COLUMNS; c++) h[c] = nps_search_h_score(search, model, columns[c].which, ALL);
  if (isnan(h[MERGED])) return;
  add_cell(table, model >= 0 && spec->start->models > 1 ? nps_xstrf("H-score of %s", spec->models[model])
                                                        : nps_xstrdup("H-score"));
  add_score(table, h[BASE]);
  add_score(table, h[TUNED]);
  add_score(table, h[MERGED]);
  add_score(table, NAN);
  add_difference(table, h[MERGED] - h[TUNED]);
  for (int i = 0; with_nll && i < 3; i++) add_score(table, NAN);
}

static double mean_kept(const nps_search_t *search) {
  double sum = 0;
  int n = 0;
  for (int r = 0; r < search->row_count; r++) {
    if (isnan(search->rows[r].kept)) continue;
    sum += search->rows[r].kept;
    n++;
  }
  return n > 0 ? sum / n : NAN;
}

/* Under transfer a row is about one of several outputs. */
static char *row_name(const nps_search_spec_t *spec, const nps_search_row_t *row) {
  const char *task = spec->tasks[row->task].name;
  const bool own = row->model < 0 || strcmp(task, spec->models[row->model]) == 0;
  return own ? nps_xstrdup(task) : nps_xstrf("%s of %s", task, spec->models[row->model]);
}

static void show_table(const nps_search_t *search, const nps_search_spec_t *spec, nps_report_t *report) {
  const bool with_nll = spec->fitness->metric == NPS_METRIC_NLL;
  table_t table = {0};
  const int width = add_header(&table, with_nll);
  for (int r = 0; r < search->row_count; r++) {
    const nps_search_t row = row_alone(search, r);
    char *name = row_name(spec, &search->rows[r]);
    add_line(&table, name, &row, search->rows[r].kept, with_nll);
    free(name);
  }
  add_line(&table, "average", search, mean_kept(search), with_nll);
  for (int model = -1; model < spec->start->models; model++) add_h_score(&table, search, spec, model, with_nll);
  nps_report_table(report, (const char *const *)table.cells, table.count / width, width);
  for (int i = 0; i < table.count; i++) free(table.cells[i]);
  free(table.cells);
}

/* ---- held-out samples ---- */

/* A score before and after, on the samples that the search saw and on the others. */
typedef struct {
  double before[NPS_PARTS], after[NPS_PARTS];
} change_t;

static double mean_score(const nps_search_t *search, const nps_search_spec_t *spec, int column, int part) {
  return spec->fitness->metric == NPS_METRIC_NLL ? nps_search_mean_nll(search, columns[column].which, part)
                                                 : nps_search_mean_score(search, columns[column].which, part);
}

static change_t change_of_rows(const nps_search_t *search, const nps_search_spec_t *spec) {
  change_t change;
  for (int p = 0; p < NPS_PARTS; p++) {
    change.before[p] = mean_score(search, spec, START, p);
    change.after[p] = mean_score(search, spec, MERGED, p);
  }
  return change;
}

/* The row that the search itself found best, of those that were scored on held-out samples; -1: there is none. */
static int64_t best_of_seen(const nps_search_history_t *h) {
  int64_t best = -1;
  for (int64_t row = 0; row < h->evaluations; row++)
    if (!isnan(h->held_fitness[row]) && (best < 0 || h->fitness[row] < h->fitness[best])) best = row;
  return best;
}

/* Averages over the searches of a stage; NaN where one has no held-out scores. */
static change_t change_of_stage(const nps_search_t *search, const nps_search_spec_t *spec, const char *stage) {
  change_t change = {{0}, {0}};
  int n = 0;
  for (int i = 0; i < search->history_count; i++) {
    const nps_search_history_t *h = &search->histories[i];
    const int64_t best = best_of_seen(h);
    if (strncmp(h->path, stage, strlen(stage)) != 0) continue;
    const double before[] = {h->fitness[h->start], h->held_fitness[h->start]};
    const double after[] = {best < 0 ? NAN : h->fitness[best], best < 0 ? NAN : h->held_fitness[best]};
    for (int p = 0; p < NPS_PARTS; p++) {
      change.before[p] += nps_fitness_shown(spec->fitness, before[p]);
      change.after[p] += nps_fitness_shown(spec->fitness, after[p]);
    }
    n++;
  }
  for (int p = 0; p < NPS_PARTS; p++) {
    change.before[p] /= n;
    change.after[p] /= n;
  }
  return change;
}

/* Notes a change that is noise. @param less  less is better */
static void warn(const char *what, const change_t *c, bool less) {
  const double sign = less ? -1 : 1;
  const bool seen_better = sign * c->after[NPS_PART_SEEN] > sign * c->before[NPS_PART_SEEN];
  const bool held_worse = sign * c->after[NPS_PART_HELD] < sign * c->before[NPS_PART_HELD];
  char t[4][32];
  if (!seen_better || !held_worse) return;
  nps_note("%s: the held-out score %s (%s → %s) while the calibration score %s (%s → %s): the search fits noise; more "
           "samples, fewer variables or fewer generations help",
           what, less ? "rose" : "fell", nps_format_score(c->before[NPS_PART_HELD], t[0]),
           nps_format_score(c->after[NPS_PART_HELD], t[1]), less ? "fell" : "rose",
           nps_format_score(c->before[NPS_PART_SEEN], t[2]), nps_format_score(c->after[NPS_PART_SEEN], t[3]));
}

/* The final genome is chosen on held-out samples, so that what a search itself found best is looked at too. */
static void show_held(const nps_search_t *search, const nps_search_spec_t *spec, nps_report_t *report) {
  const change_t rows = change_of_rows(search, spec);
  static const char *const names[] = {"accuracy", "nll", "value"};
  const bool is_loss = nps_fitness_is_loss(spec->fitness);
  char t[4][32];
  if (isnan(rows.after[NPS_PART_HELD]) || search->history_count == 0) return;
  nps_report_line(report, "average %s from start to result: calibration samples %s → %s, held-out samples %s → %s",
                  names[spec->fitness->metric], nps_format_score(rows.before[NPS_PART_SEEN], t[0]),
                  nps_format_score(rows.after[NPS_PART_SEEN], t[1]), nps_format_score(rows.before[NPS_PART_HELD], t[2]),
                  nps_format_score(rows.after[NPS_PART_HELD], t[3]));
  warn("the result", &rows, is_loss);
  for (int g = 0; g < spec->search->stage_count; g++) {
    const char *stage = nps_stage_name(spec->search->stages[g]);
    const change_t change = change_of_stage(search, spec, stage);
    char *what = nps_xstrf("the best candidate of %s", stage);
    warn(what, &change, is_loss && spec->fitness->objective != NPS_OBJECTIVE_NORMALIZED);
    free(what);
  }
}

/* Searches whose result is their start. */
static void show_doubt(const nps_search_t *search, nps_report_t *report) {
  for (int i = 0; i < search->history_count; i++) {
    const nps_search_history_t *h = &search->histories[i];
    if (h->best == h->start)
      nps_report_line(report, "%s: the result is the start: nothing that was found is better beyond doubt", h->path);
  }
}

/* ---- the log ---- */

json_t *nps_search_number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

/* H-scores of every output, on all samples. */
static json_t *h_scores_of(const nps_search_t *search, const nps_search_spec_t *spec) {
  json_t *list = json_array();
  for (int model = -1; model < spec->start->models; model++) {
    if (isnan(nps_search_h_score(search, model, columns[MERGED].which, ALL))) continue;
    json_t *item = json_pack("{s:s?}", "model", model < 0 ? NULL : spec->models[model]);
    for (int c = 0; c < COLUMNS; c++)
      json_object_set_new(item, columns[c].key,
                          nps_search_number(nps_search_h_score(search, model, columns[c].which, ALL)));
    json_array_append_new(list, item);
  }
  return list;
}

static json_t *scores_of(const nps_search_t *rows, int part) {
  json_t *scores = json_object();
  for (int c = 0; c < COLUMNS; c++) {
    json_t *one =
        json_pack("{s:o, s:o}", "accuracy", nps_search_number(nps_search_mean_accuracy(rows, columns[c].which, part)),
                  "nll", nps_search_number(nps_search_mean_nll(rows, columns[c].which, part)));
    if (rows->metric == NPS_METRIC_VALUE)
      json_object_set_new(one, "value", nps_search_number(nps_search_mean_score(rows, columns[c].which, part)));
    json_object_set_new(scores, columns[c].key, one);
  }
  return scores;
}

/* {"calibration": …, "held_out": …}: the samples that the search saw, and the others. */
static json_t *both_parts(const nps_search_t *rows) {
  json_t *fields = json_object();
  json_object_set_new(fields, "calibration", scores_of(rows, NPS_PART_SEEN));
  json_object_set_new(fields, "held_out", scores_of(rows, NPS_PART_HELD));
  return fields;
}

static void log_scores(const nps_search_t *search, const nps_search_spec_t *spec, nps_report_t *report) {
  json_t *fields = json_object(), *list = json_array();
  for (int r = 0; r < search->row_count; r++) {
    const nps_search_row_t *row = &search->rows[r];
    const nps_search_t alone = row_alone(search, r);
    json_t *item = both_parts(&alone);
    json_object_set_new(item, "task", json_string(spec->tasks[row->task].name));
    json_object_set_new(item, "model", row->model < 0 ? json_null() : json_string(spec->models[row->model]));
    json_object_set_new(item, "kept", nps_search_number(row->kept));
    json_array_append_new(list, item);
  }
  json_object_set_new(fields, "tasks", list);
  json_object_set_new(fields, "average", both_parts(search));
  json_object_set_new(fields, "h_scores", h_scores_of(search, spec));
  json_object_set_new(fields, "evaluations", json_integer(search->evaluations));
  json_object_set_new(fields, "seconds", json_real(search->seconds));
  nps_report_event(report, "scores", fields);
}

void nps_search_show(const nps_search_t *search, const nps_search_spec_t *spec, nps_report_t *report) {
  if (search->row_count == 0) return;
  show_table(search, spec, report);
  show_held(search, spec, report);
  show_doubt(search, report);
  nps_paths_show(search, report);
  log_scores(search, spec, report);
}
