#include "run_internal.h"

#include <stdlib.h>

static void free_run(nps_run_state_t *run) {
  nps_plan_free(run->plan);
  nps_merge_free(run->merge);
  nps_layout_free(run->layout);
  for (int i = 0; i < run->input_count; i++) nps_model_free(run->inputs[i]);
  free(run->inputs);
  free(run->models);
  nps_sidecars_free(run->sidecars, run->sidecar_count);
  free(run->recipe_text);
  free(run->config_json);
  free(run->model_card);
  nps_recipe_free(run->recipe);
}

static int64_t output_bytes(const nps_layout_t *layout) {
  int64_t bytes = 0;
  for (int t = 0; t < layout->count; t++)
    bytes += layout->targets[t].count * (int64_t)nps_dtype_size(layout->targets[t].dtype);
  return bytes;
}

static nps_output_t describe_output(const nps_run_state_t *run) {
  return (nps_output_t){
      .path = run->out,
      .force = run->options->force,
      .shard_size = run->recipe->shard_size,
      .config_json = run->config_json,
      .recipe = run->recipe_text,
      .model_card = run->model_card,
      .sidecars = run->sidecars,
      .sidecar_count = run->sidecar_count,
  };
}

/* A line of details about how long a step took. */
static double tell_step(const nps_run_state_t *run, const char *step, double since) {
  nps_report_detail(run->report, "%s: %.2f s", step, nps_now() - since);
  return nps_now();
}

static void show_progress(void *ctx, int64_t done) { nps_report_progress(ctx, done); }

/* Reads, merges, writes and puts the output in place. Collective. */
static nps_err_t merge_and_write(nps_run_state_t *run, nps_merge_result_t *results, int64_t *bytes) {
  const nps_output_t output = describe_output(run);
  nps_writer_t *writer = NULL;
  nps_digest_t *digest = nps_digest_start((const nps_model_t *const *)run->inputs, run->input_count);
  nps_err_t err = NPS_OK;
  double since = nps_now();
  NPS_GOTO(nps_writer_open(run->comm, &output, run->layout, &writer));
  since = tell_step(run, "output created", since);
  nps_report_phase(run->report, "merging", nps_merge_work(run->merge));
  err = nps_merge_run(run->merge, run->comm, run->plan, digest, writer, show_progress, run->report, results);
  if (err == NPS_OK) nps_report_progress(run->report, nps_merge_work(run->merge));
  nps_report_phase_end(run->report);
  if (err != NPS_OK) goto done;
  since = tell_step(run, "read, merged and written", since);
  NPS_GOTO(nps_digest_finish(run->comm, digest));
  since = tell_step(run, "remaining hashes", since);
  NPS_GOTO(nps_writer_commit(writer, digest));
  tell_step(run, "output brought to the device and put in place", since);
  *bytes = nps_writer_bytes(writer);
done:
  nps_writer_free(writer);
  nps_digest_free(digest);
  return err;
}

static nps_err_t check_target(const nps_run_state_t *run) {
  if (nps_comm_rank(run->comm) != 0) return NPS_OK;
  const nps_output_t output = describe_output(run);
  if (nps_run_is_input(run, run->out))
    return nps_fail(NPS_ERR_CONFIG, "%s: the output would replace one of the inputs", run->out);
  return nps_output_check(&output, output_bytes(run->layout));
}

/* The whole of a run that writes. Collective. */
static nps_err_t write_merged(nps_run_state_t *run) {
  int64_t bytes = 0;
  NPS_TRY(nps_comm_agree(run->comm, nps_run_dress(run)));
  NPS_TRY(nps_comm_agree(run->comm, check_target(run)));
  NPS_TRY(nps_run_plan(run, nps_comm_size(run->comm)));
  if (run->options->verbose) nps_run_show_plan(run);
  nps_merge_result_t *results = nps_xcalloc((size_t)run->model_count, sizeof *results);
  nps_err_t err = merge_and_write(run, results, &bytes);
  if (err == NPS_OK) nps_run_show_summary(run, results, bytes);
  free(results);
  return err;
}

static nps_err_t run_phases(nps_run_state_t *run) {
  const nps_run_options_t *o = run->options;
  NPS_TRY(nps_run_validate(run));
  for (int i = 0; i < run->input_count; i++)
    nps_report_detail(run->report, "input %s: %s, %d tensors in %d files", run->inputs[i]->name, run->inputs[i]->path,
                      run->inputs[i]->tensor_count, run->inputs[i]->file_count);
  if (o->check) {
    nps_report_line(run->report, "%s: config and %d inputs are fine: %s, %d tensors", o->config, run->input_count,
                    run->method->name, run->layout->count);
    return NPS_OK;
  }
  if (!o->plan) return write_merged(run);
  NPS_TRY(nps_run_plan(run, o->ranks ? o->ranks : nps_comm_size(run->comm)));
  nps_run_show_plan(run);
  return NPS_OK;
}

nps_err_t nps_run(const nps_comm_t *comm, const nps_run_options_t *options) {
  const nps_report_options_t show = {
      .program = "nps-merge", .log = options->log, .quiet = options->quiet, .verbose = options->verbose};
  nps_run_state_t run = {.comm = comm, .options = options, .started = nps_now(), .base = -1, .head = -1};
  nps_err_t err = nps_comm_rank(comm) == 0 ? nps_report_open(&show, &run.report) : NPS_OK;
  err = nps_comm_agree(comm, err);
  if (err == NPS_OK) err = run_phases(&run);
  if (nps_comm_rank(comm) == 0 && err != NPS_OK) nps_report_problems(run.report, "nps-merge");
  nps_report_close(run.report);
  free_run(&run);
  return err;
}
