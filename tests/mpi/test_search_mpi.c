#include "../../src/search/search_internal.h"
#include "../nps_check_mpi.h"

#include <math.h>

enum { MODELS = 3, SUBSPACES = 2, POINTS = 5 };

/* Takes the place of the C library's: every rank has one of its own, as on processors of several types. */
double exp(double x) {
  const double y = (double)expl((long double)x);
  return rank == 0 ? y : nextafter(y, rank % 2 ? 0 : INFINITY);
}

/* What ranks look up together are hashes of these numbers. */
START_TEST(a_genome_gives_every_rank_the_same_bits) {
  static const char *const models[MODELS] = {"x", "y", "z"};
  nps_recipe_search_t search = {
      .vary_weight = true, .vary_density = true, .per_model = true, .bounds = {{-5, 5}, {-4, 4}}};
  nps_weighting_t *w = nps_weighting_new(MODELS, SUBSPACES);
  const nps_search_spec_t spec = {.models = models, .start = w, .search = &search};
  nps_genome_t *g = nps_genome_new(&spec, NPS_STAGE_JOINT, -1);
  bool ok = true, differs = false;
  for (int p = 0; p < POINTS; p++) {
    double x[64];
    for (int i = 0; i < g->count; i++) x[i] = 0.37 * (i + 1) - 0.9 * p;
    nps_genome_put(g, x, w);
    uint64_t hash = nps_weighting_hash(w, 0), first = hash;
    nps_comm_bcast(comm, &first, sizeof first);
    differs = differs || hash != first;
    nps_genome_put_alike(comm, g, x, w);
    first = hash = nps_weighting_hash(w, 0);
    nps_comm_bcast(comm, &first, sizeof first);
    ok = ok && hash == first;
  }
  ck_assert_msg(everywhere(differs == (rank > 0)), "this test needs ranks that compute differently");
  ck_assert(everywhere(ok));
  nps_genome_free(g);
  nps_weighting_free(w);
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("search");
  tcase_add_test(cases, a_genome_gives_every_rank_the_same_bits);
  return end_mpi(run_tests_everywhere("search", cases));
}
