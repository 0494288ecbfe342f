/* What lets an interrupted run go on: the snapshot of its search, what that depends on, and when to stop. */
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

nps_err_t nps_run_hash(nps_run_state_t *run, const nps_model_t *const *models, int n) {
  nps_digest_t *digest = nps_digest_start(models, n);
  if (run->hashes) nps_digest_take(digest, run->hashes);
  nps_digest_free(run->hashes);
  run->hashes = digest;
  return nps_digest_finish(run->comm, digest);
}

/* ---- the snapshot ---- */

/* OUT.snapshot.h5; of several outputs OUT without {name}. */
static char *default_path(const char *out) {
  const char *hole = strstr(out, "{name}");
  size_t n = strlen(out);
  while (n > 1 && out[n - 1] == '/') n--;
  if (!hole) return nps_xstrf("%.*s.snapshot.h5", (int)n, out);
  return nps_xstrf("%.*sall%.*s.snapshot.h5", (int)(hole - out), out, (int)(out + n - hole - 6), hole + 6);
}

static void add_dataset(nps_text_t *text, const char *task, const nps_dataset_t *data) {
  const int64_t shape[] = {data->samples, data->channels, data->height,          data->width,
                           data->tokens,  data->choices,  (int64_t)data->scored, data->places};
  const size_t pixels = (size_t)(data->samples * data->channels * data->height * data->width);
  const size_t texts = (size_t)nps_dataset_texts(data, data->samples), places = texts * (size_t)data->places;
  const size_t tokens = (size_t)(nps_dataset_rows(data, data->samples) * data->tokens);
  const size_t labels = (size_t)(data->samples * nps_dataset_labels(data));
  uint64_t hash = nps_hash64(0, shape, sizeof shape);
  if (data->inputs) hash = nps_hash64(hash, data->inputs, pixels * sizeof *data->inputs);
  if (data->ids) hash = nps_hash64(hash, data->ids, tokens * sizeof *data->ids);
  if (data->mask) hash = nps_hash64(hash, data->mask, tokens * sizeof *data->mask);
  if (data->types) hash = nps_hash64(hash, data->types, tokens * sizeof *data->types);
  if (data->answer) hash = nps_hash64(hash, data->answer, tokens * sizeof *data->answer);
  if (data->lengths) hash = nps_hash64(hash, data->lengths, texts * sizeof *data->lengths);
  if (data->targets) hash = nps_hash64(hash, data->targets, places * sizeof *data->targets);
  if (data->labels) hash = nps_hash64(hash, data->labels, labels * sizeof *data->labels);
  nps_text_add(text, "data of task %s: %016llx\n", task, (unsigned long long)hash);
}

/* What a command reads is known by its size. */
static void add_file(nps_text_t *text, const char *task, const char *path) {
  struct stat st;
  const bool found = path && stat(path, &st) == 0;
  nps_text_add(text, "data of task %s: %lld bytes\n", task, found ? (long long)st.st_size : 0LL);
}

/* Hashes the files of all models, and keeps what it finds for the outputs' provenance. Collective. */
static nps_err_t add_models(nps_run_state_t *run, nps_text_t *text) {
  const int n = run->input_count + run->extra_count;
  const nps_model_t **models = nps_xcalloc((size_t)n, sizeof *models);
  for (int i = 0; i < n; i++) models[i] = i < run->input_count ? run->inputs[i] : run->extras[i - run->input_count];
  nps_err_t err = nps_run_hash(run, models, n);
  free(models);
  for (int i = 0; err == NPS_OK && i < nps_digest_count(run->hashes); i++) {
    const char *path = nps_digest_path(run->hashes, i), *slash = strrchr(path, '/');
    nps_text_add(text, "model file %s: %.64s\n", slash ? slash + 1 : path, nps_digest_hex(run->hashes, i));
  }
  return err;
}

nps_err_t nps_run_keep_identity(nps_run_state_t *run, char **out) {
  nps_text_t text = {0};
  char *recipe = nps_recipe_emit_search(run->recipe);
  nps_text_add(&text, "program: %s\n%s", PACKAGE_STRING, recipe);
  free(recipe);
  for (int i = 0; i < run->recipe->fitness.task_count; i++)
    if (nps_run_asks_command(run))
      add_file(&text, run->recipe->fitness.tasks[i].name, run->tasks[i].data);
    else
      add_dataset(&text, run->recipe->fitness.tasks[i].name, run->tasks[i].dataset);
  nps_err_t err = add_models(run, &text);
  *out = text.text;
  return err;
}

char *nps_run_keep_path(const nps_run_state_t *run) {
  const char *given = run->recipe->search.snapshot;
  if (nps_comm_rank(run->comm) != 0) return nps_xstrdup("");
  return given ? nps_xstrdup(given) : default_path(run->options->out ? run->options->out : run->recipe->output_path);
}

bool nps_run_should_stop(void *ctx) {
  const nps_run_state_t *run = ctx;
  return (run->options->stop && run->options->stop()) || nps_now() > run->deadline;
}

/* ---- outputs that are complete ---- */

/* What is there where an output belongs. */
typedef enum { OTHER, COMPLETE, SAME_RECIPE } found_t;

/* The row of a file in an output's provenance, or -1. */
static int64_t find_row(const nps_provenance_t *made_from, const char *path) {
  for (int64_t i = 0; i < made_from->count; i++)
    if (made_from->paths[i] && strcmp(made_from->paths[i], path) == 0) return i;
  return -1;
}

/* Whether a file is as it was, by its size and the time of its last change. */
static bool is_untouched(const nps_provenance_t *made_from, const nps_model_file_t *file) {
  const int64_t row = find_row(made_from, file->path);
  return row >= 0 && made_from->sizes[row] == file->size && file->changed < made_from->time;
}

void nps_run_check_inputs(const nps_run_state_t *run, const char *output) {
  int64_t first = INT64_MAX;
  for (int i = 0; nps_comm_rank(run->comm) == 0 && i < run->input_count; i++)
    for (int f = 0; f < run->inputs[i]->file_count; f++) {
      const nps_model_file_t *file = &run->inputs[i]->files[f];
      const int64_t changed = nps_file_change_time(file->path);
      if (changed == file->changed) continue;
      nps_note("%s: %s was touched while the run read it; if its content changed, parts of both may be in the output",
               output, file->path);
      if (changed < first) first = changed;
    }
  if (first < INT64_MAX) nps_output_set_time(output, first);
}

static found_t look_at(const nps_run_state_t *run, const nps_run_output_t *output, nps_provenance_t *made_from) {
  char *recipe = nps_output_recipe(output->path);
  found_t found = recipe && strcmp(recipe, run->recipe_text) == 0 ? COMPLETE : OTHER;
  free(recipe);
  if (found == OTHER) return found;
  nps_output_provenance(output->path, made_from);
  for (int i = 0; i < output->input_count; i++)
    for (int f = 0; f < output->inputs[i]->file_count; f++)
      if (!is_untouched(made_from, &output->inputs[i]->files[f])) found = SAME_RECIPE;
  return found;
}

/* Compares hashes; says which file is another. */
static bool is_same(const nps_run_state_t *run, const nps_run_output_t *output, const nps_provenance_t *made_from) {
  for (int i = 0; i < nps_digest_count(run->hashes); i++) {
    const char *path = nps_digest_path(run->hashes, i);
    const int64_t row = find_row(made_from, path);
    if (row >= 0 && made_from->hashes[row] && strcmp(made_from->hashes[row], nps_digest_hex(run->hashes, i)) == 0)
      continue;
    nps_note("%s: was made by this recipe, but %s has changed since", output->path, path);
    return false;
  }
  return true;
}

/* Whether an output was made by this recipe from these inputs. Files that were touched since are hashed. Collective. */
static nps_err_t is_complete(nps_run_state_t *run, const nps_run_output_t *output, bool *complete) {
  const bool leads = nps_comm_rank(run->comm) == 0;
  nps_provenance_t made_from = {0};
  found_t found = leads ? look_at(run, output, &made_from) : OTHER;
  nps_err_t err = NPS_OK;
  nps_comm_bcast(run->comm, &found, sizeof found);
  *complete = found == COMPLETE;
  if (found == SAME_RECIPE) err = nps_run_hash(run, output->inputs, output->input_count);
  if (found == SAME_RECIPE && err == NPS_OK) *complete = leads && is_same(run, output, &made_from);
  nps_comm_bcast(run->comm, complete, sizeof *complete);
  nps_provenance_free(&made_from);
  return err;
}

nps_err_t nps_run_find_complete(nps_run_state_t *run, bool *all) {
  bool look = run->options->resume;
  nps_comm_bcast(run->comm, &look, sizeof look);
  *all = look;
  for (int i = 0; look && i < run->output_count; i++) {
    nps_run_output_t *output = &run->outputs[i];
    NPS_TRY(is_complete(run, output, &output->complete));
    *all = *all && output->complete;
    if (output->complete)
      nps_report_line(run->report, "%s is there already, made by this recipe: nothing is left to do", output->path);
  }
  return NPS_OK;
}
