/* Singular factors (merge_method nps, partition: singular): where they are kept, and which models they are of. */
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#define TMPFS_MAGIC 0x01021994

bool nps_run_is_singular(const nps_run_state_t *run) {
  return strcmp(run->recipe->merge_method, "nps") == 0 && run->recipe->nps.singular;
}

/* A folder on a disk of this host, the first of those that clusters name; one that lies in memory is no help. */
static const char *spill_folder(void) {
  const char *const folders[] = {getenv("SLURM_TMPDIR"), getenv("TMPDIR"), "/tmp", "/var/tmp"};
  struct statfs fs;
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
    if (folders[i] && *folders[i] && statfs(folders[i], &fs) == 0 && fs.f_type != TMPFS_MAGIC) return folders[i];
  return "/tmp";
}

/* What does not depend on where the factors go. */
static nps_factors_spec_t describe(const nps_run_state_t *run, const nps_layout_t *layout) {
  const nps_recipe_nps_t *nps = &run->recipe->nps;
  return (nps_factors_spec_t){.layout = layout,
                              .subspaces = nps->subspaces,
                              .sum = nps->sum,
                              .scope = nps->scope,
                              .exclude = (const char *const *)nps->exclude,
                              .exclude_count = nps->exclude_count,
                              .value_bits = nps_run_is_compression(run) ? run->recipe->archive.value_bits : 0};
}

static nps_factors_spec_t describe_all(const nps_run_state_t *run) {
  nps_factors_spec_t spec = describe(run, run->layout);
  spec.inputs = (const nps_model_t *const *)run->inputs;
  spec.base = run->base;
  spec.models = run->model_count;
  return spec;
}

static nps_factors_spec_t describe_output(const nps_run_state_t *run, const nps_run_output_t *output) {
  nps_factors_spec_t spec = describe(run, output->layout);
  spec.inputs = output->inputs;
  spec.base = output->base;
  spec.models = output->model_count;
  return spec;
}

/* Parts of names that no matrix has are a slip. */
static void note_unused(const nps_factors_spec_t *spec) {
  for (int i = 0; i < spec->exclude_count; i++) {
    bool used = false;
    for (int t = 0; t < spec->layout->count && !used; t++)
      used = nps_factors_splits(&spec->layout->targets[t], NULL, 0) &&
             strstr(spec->layout->targets[t].name, spec->exclude[i]);
    if (!used) nps_note("nps.spectral_exclude: no matrix has '%s' in its name", spec->exclude[i]);
  }
}

static void tell(const nps_run_state_t *run, const nps_factors_spec_t *spec, double seconds) {
  char bytes[32];
  nps_report_detail(run->report, "singular factors: %s in %.2f s%s%s",
                    nps_format_bytes((double)nps_factors_bytes(spec), bytes), seconds,
                    spec->spill ? ", in a file in " : ", in memory", spec->spill ? spec->spill : "");
}

static nps_err_t factorise(nps_run_state_t *run, const nps_factors_spec_t *spec, nps_factors_t **out) {
  const double started = nps_now();
  note_unused(spec);
  NPS_TRY(nps_factors_new(run->comm, spec, out));
  tell(run, spec, nps_now() - started);
  return NPS_OK;
}

/* ---- for a search: every rank has those of its layers ---- */

int64_t nps_run_factors_target_bytes(const nps_run_state_t *run, int target) {
  const nps_factors_spec_t spec = describe_all(run);
  return nps_factors_target_bytes(&spec, target);
}

int64_t nps_run_factors_work_bytes(const nps_run_state_t *run) {
  const nps_factors_spec_t spec = describe_all(run);
  return nps_max64(nps_assembly_bytes(&spec), nps_factors_work_bytes(&spec));
}

void nps_run_show_factors(const nps_run_state_t *run, bool spill) {
  const nps_factors_spec_t spec = describe_all(run);
  char bytes[32];
  nps_report_line(run->report, "singular factors: %s %s%s", nps_format_bytes((double)nps_factors_bytes(&spec), bytes),
                  spill ? "of disk on every host, as memory does not hold them, in "
                        : "in memory, for each model group",
                  spill ? spill_folder() : "");
}

nps_err_t nps_run_factorise_all(nps_run_state_t *run, const nps_weighting_t *start, const int *input_of,
                                const nps_run_groups_t *groups) {
  nps_factors_spec_t spec = describe_all(run);
  spec.input_of = input_of;
  spec.lambda = start->lambda;
  spec.density = start->density;
  spec.spill = groups->spill ? spill_folder() : NULL;
  spec.hold = groups->hold;
  return factorise(run, &spec, &run->factors);
}

/* ---- for a merge without a search: every rank has those of the tensors that it merges ---- */

/* Whether some rank's factors do not fit beside what its plan needs; else they are added to the plan. */
static bool place_factors(nps_plan_t *plan, const nps_factors_spec_t *spec) {
  int64_t *bytes = nps_xcalloc((size_t)plan->ranks, sizeof *bytes);
  bool spill = false;
  for (int t = 0; t < spec->layout->count; t++) bytes[plan->owner_first[t]] += nps_factors_target_bytes(spec, t);
  for (int r = 0; r < plan->ranks; r++) spill = spill || plan->memory[r] + bytes[r] > plan->memory_limit;
  for (int r = 0; r < plan->ranks && !spill; r++) plan->memory[r] += bytes[r];
  free(bytes);
  return spill;
}

void nps_run_plan_factors(const nps_run_state_t *run, nps_run_output_t *output) {
  if (!nps_run_is_singular(run) || nps_run_has_tasks(run)) return;
  const nps_factors_spec_t spec = describe_output(run, output);
  output->spill = place_factors(output->plan, &spec);
}

void nps_run_show_output_factors(const nps_run_state_t *run, const nps_run_output_t *output) {
  if (!nps_run_is_singular(run) || nps_run_has_tasks(run)) return;
  const nps_factors_spec_t spec = describe_output(run, output);
  char bytes[32];
  nps_report_line(run->report, "singular factors: %s, %s%s", nps_format_bytes((double)nps_factors_bytes(&spec), bytes),
                  output->spill ? "all ranks together, on disk, as memory does not hold them, in "
                                : "all ranks together, in memory",
                  output->spill ? spill_folder() : "");
}

/* λ where it is the same for all tensors, as for a sum it is; and the densities. */
static void find_values(const nps_run_output_t *output, double *lambda, double *density) {
  double common = 1;
  nps_merge_plain_value(output->merge, "lambda", 0, &common);
  for (int m = 0; m < output->model_count; m++) {
    double weight = 1;
    nps_merge_plain_value(output->merge, "weight", m, &weight);
    nps_merge_plain_value(output->merge, "density", m, &density[m]);
    lambda[m] = common * weight;
  }
}

static nps_err_t factorise_output(nps_run_state_t *run, nps_run_output_t *output, const double *lambda,
                                  const double *density) {
  nps_factors_spec_t spec = describe_output(run, output);
  int *input_of = nps_xcalloc((size_t)output->model_count, sizeof *input_of);
  for (int m = 0; m < output->model_count; m++) input_of[m] = output->models[m].input;
  spec.input_of = input_of;
  spec.lambda = lambda;
  spec.density = density;
  spec.owner = output->plan->owner_first;
  spec.spill = output->spill ? spill_folder() : NULL;
  nps_err_t err = factorise(run, &spec, &output->factors);
  output->nps.factors = output->factors;
  free(input_of);
  return err;
}

nps_err_t nps_run_prepare_factors(nps_run_state_t *run, nps_run_output_t *output) {
  nps_merge_nps_t *nps = &output->nps;
  if (!nps_run_is_singular(run)) return NPS_OK;
  nps_weighting_t *w = nps_weighting_copy(nps->weighting);
  nps_err_t err = NPS_OK;
  find_values(output, w->lambda, w->density);
  nps->factors = run->factors;
  nps->first_list = run->factors ? output->first_model : 0;
  err = run->factors ? nps_factors_give(run->comm, run->factors, output->layout, output->plan->owner_first)
                     : factorise_output(run, output, w->lambda, w->density);
  if (err == NPS_OK) {
    for (int m = 0; m < w->models; m++) w->lambda[m] = 1; /* what is kept does not depend on it */
    nps->taking = nps_taking_new(nps->factors);
    nps_taking_make(nps->taking, w, nps->first_list);
    const int bits = nps_run_is_compression(run) ? NPS_VALUES_UNROUNDED : 0; /* the archive rounds */
    err = nps_comm_agree(run->comm, nps_assembly_new(nps->factors, bits, &nps->assembly));
  }
  nps_weighting_free(w);
  return err;
}

void nps_run_free_factors(nps_run_output_t *output) {
  nps_taking_free(output->nps.taking);
  nps_assembly_free(output->nps.assembly);
  nps_factors_free(output->factors);
  output->nps.taking = NULL;
  output->nps.assembly = NULL;
  output->factors = NULL;
}

/* ---- what is told of them ---- */

static int list_of(const nps_run_output_t *output, int model) {
  return output->nps.sum ? 0 : output->nps.first_list + model;
}

void nps_run_count_stored(const nps_run_output_t *output, nps_merge_result_t *results) {
  const nps_merge_nps_t *nps = &output->nps;
  int64_t elements = 0;
  if (!nps->taking) return;
  for (int t = 0; t < output->layout->count; t++)
    if (output->layout->targets[t].action == NPS_ACTION_MERGE) elements += output->layout->targets[t].count;
  for (int m = 0; m < output->model_count; m++)
    results[m].kept =
        (double)(nps_taking_stored(nps->taking, list_of(output, m)) + nps_rest_kept(nps->factors, list_of(output, m))) /
        (double)elements;
}

typedef struct {
  int lists, subspaces, first;
  int64_t *triples, *kept; /* [lists][subspaces] */
  int64_t *stored;         /* [lists][2]: numbers of triples, entries of the rest */
} totals_t;

static void add_matrix(const nps_merge_nps_t *nps, int list, int matrix, int subspaces, int64_t *triples,
                       int64_t *kept) {
  const nps_spectrum_t s = nps_factors_spectrum(nps->factors, list, matrix);
  const int32_t *taken = nps_taking_kept(nps->taking, list, matrix);
  for (int m = 0; m < subspaces; m++) {
    triples[m] += nps_band_first(s.count, subspaces, m + 1) - nps_band_first(s.count, subspaces, m);
    kept[m] += taken[m];
  }
}

static totals_t add_up(const nps_run_output_t *output) {
  const nps_merge_nps_t *nps = &output->nps;
  const int lists = nps->sum ? 1 : output->model_count, subspaces = nps->weighting->subspaces;
  totals_t t = {.lists = lists, .subspaces = subspaces, .first = nps->first_list};
  t.triples = nps_xcalloc((size_t)(lists * subspaces), sizeof *t.triples);
  t.kept = nps_xcalloc((size_t)(lists * subspaces), sizeof *t.kept);
  t.stored = nps_xcalloc((size_t)(2 * lists), sizeof *t.stored);
  for (int i = 0; i < lists; i++) {
    const int list = list_of(output, i);
    for (int j = 0; j < nps_factors_matrices(nps->factors); j++)
      add_matrix(nps, list, j, subspaces, t.triples + i * subspaces, t.kept + i * subspaces);
    t.stored[2 * i] = nps_taking_stored(nps->taking, list);
    t.stored[2 * i + 1] = nps_rest_kept(nps->factors, list);
  }
  return t;
}

static void free_totals(totals_t *t) {
  free(t->triples);
  free(t->kept);
  free(t->stored);
}

/* Singular values and kept triples of one matrix, a row a list. */
static nps_err_t put_matrix(nps_h5_t *file, const nps_run_output_t *output, const totals_t *t, int matrix) {
  const nps_merge_nps_t *nps = &output->nps;
  const nps_spectrum_t first = nps_factors_spectrum(nps->factors, t->first, matrix);
  const int64_t shape[2] = {t->lists, first.count}, bands[2] = {t->lists, t->subspaces};
  double *sigma = nps_xcalloc((size_t)(t->lists * first.count), sizeof *sigma);
  int32_t *kept = nps_xcalloc((size_t)(t->lists * t->subspaces), sizeof *kept);
  for (int i = 0; i < t->lists; i++) {
    memcpy(sigma + i * first.count, nps_factors_spectrum(nps->factors, t->first + i, matrix).sigma,
           (size_t)first.count * sizeof *sigma);
    memcpy(kept + i * t->subspaces, nps_taking_kept(nps->taking, t->first + i, matrix),
           (size_t)t->subspaces * sizeof *kept);
  }
  char *sigma_path = nps_xstrf("/subspaces/sigma/%s", first.name);
  char *kept_path = nps_xstrf("/subspaces/kept_of/%s", first.name);
  nps_err_t err = nps_h5_put(file, sigma_path, NPS_F64, sigma, 2, shape);
  if (err == NPS_OK) err = nps_h5_put(file, kept_path, NPS_I32, kept, 2, bands);
  free(sigma_path);
  free(kept_path);
  free(sigma);
  free(kept);
  return err;
}

static nps_err_t put_totals(nps_h5_t *file, const nps_run_output_t *output, const totals_t *t) {
  const int64_t shape[2] = {t->lists, t->subspaces}, pair[2] = {t->lists, 2}, lists[1] = {t->lists};
  const nps_weighting_t *w = output->nps.weighting;
  double *density = nps_xcalloc((size_t)(t->lists * t->subspaces), sizeof *density);
  for (int i = 0; i < t->lists * t->subspaces; i++)
    density[i] = t->triples[i] ? (double)t->kept[i] / (double)t->triples[i] : 0;
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_put(file, "/subspaces/entries", NPS_I64, t->triples, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/kept", NPS_I64, t->kept, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/density", NPS_F64, density, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/weight", NPS_F64, w->weight, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/priority", NPS_F64, w->priority, 2, shape));
  NPS_GOTO(nps_h5_put(file, "/subspaces/weight_rest", NPS_F64, w->rest, 1, lists));
  NPS_GOTO(nps_h5_put(file, "/subspaces/stored", NPS_I64, t->stored, 2, pair));
done:
  free(density);
  return err;
}

nps_err_t nps_run_put_factors(nps_h5_t *file, const nps_run_output_t *output) {
  const nps_merge_nps_t *nps = &output->nps;
  totals_t t = add_up(output);
  nps_err_t err = NPS_OK;
  NPS_GOTO(nps_h5_put_attr_text(file, "/subspaces", "partition", "singular"));
  NPS_GOTO(nps_h5_put_attr_text(file, "/subspaces", "of", nps->sum ? "sum" : "each"));
  NPS_GOTO(put_totals(file, output, &t));
  NPS_GOTO(nps_h5_make_group(file, "/subspaces/sigma"));
  NPS_GOTO(nps_h5_make_group(file, "/subspaces/kept_of"));
  for (int j = 0; j < nps_factors_matrices(nps->factors); j++) NPS_GOTO(put_matrix(file, output, &t, j));
done:
  free_totals(&t);
  return err;
}
