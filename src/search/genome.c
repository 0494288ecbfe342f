#include "search_internal.h"

#include <math.h>
#include <stdlib.h>

static double clip(double x, double lower, double upper) { return x < lower ? lower : x > upper ? upper : x; }

/* Takes the name over. */
static void add(nps_genome_t *g, const nps_search_spec_t *spec, nps_gene_t gene, double start, char *name) {
  const double *bounds = spec->search->bounds[gene.kind];
  const int i = g->count++;
  g->genes[i] = gene;
  g->columns[i] = name;
  g->lower[i] = bounds[0];
  g->upper[i] = bounds[1];
  g->start[i] = clip(start, bounds[0], bounds[1]);
}

/* One kind of variable for every subspace; model -1: of all models alike. @param named  the column tells the model */
static void add_subspaces(nps_genome_t *g, const nps_search_spec_t *spec, nps_variable_t kind, int model, bool named) {
  const bool weight = kind == NPS_VARIABLE_WEIGHT;
  const double start = weight ? spec->search->start_weight : spec->search->start_log_priority;
  const char *word = weight ? "weight" : "log_priority";
  for (int m = 0; m < spec->start->subspaces; m++)
    add(g, spec, (nps_gene_t){kind, model, m}, start,
        named ? nps_xstrf("%s[%s,%d]", word, spec->models[model], m) : nps_xstrf("%s[%d]", word, m));
}

/* One weight for all tensors that are not split into bands, where there are some. */
static void add_rest(nps_genome_t *g, const nps_search_spec_t *spec, int model, bool named) {
  if (!spec->factors || nps_factors_rest(spec->factors) == 0) return;
  add(g, spec, (nps_gene_t){NPS_VARIABLE_WEIGHT, model, spec->start->subspaces}, spec->search->start_weight,
      named ? nps_xstrf("weight[%s,rest]", spec->models[model]) : nps_xstrdup("weight[rest]"));
}

static void add_weights(nps_genome_t *g, const nps_search_spec_t *spec, int model, bool named) {
  if (spec->search->vary_weight) {
    add_subspaces(g, spec, NPS_VARIABLE_WEIGHT, model, named);
    add_rest(g, spec, model, named);
  }
  if (spec->search->vary_density) add_subspaces(g, spec, NPS_VARIABLE_LOG_PRIORITY, model, named);
}

static void add_lambdas(nps_genome_t *g, const nps_search_spec_t *spec) {
  for (int i = 0; i < spec->start->models; i++)
    add(g, spec, (nps_gene_t){NPS_VARIABLE_LAMBDA, i, 0}, spec->start->lambda[i],
        nps_xstrf("lambda[%s]", spec->models[i]));
}

nps_genome_t *nps_genome_new(const nps_search_spec_t *spec, nps_stage_t stage, int model) {
  const int models = spec->start->models;
  const size_t most = (size_t)(models * (2 * spec->start->subspaces + 2));
  nps_genome_t *g = nps_xcalloc(1, sizeof *g);
  g->genes = nps_xcalloc(most, sizeof *g->genes);
  g->columns = nps_xcalloc(most, sizeof *g->columns);
  g->start = nps_xcalloc(most, sizeof *g->start);
  g->lower = nps_xcalloc(most, sizeof *g->lower);
  g->upper = nps_xcalloc(most, sizeof *g->upper);
  g->follow = !spec->search->vary_density && !spec->given_priorities;
  if (stage == NPS_STAGE_PRUNE) add_weights(g, spec, model, false);
  if (stage == NPS_STAGE_JOINT && !spec->search->per_model) add_weights(g, spec, -1, false);
  if (stage == NPS_STAGE_JOINT && spec->search->per_model)
    for (int i = 0; i < models; i++) add_weights(g, spec, i, true);
  if (stage != NPS_STAGE_PRUNE && !spec->of_sum) add_lambdas(g, spec);
  return g;
}

void nps_genome_free(nps_genome_t *g) {
  if (!g) return;
  for (int i = 0; i < g->count; i++) free(g->columns[i]);
  free(g->genes);
  free(g->columns);
  free(g->start);
  free(g->lower);
  free(g->upper);
  free(g);
}

void nps_genome_clip(const nps_genome_t *g, double *x) {
  for (int i = 0; i < g->count; i++) x[i] = clip(x[i], g->lower[i], g->upper[i]);
}

static void put_value(nps_gene_t gene, bool follow, double x, int model, nps_weighting_t *w) {
  const int at = model * w->subspaces + gene.subspace;
  if (gene.kind == NPS_VARIABLE_WEIGHT && gene.subspace == w->subspaces) {
    w->rest[model] = x;
    return;
  }
  if (gene.kind == NPS_VARIABLE_LAMBDA) w->lambda[model] = x;
  if (gene.kind == NPS_VARIABLE_LOG_PRIORITY) w->priority[at] = exp(x);
  if (gene.kind != NPS_VARIABLE_WEIGHT) return;
  w->weight[at] = x;
  if (follow) w->priority[at] = fabs(x);
}

void nps_genome_put(const nps_genome_t *g, const double *x, nps_weighting_t *w) {
  for (int i = 0; i < g->count; i++)
    for (int model = 0; model < w->models; model++)
      if (g->genes[i].model < 0 || g->genes[i].model == model) put_value(g->genes[i], g->follow, x[i], model, w);
}

/* All else is copied, or comes of operations that IEEE 754 defines to the bit. */
void nps_genome_put_alike(const nps_comm_t *comm, const nps_genome_t *g, const double *x, nps_weighting_t *w) {
  nps_genome_put(g, x, w);
  nps_comm_bcast(comm, w->priority, (size_t)w->models * (size_t)w->subspaces * sizeof *w->priority);
}
