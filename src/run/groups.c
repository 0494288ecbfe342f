/* Groups of ranks that hold the models of a search together: how many ranks, which layers each holds, and what memory that
 * takes. */
#include "run_internal.h"

#include "nps/schedule.h"

#include <stdlib.h>
#include <string.h>

/* What is known of the models and networks. */
typedef struct {
  const nps_run_state_t *run;
  int *input_of;            /* [model_count] */
  int (*stages)[2];         /* [layout->count] those that use a tensor; −1: none but the first */
  nps_search_task_t *tasks; /* [task_count] without weights */
  int task_count, stage_count;
  bool factors; /* singular factors are in memory */
} layers_t;

/* Most stages where no network has layers. */
enum { MOST_STRETCHES = 256 };

/* A command needs no layers: tensors are cut into stretches of the order in which they lie in the files. */
static void find_stretches(layers_t *l) {
  const int count = l->run->layout->count;
  l->stage_count = (int)nps_min64(count, MOST_STRETCHES);
  for (int t = 0; t < count; t++) {
    l->stages[t][0] = (int)((int64_t)t * l->stage_count / count);
    l->stages[t][1] = -1;
  }
}

static void find_stages(layers_t *l) {
  const nps_layout_t *layout = l->run->layout;
  for (int t = 0; t < layout->count; t++) {
    l->stages[t][0] = 0; /* what no network uses lies with the embedding */
    l->stages[t][1] = -1;
    for (int k = l->task_count - 1; k >= 0; k--)
      for (int i = 0; i < nps_net_tensor_count(l->tasks[k].net); i++) {
        const nps_net_tensor_t *tensor = nps_net_tensor(l->tasks[k].net, i);
        if (tensor->of_head || strcmp(tensor->name, layout->targets[t].name) != 0) continue;
        l->stages[t][0] = tensor->stage;
        l->stages[t][1] = tensor->also;
      }
  }
}

static layers_t find_layers(const nps_run_state_t *run) {
  layers_t l = {.run = run, .task_count = run->recipe->fitness.task_count};
  l.input_of = nps_xcalloc((size_t)run->model_count + 1, sizeof *l.input_of);
  for (int m = 0; m < run->model_count; m++) l.input_of[m] = run->models[m].input;
  l.tasks = nps_xcalloc((size_t)l.task_count + 1, sizeof *l.tasks);
  l.stages = nps_xcalloc((size_t)run->layout->count + 1, sizeof *l.stages);
  for (int i = 0; i < l.task_count; i++)
    l.tasks[i] = (nps_search_task_t){
        .name = run->recipe->fitness.tasks[i].name, .net = run->tasks[i].net, .data = run->tasks[i].dataset};
  if (nps_run_asks_command(run)) {
    find_stretches(&l);
    return l;
  }
  for (int i = 0; i < l.task_count; i++) /* that they differ is told later */
    l.stage_count =
        i == 0 ? nps_net_stages(l.tasks[i].net) : (int)nps_min64(l.stage_count, nps_net_stages(l.tasks[i].net));
  find_stages(&l);
  return l;
}

static void free_layers(layers_t *l) {
  free(l->input_of);
  free(l->stages);
  free(l->tasks);
}

/* ---- memory ---- */

static bool is_within(int stage, int first, int end) { return stage >= first && stage < end; }

/* Bytes of the models, and of their factors, in some stages. */
static int64_t held_bytes(const void *ctx, int first, int end) {
  const layers_t *l = ctx;
  const nps_run_state_t *run = l->run;
  int64_t bytes = 0;
  for (int t = 0; t < run->layout->count; t++) {
    if (!is_within(l->stages[t][0], first, end) && !is_within(l->stages[t][1], first, end)) continue;
    bytes += nps_store_target_bytes(run->layout, (const nps_model_t *const *)run->inputs, run->base, l->input_of,
                                    run->model_count, t);
    if (l->factors) bytes += nps_run_factors_target_bytes(run, t);
  }
  return bytes;
}

/* Bytes of data and heads, which every rank has. */
static int64_t task_bytes(const layers_t *l) {
  int64_t bytes = 0;
  for (int i = 0; i < l->task_count; i++) {
    const nps_search_task_t *task = &l->tasks[i];
    if (!task->net) continue;
    bytes += task->data->samples * nps_dataset_sample_bytes(task->data);
    for (int t = 0; t < nps_net_tensor_count(task->net); t++)
      if (nps_net_tensor(task->net, t)->of_head) bytes += nps_net_tensor(task->net, t)->count * (int64_t)sizeof(float);
  }
  return bytes;
}

static int64_t rank_bytes(const layers_t *l, const nps_run_groups_t *g, int rank) {
  nps_search_group_t group = {.size = g->size, .first = g->cut[rank], .end = g->cut[rank + 1]};
  group.held = held_bytes(l, group.first, group.end);
  int64_t bytes = group.held + task_bytes(l) +
                  nps_search_work_bytes(l->tasks, l->task_count, l->run->recipe->fitness.batch, &group);
  if (nps_run_asks_command(l->run) && rank == 0) bytes += nps_run_handed_bytes(l->run);
  if (nps_run_is_singular(l->run)) return bytes + nps_run_factors_work_bytes(l->run);
  return bytes + nps_rules_bytes(l->run->model_count, l->run->recipe->nps.subspaces);
}

/* ---- how many ranks ---- */

/* Groups of `size` ranks or, where that does not divide, a few more. @param size  at most `ranks` and the stages */
static void try_size(layers_t *l, int size, int ranks, bool spill, nps_run_groups_t *g) {
  l->factors = nps_run_is_singular(l->run) && !spill;
  g->size = size;
  g->count = ranks / size;
  g->spill = spill;
  g->cut = nps_xrealloc(g->cut, (size_t)size + 1, sizeof *g->cut);
  nps_schedule_split(l->stage_count, size, held_bytes, l, g->cut);
  g->bytes = 0;
  for (int r = 0; r < size; r++) g->bytes = nps_max64(g->bytes, rank_bytes(l, g, r));
}

/* Factors go to a file where memory does not hold them. */
static bool fits(layers_t *l, int size, int ranks, int64_t limit, nps_run_groups_t *g) {
  try_size(l, size, ranks, false, g);
  if (g->bytes > limit && nps_run_is_singular(l->run)) try_size(l, size, ranks, true, g);
  return g->bytes <= limit;
}

static void choose_size(layers_t *l, int ranks, int given, int64_t limit, nps_run_groups_t *g) {
  const int most = (int)nps_min64(ranks, l->stage_count);
  int size = given > 0 ? (int)nps_min64(given, most) : 1;
  while (!fits(l, size, ranks, limit, g) && given == 0 && size < most) size++;
}

/* The least ranks of a group that the limit allows; 0: none. */
static int least_size(layers_t *l, int64_t limit) {
  nps_run_groups_t g = {0};
  int size = 1;
  while (size <= l->stage_count && !fits(l, size, size, limit, &g)) size++;
  free(g.cut);
  return size <= l->stage_count ? size : 0;
}

static nps_err_t fail_memory(layers_t *l, int given, int64_t limit, const nps_run_groups_t *g) {
  char needed[32], allowed[32], help[128];
  const int least = least_size(l, limit);
  if (least > 0)
    snprintf(help, sizeof help, "with %d ranks a model (search.ranks_per_model) it fits: use more ranks%s", least,
             given > 0 ? ", or leave the key out" : "");
  else
    snprintf(help, sizeof help, "one layer on each rank would need more, too: use fewer ranks on a host");
  return nps_fail(NPS_ERR_CONFIG, "%s: the search needs %s a rank, %d %s a model, but %s are allowed: %s",
                  l->run->recipe->file, nps_format_bytes((double)g->bytes, needed), g->size,
                  g->size > 1 ? "ranks" : "rank", nps_format_bytes((double)limit, allowed), help);
}

nps_err_t nps_run_find_groups(const nps_run_state_t *run, int ranks, int given, int64_t limit, nps_run_groups_t *g) {
  layers_t l = find_layers(run);
  choose_size(&l, ranks, given, limit, g);
  nps_err_t err = g->bytes <= limit ? NPS_OK : fail_memory(&l, given, limit, g);
  free_layers(&l);
  return err;
}

/* ---- this rank ---- */

static void find_hold(const layers_t *l, int first, int end, nps_run_groups_t *g) {
  const nps_layout_t *layout = l->run->layout;
  for (int t = 0; t < layout->count; t++) {
    if (is_within(l->stages[t][1], first, end)) g->hold[t] = NPS_HOLD_ALSO;
    if (is_within(l->stages[t][0], first, end)) g->hold[t] = NPS_HOLD;
  }
}

/* Group i has the ranks [i·R/G, (i + 1)·R/G); those beyond the number of stages have nothing to do. */
void nps_run_join_group(const nps_run_state_t *run, nps_run_groups_t *g) {
  layers_t l = find_layers(run);
  const int64_t ranks = nps_comm_size(run->comm), rank = nps_comm_rank(run->comm);
  int index = 0;
  while ((index + 1) * ranks / g->count <= rank) index++;
  const int64_t begin = index * ranks / g->count, end = (index + 1) * ranks / g->count;
  const int size = (int)nps_min64(end - begin, l.stage_count), own = (int)(rank - begin);
  nps_comm_split(run->comm, own < size ? index : -1, &g->ranks);
  g->hold = nps_xcalloc((size_t)run->layout->count + 1, sizeof *g->hold);
  g->part = (nps_share_t){.hold = g->hold, .copy = own < size ? index : -1, .copies = g->count};
  g->group = (nps_search_group_t){.ranks = g->ranks, .size = size, .count = g->count};
  if (own < size) {
    int *cut = nps_xcalloc((size_t)size + 1, sizeof *cut);
    l.factors = nps_run_is_singular(run) && !g->spill;
    nps_schedule_split(l.stage_count, size, held_bytes, &l, cut);
    find_hold(&l, cut[own], cut[own + 1], g);
    g->group.first = cut[own];
    g->group.end = cut[own + 1];
    g->group.held = held_bytes(&l, cut[own], cut[own + 1]);
    free(cut);
  }
  free_layers(&l);
}

void nps_run_leave_group(nps_run_groups_t *g) {
  nps_comm_free(g->ranks);
  free(g->hold);
  free(g->cut);
  *g = (nps_run_groups_t){0};
}

/* ---- the plan ---- */

/* "the embedding, layers 1 to 3, the head" */
static char *name_stages(int first, int end, int count) {
  nps_text_t t = {0};
  const int from = first > 0 ? first : 1, to = end < count ? end - 1 : count - 2;
  if (first == 0) nps_text_add(&t, "the embedding");
  if (from == to) nps_text_add(&t, "%slayer %d", t.text ? ", " : "", from);
  if (from < to) nps_text_add(&t, "%slayers %d %s %d", t.text ? ", " : "", from, from + 1 < to ? "to" : "and", to);
  if (end == count) nps_text_add(&t, "%sthe head", t.text ? ", " : "");
  return t.text;
}

static void show_rank(const layers_t *l, const nps_run_groups_t *g, int rank) {
  char held[32], all[32];
  const bool layers = !nps_run_asks_command(l->run);
  char *stages = layers ? name_stages(g->cut[rank], g->cut[rank + 1], l->stage_count)
                        : nps_xstrdup(rank == 0 ? "with the command" : "");
  nps_report_line(l->run->report, "  rank %d of a group: %s%s%s of models, %s in all", rank + 1, stages,
                  *stages ? ": " : "", nps_format_bytes((double)held_bytes(l, g->cut[rank], g->cut[rank + 1]), held),
                  nps_format_bytes((double)rank_bytes(l, g, rank), all));
  free(stages);
}

void nps_run_show_groups(const nps_run_state_t *run, int ranks, const nps_run_groups_t *g) {
  enum { MOST_ROWS = 16 };
  char bytes[32];
  layers_t l = find_layers(run);
  l.factors = nps_run_is_singular(run) && !g->spill;
  nps_report_line(run->report, "memory while scoring: at most %s a rank%s", nps_format_bytes((double)g->bytes, bytes),
                  nps_run_asks_command(run) ? ", without what the command takes" : "");
  if (g->size == 1)
    nps_report_line(run->report, "ranks per model: 1, every rank holds all models");
  else
    nps_report_line(run->report, "ranks per model: %d, in %d %s%s", g->size, g->count,
                    g->count > 1 ? "groups" : "group",
                    ranks % g->count || ranks / g->count != g->size ? ", some of more ranks" : "");
  for (int r = 0; g->size > 1 && r < g->size && r < MOST_ROWS; r++) show_rank(&l, g, r);
  if (g->size > MOST_ROWS) nps_report_line(run->report, "  … and %d more", g->size - MOST_ROWS);
  free_layers(&l);
}
