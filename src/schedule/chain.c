/* Chains: items in order that are cut into stretches of neighbours. */
#include "nps/schedule.h"

#include <stdlib.h>

/* least[p][e]: the lightest that the heaviest of p + 1 stretches of the items before e can be; from[p][e]: where the last of
 * them then begins. */
typedef struct {
  int64_t *least;
  int *from;
  int width;
} table_t;

static void find_last_stretch(table_t *t, int p, int end, const int64_t *weight) {
  const int64_t *before = t->least + (int64_t)(p - 1) * t->width;
  const int64_t at = (int64_t)p * t->width + end;
  t->least[at] = INT64_MAX;
  for (int first = p; first < end; first++) {
    const int64_t heaviest = nps_max64(before[first], weight[(int64_t)first * t->width + end]);
    if (heaviest >= t->least[at]) continue;
    t->least[at] = heaviest;
    t->from[at] = first;
  }
}

void nps_schedule_split(int count, int parts, int64_t (*weight)(const void *ctx, int first, int end), const void *ctx,
                        int *cut) {
  const size_t width = (size_t)count + 1;
  int64_t *of = nps_xcalloc(width * width, sizeof *of);
  table_t t = {.width = count + 1};
  t.least = nps_xcalloc((size_t)parts * width, sizeof *t.least);
  t.from = nps_xcalloc((size_t)parts * width, sizeof *t.from);
  for (int first = 0; first < count; first++)
    for (int end = first + 1; end <= count; end++) of[(int64_t)first * t.width + end] = weight(ctx, first, end);
  for (int end = 1; end <= count; end++) t.least[end] = of[end];
  for (int p = 1; p < parts; p++)
    for (int end = p + 1; end <= count; end++) find_last_stretch(&t, p, end, of);
  cut[parts] = count;
  for (int p = parts - 1; p > 0; p--) cut[p] = t.from[(int64_t)p * t.width + cut[p + 1]];
  cut[0] = 0;
  free(of);
  free(t.least);
  free(t.from);
}

int64_t nps_schedule_deal(const double *work, int64_t count, int groups, int64_t *cut) {
  double left = 0;
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; i++) left += work[i];
  cut[0] = 0;
  for (int64_t at = 0; at < count; cut[++pieces] = at) {
    const double share = groups > 1 ? left / (2 * groups) : left;
    double taken = 0;
    do taken += work[at++];
    while (at < count && (groups == 1 || taken + work[at] <= share));
    left -= taken;
  }
  return pieces;
}
