/* Which triples a weighting keeps. The triples of a band of a matrix come in falling order of their scores, as its priority is
 * one number: a heap of all bands' next triples gives them in falling order over all. */
#include "factors_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A band of a matrix, and its next triple. */
typedef struct {
  double score;
  int matrix, band;
  int64_t next, end; /* triples */
} run_t;

struct nps_taking {
  const nps_factors_t *factors;
  int32_t *kept;    /* [lists][matrices][M] */
  int64_t *stored;  /* [lists] numbers of the triples */
  double *priority; /* [lists][M] that `kept` was made for */
  double *density;  /* [lists] likewise; -1: not made yet */
  run_t *heap;      /* [matrices × M] */
};

nps_taking_t *nps_taking_new(const nps_factors_t *f) {
  const size_t lists = (size_t)f->lists, bands = (size_t)f->subspaces, runs = (size_t)f->matrix_count * bands;
  nps_taking_t *t = nps_xcalloc(1, sizeof *t);
  t->factors = f;
  t->kept = nps_xcalloc(lists * runs + 1, sizeof *t->kept);
  t->stored = nps_xcalloc(lists, sizeof *t->stored);
  t->priority = nps_xcalloc(lists * bands, sizeof *t->priority);
  t->density = nps_xcalloc(lists, sizeof *t->density);
  for (int i = 0; i < f->lists; i++) t->density[i] = -1;
  t->heap = nps_xcalloc(runs + 1, sizeof *t->heap);
  return t;
}

void nps_taking_free(nps_taking_t *t) {
  if (!t) return;
  free(t->kept);
  free(t->stored);
  free(t->priority);
  free(t->density);
  free(t->heap);
  free(t);
}

/* ---- the heap ---- */

/* Matrices are in byte order of their names. */
static bool comes_before(const run_t *a, const run_t *b) {
  if (a->score != b->score) return a->score > b->score;
  return a->matrix != b->matrix ? a->matrix < b->matrix : a->next < b->next;
}

static void sink(run_t *heap, int count, int at) {
  for (;;) {
    int first = at;
    for (int child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++)
      if (comes_before(&heap[child], &heap[first])) first = child;
    if (first == at) return;
    const run_t moved = heap[at];
    heap[at] = heap[first];
    heap[first] = moved;
    at = first;
  }
}

/* The bands of the matrices [first, end) that have triples. @return how many */
static int fill(const nps_taking_t *t, int list, int first, int end, const double *priority) {
  const nps_factors_t *f = t->factors;
  int count = 0;
  for (int j = first; j < end; j++) {
    const nps_spectrum_t s = nps_factors_spectrum(f, list, j);
    for (int m = 0; m < f->subspaces; m++) {
      run_t run = {.matrix = j, .band = m, .next = nps_band_first(s.count, f->subspaces, m)};
      run.end = nps_band_first(s.count, f->subspaces, m + 1);
      if (run.end > s.present) run.end = s.present;
      if (run.next >= run.end) continue;
      run.score = priority[m] * s.sigma[run.next];
      t->heap[count++] = run;
    }
  }
  for (int i = count / 2 - 1; i >= 0; i--) sink(t->heap, count, i);
  return count;
}

/* Takes triples of the matrices [first, end) while they fit. @return the numbers that they need */
static int64_t take(nps_taking_t *t, int list, int first, int end, const double *priority, int64_t budget) {
  const nps_factors_t *f = t->factors;
  int32_t *kept = t->kept + (int64_t)list * f->matrix_count * f->subspaces;
  int count = fill(t, list, first, end, priority);
  int64_t stored = 0;
  while (count > 0) {
    run_t *top = &t->heap[0];
    const nps_matrix_t *m = &f->matrices[top->matrix];
    if (stored + m->rows + m->columns > budget) break;
    stored += m->rows + m->columns;
    kept[top->matrix * f->subspaces + top->band]++;
    if (++top->next < top->end)
      top->score = priority[top->band] * nps_factors_spectrum(f, list, top->matrix).sigma[top->next];
    else
      *top = t->heap[--count];
    sink(t->heap, count, 0);
  }
  return stored;
}

/* ---- lists ---- */

/* With density 1 a tensor fits in whole, so nothing of it is dropped. */
static int64_t budget_of(double density, int64_t elements) {
  return density >= 1 ? INT64_MAX : (int64_t)floor(density * (double)elements);
}

static void make_list(nps_taking_t *t, int list, const double *priority, double density) {
  const nps_factors_t *f = t->factors;
  const size_t cells = (size_t)f->matrix_count * (size_t)f->subspaces;
  double *made_for = t->priority + (int64_t)list * f->subspaces;
  const size_t bytes = (size_t)f->subspaces * sizeof *made_for;
  if (t->density[list] == density && memcmp(made_for, priority, bytes) == 0) return;
  memcpy(made_for, priority, bytes);
  t->density[list] = density;
  memset(t->kept + (size_t)list * cells, 0, cells * sizeof *t->kept);
  t->stored[list] = 0;
  if (f->scope == NPS_SCOPE_MODEL) {
    t->stored[list] = take(t, list, 0, f->matrix_count, priority, budget_of(density, f->matrix_elements));
    return;
  }
  for (int j = 0; j < f->matrix_count; j++)
    t->stored[list] +=
        take(t, list, j, j + 1, priority, budget_of(density, f->matrices[j].rows * f->matrices[j].columns));
}

void nps_taking_make(nps_taking_t *t, const nps_weighting_t *w, int first_list) {
  if (t->factors->sum) {
    make_list(t, 0, w->priority, w->density[0]);
    return;
  }
  for (int i = 0; i < w->models; i++)
    if (w->lambda[i] != 0) make_list(t, first_list + i, w->priority + (int64_t)i * w->subspaces, w->density[i]);
}

const int32_t *nps_taking_kept(const nps_taking_t *t, int list, int matrix) {
  return t->kept + (int64_t)nps_factors_block(t->factors, list, matrix) * t->factors->subspaces;
}

int64_t nps_taking_stored(const nps_taking_t *t, int list) { return t->stored[list]; }
