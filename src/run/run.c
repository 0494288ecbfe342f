#include "run_internal.h"

#include <stdlib.h>

void nps_run_free(nps_run_state_t *run) {
  nps_search_free(run->search);
  nps_digest_free(run->hashes);
  nps_run_free_tasks(run);
  nps_run_free_outputs(run);
  nps_run_free_history(run);
  nps_factors_free(run->factors);
  for (int i = 0; i < run->input_count; i++) nps_model_free(run->inputs[i]);
  free(run->inputs);
  for (int i = 0; i < run->source_count; i++) nps_model_free(run->sources[i]);
  free(run->sources);
  free(run->slice_base);
  nps_run_free_slices(run);
  nps_alignment_free(run->alignment);
  nps_sidecars_free(run->tokenizer, run->tokenizer_count);
  free(run->input_of);
  free(run->models);
  nps_sidecars_free(run->sidecars, run->sidecar_count);
  free(run->recipe_text);
  nps_recipe_free(run->recipe);
}

static int64_t output_bytes(const nps_run_state_t *run, const nps_run_output_t *output) {
  int parts = 0;
  int64_t bytes = 0;
  const nps_part_t *part = nps_merge_parts(output->merge, &parts);
  for (int i = 0; i < parts; i++) bytes += part[i].count * (int64_t)nps_dtype_size(part[i].dtype);
  for (int t = 0; t < output->layout->count; t++) {
    const nps_target_t *target = &output->layout->targets[t];
    const bool kept = run->method->keeps_updates && target->action == NPS_ACTION_MERGE;
    bytes += target->count * (int64_t)(nps_dtype_size(target->dtype) + (kept ? sizeof(double) : 0));
  }
  return bytes;
}

/* What the search and the method tell besides tensors. */
typedef struct {
  const nps_run_state_t *run;
  const nps_run_output_t *output;
  const nps_digest_t *digest;
} findings_t;

static nps_err_t put_names(nps_h5_t *file, const nps_run_output_t *output) {
  static const char *const sum = "sum";
  if (output->nps.sum) return nps_h5_put_attr_texts(file, "/subspaces", "models", &sum, 1);
  const char **names = nps_xcalloc((size_t)output->model_count, sizeof *names);
  for (int m = 0; m < output->model_count; m++) names[m] = output->models[m].name;
  nps_err_t err = nps_h5_put_attr_texts(file, "/subspaces", "models", names, output->model_count);
  free(names);
  return err;
}

static nps_err_t put_subspaces(nps_h5_t *file, const nps_run_output_t *output) {
  const nps_merge_subspaces_t *found = nps_merge_subspaces(output->merge);
  if (!found || found->models == 0) return NPS_OK;
  const int64_t shape[2] = {found->models, found->subspaces}, inner[2] = {found->models, found->subspaces - 1};
  const int64_t cells = shape[0] * shape[1];
  double *density = nps_xcalloc((size_t)cells, sizeof *density);
  for (int64_t i = 0; i < cells; i++)
    density[i] = found->entries[i] ? (double)found->kept[i] / (double)found->entries[i] : 0;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_make_group(file, "/subspaces"));
  NPS_GOTO(put_names(file, output));
  NPS_GOTO(nps_h5_put(file, "/subspaces/entries", NPS_I64, found->entries, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/kept", NPS_I64, found->kept, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/density", NPS_F64, density, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/weight", NPS_F64, output->nps.weighting->weight, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/priority", NPS_F64, output->nps.weighting->priority, 2, shape));
  if (found->thresholds && found->subspaces > 1)
    NPS_GOTO(nps_h5_put(file, "/subspaces/threshold", NPS_F32, found->thresholds, 2, inner));
done:
  free(density);
  return err;
}

static nps_err_t put_bands(nps_h5_t *file, const nps_run_output_t *output) {
  NPS_TRY(nps_h5_make_group(file, "/subspaces"));
  NPS_TRY(put_names(file, output));
  return nps_run_put_factors(file, output);
}

static nps_err_t put_findings(void *ctx, nps_h5_t *file) {
  const findings_t *findings = ctx;
  const bool singular = findings->output->nps.taking;
  NPS_TRY(nps_merge_describe_parts(findings->output->merge, file));
  NPS_TRY(singular ? put_bands(file, findings->output) : put_subspaces(file, findings->output));
  return findings->run->search ? nps_search_write(findings->run->search, false, file) : NPS_OK;
}

static nps_err_t put_state(void *ctx, nps_h5_t *file) {
  const findings_t *findings = ctx;
  return nps_run_put_history(findings->run, findings->output, findings->digest, file);
}

static bool has_findings(const nps_run_state_t *run, const nps_run_output_t *output) {
  int parts = 0;
  nps_merge_parts(output->merge, &parts);
  return run->search || output->nps.weighting || parts > 0;
}

static nps_output_t describe_output(const nps_run_state_t *run, const nps_run_output_t *output) {
  int parts = 0;
  const nps_part_t *part = nps_merge_parts(output->merge, &parts);
  return (nps_output_t){
      .parts = part,
      .part_count = parts,
      .path = output->path,
      .force = run->options->force,
      .locked = output->lock != NULL,
      .shard_size = run->recipe->shard_size,
      .adapter = output->adapter,
      .config_json = output->config_json,
      .recipe = run->recipe_text,
      .model_card = output->model_card,
      .sidecars = run->sidecars,
      .sidecar_count = run->sidecar_count,
  };
}

/* A line of details about how long a step took. */
static double tell_step(const nps_run_state_t *run, const char *step, double since) {
  nps_report_detail(run->report, "%s: %.2f s", step, nps_now() - since);
  return nps_now();
}

/* A line of details about how evenly the ranks were busy. */
static void tell_balance(const nps_run_state_t *run, const nps_merge_t *merge) {
  const nps_merge_balance_t b = nps_merge_balance(merge);
  nps_report_detail(
      run->report,
      "ranks busy: %.2f s at least, %.2f s in the mean, %.2f s at most; idle at the end: %.2f s in the mean", b.least,
      b.mean, b.most, b.most - b.mean);
}

static void show_progress(void *ctx, int64_t done) { nps_report_progress(ctx, done); }

/* Hashes are made of the files of all inputs and of the state of earlier runs. */
static nps_digest_t *start_digest(const nps_run_state_t *run, const nps_run_output_t *output) {
  const int n = output->input_count;
  const nps_model_t **read = nps_xcalloc((size_t)n + 1, sizeof *read);
  for (int i = 0; i < n; i++) read[i] = output->inputs[i];
  read[n] = run->history.updates;
  nps_digest_t *digest = nps_digest_start(read, n + (run->history.updates != NULL));
  free(read);
  if (run->hashes) nps_digest_take(digest, run->hashes);
  return digest;
}

/* Reads, merges, writes and puts the output in place. Collective. */
static nps_err_t merge_and_write(nps_run_state_t *run, nps_run_output_t *output, nps_merge_result_t *results,
                                 int64_t *bytes) {
  nps_output_t described = describe_output(run, output);
  nps_writer_t *writer = NULL;
  nps_digest_t *digest = start_digest(run, output);
  findings_t findings = {run, output, digest};
  described.extra_ctx = &findings;
  if (has_findings(run, output)) described.extra = put_findings;
  if (run->method->keeps_updates) {
    described.state = run->method->name;
    described.put_state = put_state;
  }
  nps_err_t err = NPS_OK;
  double since = nps_now();
  NPS_GOTO(nps_writer_open(run->comm, &described, output->layout, &writer));
  since = tell_step(run, "output created", since);
  nps_report_phase(run->report, "merging", nps_merge_work(output->merge));
  err = nps_merge_run(output->merge, run->comm, output->plan, digest, writer, show_progress, run->report, results);
  if (err == NPS_OK) nps_report_progress(run->report, nps_merge_work(output->merge));
  nps_report_phase_end(run->report);
  if (err != NPS_OK) goto done;
  since = tell_step(run, "read, merged and written", since);
  tell_balance(run, output->merge);
  NPS_GOTO(nps_digest_finish(run->comm, digest));
  since = tell_step(run, "remaining hashes", since);
  NPS_GOTO(nps_writer_commit(writer, digest));
  tell_step(run, "output brought to the device and put in place", since);
  nps_run_check_inputs(run, output->path);
  *bytes = nps_writer_bytes(writer);
done:
  nps_writer_free(writer);
  nps_digest_free(digest);
  return err;
}

static nps_err_t check_targets(const nps_run_state_t *run) {
  nps_err_t err = NPS_OK;
  if (nps_comm_rank(run->comm) != 0) return NPS_OK;
  if (nps_run_is_compression(run)) return nps_run_check_archive(run);
  for (int i = 0; i < run->output_count; i++) {
    const nps_run_output_t *output = &run->outputs[i];
    const nps_output_t described = describe_output(run, output);
    if (output->complete) continue;
    if (nps_run_is_input(run, output->path))
      err = nps_fail(NPS_ERR_CONFIG, "%s: the output would replace one of the inputs", output->path);
    else
      err = nps_err_worse(err, nps_output_check(&described, output_bytes(run, output), &run->outputs[i].lock));
  }
  return err;
}

static nps_err_t write_output(nps_run_state_t *run, nps_run_output_t *output) {
  int64_t bytes = 0;
  NPS_TRY(nps_comm_agree(run->comm, nps_run_dress(run, output)));
  NPS_TRY(nps_run_plan(run, output, nps_comm_size(run->comm)));
  if (run->options->verbose) nps_run_show_plan(run, output);
  NPS_TRY(nps_run_prepare_factors(run, output));
  nps_merge_result_t *results = nps_xcalloc((size_t)output->model_count, sizeof *results);
  nps_err_t err = merge_and_write(run, output, results, &bytes);
  if (err == NPS_OK) nps_run_count_stored(output, results);
  nps_run_free_factors(output);
  if (err == NPS_OK) nps_run_show_summary(run, output, results, bytes);
  free(results);
  return err;
}

/* The whole of a run that writes. Collective. */
static nps_err_t write_merged(nps_run_state_t *run) {
  bool complete = false;
  NPS_TRY(nps_run_find_complete(run, &complete));
  if (complete) return NPS_OK;
  NPS_TRY(nps_comm_agree(run->comm, check_targets(run)));
  NPS_TRY(nps_run_hash_history(run));
  NPS_TRY(nps_comm_agree(run->comm, nps_run_read_sidecars(run)));
  NPS_TRY(nps_run_search(run));
  if (nps_run_is_compression(run)) return nps_run_write_archive(run);
  for (int i = 0; i < run->output_count; i++)
    if (!run->outputs[i].complete) NPS_TRY(write_output(run, &run->outputs[i]));
  return NPS_OK;
}

/* Shows what a run would do. Collective. */
static nps_err_t show_plans(nps_run_state_t *run) {
  const int ranks = run->options->ranks ? run->options->ranks : nps_comm_size(run->comm);
  const int64_t limit = nps_run_memory_limit(run, nps_run_ranks_per_node(run));
  for (int i = 0; i < run->output_count; i++) {
    NPS_TRY(nps_run_plan(run, &run->outputs[i], ranks));
    nps_run_show_plan(run, &run->outputs[i]);
  }
  if (nps_run_is_compression(run)) nps_run_show_archive(run);
  return nps_comm_agree(run->comm, nps_run_plan_search(run, limit));
}

static nps_err_t run_phases(nps_run_state_t *run) {
  const nps_run_options_t *o = run->options;
  NPS_TRY(nps_run_validate(run));
  int count;
  nps_model_t *const *sources = nps_run_sources(run, &count);
  for (int i = 0; i < count; i++)
    nps_report_detail(run->report, "input %s: %s, %d tensors in %d files", sources[i]->name, sources[i]->path,
                      sources[i]->tensor_count, sources[i]->file_count);
  if (o->check) {
    nps_report_line(run->report, "%s: config and %d inputs are fine: %s, %d tensors", o->config, count,
                    run->method->name, run->outputs[0].layout->count);
    return NPS_OK;
  }
  return o->plan ? show_plans(run) : write_merged(run);
}

nps_err_t nps_run(const nps_comm_t *comm, const nps_run_options_t *options) {
  const nps_report_options_t show = {
      .program = "nps-merge", .log = options->log, .quiet = options->quiet, .verbose = options->verbose};
  nps_run_state_t run = {.comm = comm, .options = options, .started = nps_now(), .base = -1, .head = -1};
  nps_err_t err = nps_comm_rank(comm) == 0 ? nps_run_check_log(options) : NPS_OK;
  if (nps_comm_rank(comm) == 0 && err == NPS_OK) err = nps_report_open(&show, &run.report);
  err = nps_comm_agree(comm, err);
  if (err == NPS_OK) err = run_phases(&run);
  if (nps_comm_rank(comm) == 0 && err != NPS_OK) nps_report_problems(run.report, "nps-merge");
  nps_report_close(run.report);
  nps_run_free(&run);
  return err;
}
