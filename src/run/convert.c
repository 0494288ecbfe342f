/* All tensors of a model in another form, byte for byte. */
#include "nps/convert.h"

#include "copy.h"
#include "open_model.h"

#include "nps/h5.h"
#include "nps/json.h"
#include "nps/model.h"

#include <stdlib.h>
#include <string.h>

#define SHARD_SIZE ((int64_t)5000000000)

typedef struct {
  const nps_comm_t *comm;
  nps_report_t *report;
  nps_model_t *model;
  nps_layout_t *layout;
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
  json_t *quoted = nps_report_json_text(source);
  char *path = json_dumps(quoted, JSON_ENCODE_ANY); /* JSON's texts are YAML's */
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

static nps_err_t check_target(const convert_t *c, const nps_output_t *output) {
  const size_t n = strlen(output->path), suffix = strlen(".safetensors");
  if (nps_comm_rank(c->comm) != 0) return NPS_OK;
  if (n > suffix && strcmp(output->path + n - suffix, ".safetensors") == 0)
    return nps_fail(NPS_ERR_CONFIG, "%s: expected a folder, which gets model.safetensors, or a file that ends in .h5",
                    output->path);
  if (nps_run_is_of_model(c->model, output->path))
    return nps_fail(NPS_ERR_CONFIG, "%s: the output would replace the input", output->path);
  NPS_TRY(check_types(c, output->path));
  return nps_output_check(output, nps_run_layout_bytes(c->layout), NULL);
}

/* ---- writing ---- */

static nps_err_t write_all(convert_t *c, const nps_output_t *output, int64_t *bytes) {
  const nps_model_t *model = c->model;
  nps_digest_t *digest = nps_digest_start(&model, 1);
  nps_writer_t *writer = NULL;
  nps_err_t err;
  NPS_GOTO(nps_writer_open(c->comm, output, c->layout, &writer));
  NPS_GOTO(nps_run_copy(c->comm, c->report, "converting", c->model, c->layout, digest, writer));
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
  NPS_TRY(write_all(c, &output, &bytes));
  nps_report_line(c->report, "%s: %d tensors, %s, as they are in %s, in %.1f s", request->target, c->layout->count,
                  nps_format_bytes((double)bytes, size), request->source, nps_now() - started);
  return NPS_OK;
}

nps_err_t nps_convert_run(const nps_comm_t *comm, const nps_convert_request_t *request, nps_report_t *report) {
  if (request->base) return nps_lora_run(comm, request, report);
  convert_t c = {.comm = comm, .report = report};
  nps_err_t err = convert(&c, request);
  nps_layout_free(c.layout);
  nps_sidecars_free(c.sidecars, c.sidecar_count);
  nps_model_free(c.model);
  free(c.recipe);
  free(c.card);
  return err;
}
