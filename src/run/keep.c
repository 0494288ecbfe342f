/* What lets an interrupted run go on: the snapshot of its search, what that depends on, and when to stop. */
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>

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
  const int64_t shape[] = {data->samples, data->channels, data->height, data->width, data->tokens};
  const size_t pixels = (size_t)(data->samples * data->channels * data->height * data->width);
  const size_t tokens = (size_t)(data->samples * data->tokens), labels = data->inputs ? (size_t)data->samples : tokens;
  uint64_t hash = nps_hash64(0, shape, sizeof shape);
  if (data->inputs) hash = nps_hash64(hash, data->inputs, pixels * sizeof *data->inputs);
  if (data->ids) hash = nps_hash64(hash, data->ids, tokens * sizeof *data->ids);
  if (data->mask) hash = nps_hash64(hash, data->mask, tokens * sizeof *data->mask);
  if (data->labels) hash = nps_hash64(hash, data->labels, labels * sizeof *data->labels);
  nps_text_add(text, "data of task %s: %016llx\n", task, (unsigned long long)hash);
}

/* Hashes the files of all models. Collective. */
static nps_err_t add_models(const nps_run_state_t *run, nps_text_t *text) {
  const int n = run->input_count + run->extra_count;
  const nps_model_t **models = nps_xcalloc((size_t)n, sizeof *models);
  for (int i = 0; i < n; i++) models[i] = i < run->input_count ? run->inputs[i] : run->extras[i - run->input_count];
  nps_digest_t *digest = nps_digest_start(models, n);
  nps_err_t err = nps_digest_finish(run->comm, digest);
  for (int i = 0; err == NPS_OK && i < nps_digest_count(digest); i++) {
    const char *path = nps_digest_path(digest, i), *slash = strrchr(path, '/');
    nps_text_add(text, "model file %s: %.64s\n", slash ? slash + 1 : path, nps_digest_hex(digest, i));
  }
  nps_digest_free(digest);
  free(models);
  return err;
}

nps_err_t nps_run_keep_identity(const nps_run_state_t *run, char **out) {
  nps_text_t text = {0};
  char *recipe = nps_recipe_emit_search(run->recipe);
  nps_text_add(&text, "program: %s\n%s", PACKAGE_STRING, recipe);
  free(recipe);
  for (int i = 0; i < run->recipe->fitness.task_count; i++)
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

static bool is_complete(const nps_run_state_t *run, const nps_run_output_t *output) {
  char *recipe = nps_output_recipe(output->path);
  const bool same = recipe && strcmp(recipe, run->recipe_text) == 0;
  free(recipe);
  return same;
}

bool nps_run_find_complete(nps_run_state_t *run) {
  const bool look = nps_comm_rank(run->comm) == 0 && run->options->resume;
  bool all = true;
  for (int i = 0; i < run->output_count; i++) {
    nps_run_output_t *output = &run->outputs[i];
    output->complete = look && is_complete(run, output);
    nps_comm_bcast(run->comm, &output->complete, sizeof output->complete);
    all = all && output->complete;
    if (output->complete)
      nps_report_line(run->report, "%s is there already, made by this recipe: nothing is left to do", output->path);
  }
  return all;
}
