/* The grids of a schedule: one for every level of groups in which this rank has jobs. */
#include "nps/dmat.h"

#include <stdlib.h>

struct nps_groups {
  const nps_schedule_t *schedule;
  nps_comm_t **comm; /* [levels] NULL where this rank has no jobs with others */
  nps_grid_t **grid; /* [levels] */
  nps_grid_t *self;
};

/* Whether a group, or any at a level (first < 0), has jobs. */
static bool is_used(const nps_schedule_t *s, int first, int level) {
  for (int i = 0; i < s->jobs; i++)
    if (s->level[i] == level && s->group[i].size > 1 && (first < 0 || s->group[i].first == first)) return true;
  return false;
}

nps_groups_t *nps_groups_new(const nps_comm_t *comm, const nps_schedule_t *schedule) {
  const int levels = nps_schedule_levels(schedule->ranks);
  nps_groups_t *groups = nps_xcalloc(1, sizeof *groups);
  groups->schedule = schedule;
  groups->comm = nps_xcalloc((size_t)levels, sizeof *groups->comm);
  groups->grid = nps_xcalloc((size_t)levels, sizeof *groups->grid);
  groups->self = nps_grid_new(NULL);
  for (int l = 0; l < levels; l++) {
    const int first = nps_schedule_group(schedule->ranks, nps_comm_rank(comm), l).first;
    if (!is_used(schedule, -1, l)) continue;
    nps_comm_split(comm, is_used(schedule, first, l) ? first : -1, &groups->comm[l]);
    if (groups->comm[l]) groups->grid[l] = nps_grid_new(groups->comm[l]);
  }
  return groups;
}

void nps_groups_free(nps_groups_t *groups) {
  if (!groups) return;
  for (int l = 0; l < nps_schedule_levels(groups->schedule->ranks); l++) {
    nps_grid_free(groups->grid[l]);
    nps_comm_free(groups->comm[l]);
  }
  nps_grid_free(groups->self);
  free(groups->grid);
  free(groups->comm);
  free(groups);
}

const nps_grid_t *nps_groups_grid(const nps_groups_t *groups, int job) {
  return groups->schedule->group[job].size > 1 ? groups->grid[groups->schedule->level[job]] : groups->self;
}
