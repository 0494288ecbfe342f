/* All tensors of a model in another form, byte for byte. */
#include "nps/convert.h"

#include "open_model.h"

#include "nps/h5.h"
#include "nps/json.h"
#include "nps/model.h"
#include "nps/plan.h"

#include <stdlib.h>
#include <string.h>

#define SHARD_SIZE ((int64_t)5000000000)

typedef struct {
  const nps_comm_t *comm;
  nps_report_t *report;
  nps_model_t *model;
  nps_layout_t *layout;
  nps_plan_t *plan;
  nps_sidecar_t *sidecars; /* rank 0 only */
  int sidecar_count;
  char *recipe, *card;
} convert_t;

/* ---- what is written besides tensors ---- */

/* The recipe that an input was made by, or NULL. */
static nps_err_t read_recipe(const nps_model_t *model, char **recipe) {
  nps_h5_t *file = NULL;
  nps_err_t err = NPS_OK;
  *recipe = NULL;
  if (model->form == NPS_FORM_HDF5) {
    NPS_TRY(nps_h5_open(model->path, &file));
    err = nps_h5_get_attr_text(file, "/", "recipe", recipe);
    nps_h5_abandon(file);
  } else if (model->form == NPS_FORM_FOLDER) {
    char *path = nps_xstrf("%s/nps-merge.yaml", model->path);
    if (nps_run_same_place(path, path)) err = nps_file_read(path, (size_t)64 << 20, recipe, NULL);
    free(path);
  }
  return err;
}

/* A recipe that gives the same tensors, behind the one by which they were made, as a comment. */
static char *write_recipe(const char *source, const char *made_by) {
  nps_text_t text = {0};
  json_t *quoted = json_string(source);
  char *path = quoted ? json_dumps(quoted, JSON_ENCODE_ANY) : nps_xstrdup("\"?\""); /* JSON's texts are YAML's */
  if (made_by) nps_text_add(&text, "# Converted from a model that was made by\n");
  for (const char *line = made_by; line && *line;) {
    const int length = (int)strcspn(line, "\n");
    nps_text_add(&text, "#   %.*s\n", length, line);
    line += length + (line[length] == '\n');
  }
  nps_text_add(&text, "merge_method: passthrough\nmodels:\n  - model: %s\n", path);
  free(path);
  json_decref(quoted);
  return text.text;
}

static nps_err_t dress(convert_t *c, const char *source) {
  char *made_by = NULL;
  if (nps_comm_rank(c->comm) == 0) {
    NPS_TRY(nps_sidecars_read(c->model, &c->sidecars, &c->sidecar_count));
    NPS_TRY(read_recipe(c->model, &made_by));
    c->recipe = write_recipe(source, made_by);
    free(made_by);
  }
  return NPS_OK;
}

/* ---- checks ---- */

static nps_err_t check_types(const convert_t *c, const char *target) {
  if (c->model->experts)
    return nps_fail(NPS_ERR_INPUT, "%s: is a mixture of experts, which cannot be converted", c->model->path);
  for (int t = 0; t < c->layout->count; t++)
    if (nps_output_is_hdf5(target) && nps_dtype_kind(c->layout->targets[t].dtype) == NPS_KIND_OPAQUE)
      return nps_fail(NPS_ERR_INPUT, "%s: tensor %s has type %s, which a merged HDF5 file cannot hold", c->model->path,
                      c->layout->targets[t].name, nps_dtype_name(c->layout->targets[t].dtype));
  return NPS_OK;
}

static int64_t bytes_of(const nps_layout_t *layout) {
  int64_t bytes = 0;
  for (int t = 0; t < layout->count; t++)
    bytes += layout->targets[t].count * (int64_t)nps_dtype_size(layout->targets[t].dtype);
  return bytes;
}

static nps_err_t check_target(const convert_t *c, const nps_output_t *output) {
  const size_t n = strlen(output->path), suffix = strlen(".safetensors");
  if (nps_comm_rank(c->comm) != 0) return NPS_OK;
  if (n > suffix && strcmp(output->path + n - suffix, ".safetensors") == 0)
    return nps_fail(NPS_ERR_CONFIG, "%s: expected a folder, which gets model.safetensors, or a file that ends in .h5",
                    output->path);
  if (nps_run_is_of_model(c->model, output->path))
    return nps_fail(NPS_ERR_CONFIG, "%s: the output would replace the input", output->path);
  NPS_TRY(check_types(c, output->path));
  return nps_output_check(output, bytes_of(c->layout), NULL);
}

/* ---- copying ---- */

static nps_err_t make_plan(convert_t *c) {
  const nps_demand_t demand = {0};
  const nps_costs_t costs = {
      .read_rate = 7e9, .hash_rate = 1.7e9, .write_rate = 1.5e9, .cores_per_node = 1, .ranks_per_node = 1};
  const nps_model_t *model = c->model;
  return nps_plan_make(c->layout, &model, nps_comm_size(c->comm), &demand, &costs, INT64_MAX, &c->plan);
}

typedef struct {
  nps_pulse_t *pulse;
  nps_report_t *report;
  const nps_model_t *model;
  nps_reader_t *reader;
  nps_writer_t *writer;
  void *buffer;   /* NPS_STEP elements */
  double *values; /* NPS_STEP, where computed tensors are rounded; else NULL */
  int64_t done;   /* bytes */
  bool go_on;
} copy_t;

/* What is computed comes in float32 or wider, and is rounded to its base's type. */
static nps_err_t round_computed(const copy_t *k, const nps_target_t *target, int64_t first, int64_t n) {
  const nps_tensor_info_t *t = &k->model->tensors[target->source[0]];
  if (!t->rule) return NPS_OK;
  int64_t at = nps_tensor_find_nonfinite(t->dtype, k->buffer, n);
  if (at >= 0)
    return nps_fail(NPS_ERR_INPUT, "%s: tensor %s holds NaN or infinity at index %lld", k->model->path, t->name,
                    (long long)(first + at));
  nps_tensor_widen(t->dtype, k->buffer, n, k->values);
  nps_tensor_narrow(k->values, n, target->dtype, k->buffer);
  at = nps_tensor_find_nonfinite(target->dtype, k->buffer, n);
  return at < 0 ? NPS_OK
                : nps_fail(NPS_ERR_RUNTIME, "%s: tensor %s: the value at index %lld is too large for %s",
                           k->model->path, t->name, (long long)(first + at), nps_dtype_name(target->dtype));
}

static nps_err_t copy_piece(copy_t *k, const nps_target_t *target, const nps_piece_t *piece) {
  const int64_t end = piece->first + piece->count, size = (int64_t)nps_dtype_size(target->dtype);
  for (int64_t first = piece->first; first < end && k->go_on; first += NPS_STEP) {
    const int64_t n = end - first < NPS_STEP ? end - first : NPS_STEP;
    int64_t total = 0;
    NPS_TRY(nps_reader_read(k->reader, target->source[0], first, n, k->buffer));
    NPS_TRY(round_computed(k, target, first, n));
    NPS_TRY(nps_writer_write(k->writer, piece->target, first, n, k->buffer));
    k->done += n * size;
    k->go_on = nps_pulse_beat(k->pulse, k->done, &total);
    nps_report_progress(k->report, total);
  }
  return NPS_OK;
}

static void show_total(void *report, int64_t total) { nps_report_progress(report, total); }

static nps_err_t copy_all(convert_t *c, nps_digest_t *digest, nps_writer_t *writer) {
  const int rank = nps_comm_rank(c->comm);
  const size_t room = (size_t)NPS_STEP * sizeof(double);
  copy_t k = {.report = c->report, .model = c->model, .writer = writer, .go_on = true};
  nps_err_t err = nps_buffer_alloc(room, "a part of a tensor", &k.buffer);
  if (err == NPS_OK && c->model->derivation) err = nps_buffer_alloc(room, "a part of a tensor", &k.values);
  NPS_GOTO(nps_comm_agree(c->comm, err));
  k.reader = nps_reader_new(c->model, digest);
  k.pulse = nps_pulse_start(c->comm);
  for (int i = c->plan->first_piece[rank]; i < c->plan->first_piece[rank + 1] && err == NPS_OK && k.go_on; i++)
    err = copy_piece(&k, &c->layout->targets[c->plan->pieces[i].target], &c->plan->pieces[i]);
  err = nps_pulse_end(k.pulse, k.done, err, show_total, c->report);
done:
  nps_reader_free(k.reader);
  free(k.buffer);
  free(k.values);
  return err;
}

static nps_err_t write_all(convert_t *c, const nps_output_t *output, int64_t *bytes) {
  const nps_model_t *model = c->model;
  nps_digest_t *digest = nps_digest_start(&model, 1);
  nps_writer_t *writer = NULL;
  nps_err_t err;
  NPS_GOTO(nps_writer_open(c->comm, output, c->layout, &writer));
  nps_report_phase(c->report, "converting", bytes_of(c->layout));
  err = copy_all(c, digest, writer);
  if (err == NPS_OK) nps_report_progress(c->report, bytes_of(c->layout));
  nps_report_phase_end(c->report);
  NPS_GOTO(err);
  NPS_GOTO(nps_digest_finish(c->comm, digest));
  NPS_GOTO(nps_writer_commit(writer, digest));
  *bytes = nps_writer_bytes(writer);
done:
  nps_writer_free(writer);
  nps_digest_free(digest);
  return err;
}

static nps_err_t convert(convert_t *c, const nps_convert_request_t *request) {
  const double started = nps_now();
  int64_t bytes = 0;
  char size[32];
  NPS_TRY(nps_run_open_model(c->comm, request->source, &c->model));
  NPS_TRY(nps_run_refuse_adapter(c->model));
  c->layout = nps_layout_copy(c->model);
  NPS_TRY(nps_comm_agree(c->comm, dress(c, request->source)));
  nps_comm_bcast_text(c->comm, &c->recipe);
  c->card =
      nps_xstrf("---\nlibrary_name: transformers\n---\n# Converted model\n\nWritten by nps-convert from %s: the same "
                "tensors, %s.\n\n## Recipe\n\n```yaml\n%s```\n",
                request->source,
                c->model->derivation ? "computed and rounded to the types of the base" : "byte for byte", c->recipe);
  const nps_output_t output = {.path = request->target,
                               .force = request->force,
                               .shard_size = SHARD_SIZE,
                               .config_json = c->model->config_json,
                               .recipe = c->recipe,
                               .model_card = c->card,
                               .sidecars = c->sidecars,
                               .sidecar_count = c->sidecar_count};
  NPS_TRY(nps_comm_agree(c->comm, check_target(c, &output)));
  NPS_TRY(nps_comm_agree(c->comm, make_plan(c)));
  NPS_TRY(write_all(c, &output, &bytes));
  nps_report_line(c->report, "%s: %d tensors, %s, as they are in %s, in %.1f s", request->target, c->layout->count,
                  nps_format_bytes((double)bytes, size), request->source, nps_now() - started);
  return NPS_OK;
}

nps_err_t nps_convert_run(const nps_comm_t *comm, const nps_convert_request_t *request, nps_report_t *report) {
  if (request->base) return nps_lora_run(comm, request, report);
  convert_t c = {.comm = comm, .report = report};
  nps_err_t err = convert(&c, request);
  nps_plan_free(c.plan);
  nps_layout_free(c.layout);
  nps_sidecars_free(c.sidecars, c.sidecar_count);
  nps_model_free(c.model);
  free(c.recipe);
  free(c.card);
  return err;
}
