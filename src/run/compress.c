/* Compression: the task vectors of all models, pruned and rounded, in one archive beside the base. */
#include "run_internal.h"

#include "copy.h"

#include "nps/archive.h"
#include "nps/factors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool nps_run_is_compression(const nps_run_state_t *run) {
  return strcmp(run->recipe->merge_method, "nps") == 0 && run->recipe->nps.application == NPS_APPLICATION_COMPRESSION;
}

static nps_output_t describe(const nps_run_state_t *run) {
  return (nps_output_t){.path = run->outputs[0].path,
                        .format = NPS_ARCHIVE_FORMAT,
                        .force = run->options->force,
                        .locked = run->outputs[0].lock != NULL,
                        .config_json = run->inputs[run->base]->config_json,
                        .recipe = run->recipe_text};
}

static double base_bytes(const nps_run_state_t *run) {
  double bytes = 0;
  for (int t = 0; t < run->layout->count; t++)
    bytes += (double)run->layout->targets[t].count * (double)nps_dtype_size(run->layout->targets[t].dtype);
  return bytes;
}

/* What an archive takes at most: of each model a bit an entry, the kept values, and the head. */
static int64_t most_bytes(const nps_run_state_t *run) {
  double bytes = 1e6 + (run->recipe->archive.embed_base ? base_bytes(run) : 0);
  for (int o = 0; o < run->output_count; o++) {
    const nps_layout_t *layout = run->outputs[o].layout;
    for (int t = 0; t < layout->count; t++) {
      const double count = (double)layout->targets[t].count;
      if (layout->targets[t].action == NPS_ACTION_MERGE)
        bytes += count * (1 + run->recipe->nps.density * run->recipe->archive.value_bits) / 8;
      if (layout->targets[t].action == NPS_ACTION_HEAD)
        bytes += count * (double)nps_dtype_size(layout->targets[t].dtype);
    }
  }
  return (int64_t)bytes;
}

/* Bits that a kept value takes of its width: what frequencies save, as measured on fine-tuned models. */
static double coded_bits(int value_bits) { return value_bits > 8 ? value_bits - 0.5 : value_bits - 1; }

/* A bit mask of n random entries, of which a part p is kept, has that many bits an entry. */
static double entropy(double p) { return p > 0 && p < 1 ? -p * log2(p) - (1 - p) * log2(1 - p) : 0; }

/* Bytes of a target's part in an archive, an element. */
static double predicted_width(const nps_run_state_t *run, const nps_target_t *target, double density) {
  const nps_recipe_nps_t *nps = &run->recipe->nps;
  const int bits = run->recipe->archive.value_bits;
  if (target->action == NPS_ACTION_HEAD) return (double)nps_dtype_size(target->dtype);
  if (target->action != NPS_ACTION_MERGE) return 0;
  if (nps->singular && nps_factors_splits(target, (const char *const *)nps->exclude, nps->exclude_count))
    return density * bits / 8; /* what frequencies save goes into scales and tables */
  return (entropy(density) + density * coded_bits(bits)) / 8 + NPS_ARCHIVE_OVERHEAD;
}

void nps_run_predict_archive(const nps_run_state_t *run, nps_run_output_t *output) {
  nps_plan_t *plan = output->plan;
  double density = run->recipe->nps.density;
  (void)nps_merge_plain_value(output->merge, "density", 0, &density);
  for (int r = 0; r < plan->ranks; r++) {
    double bytes = 0;
    for (int i = plan->first_piece[r]; i < plan->first_piece[r + 1]; i++) {
      const nps_piece_t *piece = &plan->pieces[i];
      bytes += (double)piece->count * predicted_width(run, &output->layout->targets[piece->target], density);
    }
    plan->write[r] = (int64_t)bytes;
  }
}

nps_err_t nps_run_check_archive(const nps_run_state_t *run) {
  const nps_output_t output = describe(run);
  if (run->inputs[run->base]->form == NPS_FORM_MADE)
    return nps_fail(NPS_ERR_CONFIG,
                    "nps.application: compression needs a base as it is stored, not one made of slices");
  for (int t = 0; run->recipe->archive.embed_base && t < run->inputs[run->base]->tensor_count; t++)
    if (run->inputs[run->base]->tensors[t].rule)
      return nps_fail(NPS_ERR_CONFIG, "archive.embed_base: %s is no stored model, convert it first",
                      run->inputs[run->base]->path);
  for (int o = 0; o < run->output_count; o++) {
    const char *name = run->outputs[o].models[0].name;
    if (!*name || strchr(name, '/') || strcmp(name, ".") == 0)
      return nps_fail(NPS_ERR_CONFIG, "'%s' cannot name a model in an archive: expected a name without '/'", name);
  }
  if (nps_run_is_input(run, output.path))
    return nps_fail(NPS_ERR_CONFIG, "%s: the output would replace one of the inputs", output.path);
  return nps_output_check(&output, most_bytes(run), &run->outputs[0].lock);
}

/* ---- writing ---- */

typedef struct {
  nps_run_state_t *run;
  nps_digest_t *digest;
  nps_writer_t *file;
  nps_archive_t *archive;
  nps_layout_t *layout;        /* of what is embedded */
  nps_archive_told_t *told;    /* [outputs] */
  nps_merge_result_t *results; /* [outputs] */
  int output;                  /* in work */
} compress_t;

static nps_err_t put_findings(void *ctx, nps_h5_t *file) {
  const compress_t *c = ctx;
  NPS_TRY(nps_archive_put_base(c->archive, file, c->digest));
  return c->run->search ? nps_search_write(c->run->search, true, file) : NPS_OK;
}

static void show_progress(void *ctx, int64_t done) { nps_report_progress(ctx, done); }

static bool is_matrix(void *ctx, const nps_target_t *target) {
  const nps_recipe_nps_t *nps = &((const compress_t *)ctx)->run->recipe->nps;
  return nps_factors_splits(target, (const char *const *)nps->exclude, nps->exclude_count);
}

/* The matrix that is written was assembled just before. */
static nps_low_rank_t last_factors(void *ctx, int i) {
  const compress_t *c = ctx;
  (void)i;
  return nps_assembly_factors(c->run->outputs[c->output].nps.assembly);
}

static nps_err_t merge_model(compress_t *c, nps_run_output_t *output, nps_writer_t *writer) {
  nps_run_state_t *run = c->run;
  char *title = nps_xstrf("compressing %s", output->models[0].name);
  nps_report_phase(run->report, title, nps_merge_work(output->merge));
  const nps_err_t err = nps_merge_run(output->merge, run->comm, output->plan, c->digest, writer, show_progress,
                                      run->report, &c->results[c->output]);
  if (err == NPS_OK) nps_report_progress(run->report, nps_merge_work(output->merge));
  nps_report_phase_end(run->report);
  free(title);
  return err;
}

static nps_err_t add_model(compress_t *c, int o) {
  nps_run_state_t *run = c->run;
  nps_run_output_t *output = &run->outputs[o];
  nps_writer_t *writer = NULL;
  c->output = o;
  NPS_TRY(nps_comm_agree(run->comm, nps_run_dress(run, output)));
  NPS_TRY(nps_run_plan(run, output, nps_comm_size(run->comm)));
  if (run->options->verbose) nps_run_show_plan(run, output);
  NPS_TRY(nps_run_prepare_factors(run, output));
  nps_err_t err = nps_archive_begin(c->archive, output->models[0].name, output->layout, &writer);
  if (err == NPS_OK) err = merge_model(c, output, writer);
  if (writer) err = nps_archive_end(c->archive, writer, err, output->config_json, &c->told[o]);
  nps_run_free_factors(output);
  return err;
}

static nps_err_t write_file(compress_t *c) {
  nps_run_state_t *run = c->run;
  const nps_model_t *base = run->inputs[run->base];
  const bool embed = run->recipe->archive.embed_base;
  const nps_archive_factors_t factors = {.is_matrix = is_matrix, .get = last_factors, .ctx = c};
  const nps_archive_spec_t spec = {.base = base,
                                   .embedded = embed,
                                   .base_name = run->recipe->base_model,
                                   .expanded = run->layout,
                                   .value_bits = run->recipe->archive.value_bits,
                                   .factors = nps_run_is_singular(run) ? &factors : NULL};
  nps_output_t output = describe(run);
  output.extra = put_findings;
  output.extra_ctx = c;
  c->layout = embed ? nps_layout_copy(base) : nps_xcalloc(1, sizeof *c->layout);
  if (embed) {
    output.sidecars = run->sidecars;
    output.sidecar_count = run->sidecar_count;
  }
  NPS_TRY(nps_writer_open(run->comm, &output, c->layout, &c->file));
  if (embed) NPS_TRY(nps_run_copy(run->comm, run->report, "copying the base", base, c->layout, c->digest, c->file));
  NPS_TRY(nps_archive_new(c->file, &spec, &c->archive));
  for (int o = 0; o < run->output_count; o++) NPS_TRY(add_model(c, o));
  NPS_TRY(nps_digest_finish(run->comm, c->digest));
  NPS_TRY(nps_writer_commit(c->file, c->digest));
  nps_run_check_inputs(run, output.path);
  return NPS_OK;
}

/* ---- what is shown ---- */

/* Bytes of a model where it is stored whole. */
static int64_t full_bytes(const nps_run_state_t *run, const nps_run_output_t *output) {
  int64_t bytes = 0;
  for (int t = 0; t < output->layout->count; t++)
    if (output->layout->targets[t].action == NPS_ACTION_HEAD)
      bytes += output->layout->targets[t].count * (int64_t)nps_dtype_size(output->layout->targets[t].dtype);
  for (int t = 0; t < run->layout->count; t++)
    if (run->layout->targets[t].action == NPS_ACTION_MERGE)
      bytes += run->layout->targets[t].count * (int64_t)nps_dtype_size(run->layout->targets[t].dtype);
  return bytes;
}

void nps_run_show_archive(const nps_run_state_t *run) {
  char stored[32], all[32];
  double sum = 0;
  nps_report_line(run->report, "%s", "");
  for (int o = 0; o < run->output_count; o++) {
    const nps_run_output_t *output = &run->outputs[o];
    double bytes = 0;
    for (int r = 0; r < output->plan->ranks; r++) bytes += (double)output->plan->write[r];
    sum += bytes;
    nps_report_line(run->report, "archive: %s takes about %s, 1/%.1f of the model", output->models[0].name,
                    nps_format_bytes(bytes, stored), (double)full_bytes(run, output) / bytes);
  }
  if (run->recipe->archive.embed_base) sum += base_bytes(run);
  nps_report_line(run->report, "archive: about %s, %s", nps_format_bytes(sum, all),
                  run->recipe->archive.embed_base ? "with the base" : "without the base");
}

enum { COLUMNS = 6 };

static void add_row(const compress_t *c, int o, char *cells[COLUMNS], json_t *events) {
  const nps_run_output_t *output = &c->run->outputs[o];
  const nps_archive_told_t *t = &c->told[o];
  const double full = (double)full_bytes(c->run, output), kept = (double)t->kept / (double)t->entries;
  char size[32];
  cells[0] = nps_xstrdup(output->models[0].name);
  cells[1] = nps_xstrf("%.6g", c->results[o].norm);
  cells[2] = nps_xstrf("%.2f %%", 100 * kept);
  cells[3] = nps_xstrf("%.2f %%", 100 * t->error);
  cells[4] = nps_xstrdup(nps_format_bytes((double)t->bytes, size));
  cells[5] = nps_xstrf("1/%.1f", full / (double)t->bytes);
  json_array_append_new(events, json_pack("{s:s, s:f, s:f, s:I, s:I, s:f}", "name", output->models[0].name, "norm",
                                          c->results[o].norm, "kept", kept, "bytes", (json_int_t)t->bytes, "full",
                                          (json_int_t)full, "error", t->error));
}

static void show_summary(const compress_t *c) {
  static const char *const titles[COLUMNS] = {"model", "‖task vector‖", "kept", "rounding", "stored", "of the model"};
  const nps_run_state_t *run = c->run;
  const int cells = COLUMNS * (run->output_count + 1);
  char **cell = nps_xcalloc((size_t)cells, sizeof *cell), size[32];
  json_t *models = json_array();
  for (int i = 0; i < COLUMNS; i++) cell[i] = nps_xstrdup(titles[i]);
  for (int o = 0; o < run->output_count; o++) add_row(c, o, cell + (size_t)COLUMNS * (size_t)(o + 1), models);
  nps_report_table(run->report, (const char *const *)cell, cells / COLUMNS, COLUMNS);
  const double bytes = (double)nps_writer_bytes(c->file), seconds = nps_now() - run->started;
  nps_report_line(run->report, "%s", "");
  nps_report_line(run->report, "%s: %d models, %s, compressed, in %.1f s", run->outputs[0].path, run->output_count,
                  nps_format_bytes(bytes, size), seconds);
  nps_report_event(run->report, "done",
                   json_pack("{s:o, s:s, s:I, s:f, s:i, s:o}", "output", nps_report_json_text(run->outputs[0].path),
                             "method", "nps", "bytes", (json_int_t)bytes, "seconds", seconds, "ranks",
                             nps_comm_size(run->comm), "models", models));
  for (int i = 0; i < cells; i++) free(cell[i]);
  free(cell);
}

nps_err_t nps_run_write_archive(nps_run_state_t *run) {
  compress_t c = {.run = run,
                  .digest = nps_digest_start((const nps_model_t *const *)run->inputs, run->input_count),
                  .told = nps_xcalloc((size_t)run->output_count, sizeof *c.told),
                  .results = nps_xcalloc((size_t)run->output_count, sizeof *c.results)};
  if (run->hashes) nps_digest_take(c.digest, run->hashes);
  const nps_err_t err = write_file(&c);
  if (err == NPS_OK && run->report) show_summary(&c);
  nps_archive_free(c.archive);
  nps_writer_free(c.file);
  nps_layout_free(c.layout);
  nps_digest_free(c.digest);
  free(c.told);
  free(c.results);
  return err;
}
