/** @file schedule.h
 *  Jobs that ranks do alone or in groups: which group does which, and in what order. Layer 1. Pure functions: costs are
 *  passed in.
 *
 *  Groups are blocks of neighbouring ranks, made by halving [0, ranks) again and again (level 0: all ranks; halves of an odd
 *  number differ by one). Every rank works through its groups from large to small, so that the ranks of a group begin and
 *  end its jobs together, nobody waits before the end, and no two jobs wait for each other. */
#ifndef NPS_SCHEDULE_H
#define NPS_SCHEDULE_H

#include "nps/base.h"

/** Seconds that it takes a group to meet, besides its work: part of what nps_jobs_t.seconds should tell of groups. */
#define NPS_MEETING_SECONDS 5e-3

/** Neighbouring ranks. */
typedef struct nps_group {
  int first, size;
} nps_group_t;

/** What is to be done. */
typedef struct nps_jobs {
  int count;
  int ranks;
  int64_t memory; /**< bytes that a job may take on a rank */
  /** Predict the seconds of a job / its bytes on every rank, done by a group of `ranks`. INT64_MAX bytes: it cannot be. */
  double (*seconds)(const void *ctx, int job, int ranks);
  int64_t (*bytes)(const void *ctx, int job, int ranks);
  const void *ctx; /**< borrowed */
} nps_jobs_t;

typedef struct nps_schedule {
  int ranks, jobs;
  nps_group_t *group; /**< [jobs] who does it */
  int *level;         /**< [jobs] level of that group */
  int *order;         /**< [jobs] every rank does its jobs in this order: by level, the longest first */
  double *finish;     /**< [ranks] predicted seconds until it has done all its jobs */
  int64_t *bytes;     /**< [ranks] the most that any of its jobs takes */
  double longest;     /**< the last rank's finish */
  double mean;        /**< of all ranks' */
} nps_schedule_t;

/** Give the number of levels: at the last one every group is one rank. Local. */
int nps_schedule_levels(int ranks);

/** Give the group of a rank at a level. Local. */
nps_group_t nps_schedule_group(int ranks, int rank, int level);

/** Schedule jobs. A job goes to the smallest group that holds it, or to a larger one where its time would set the end;
 *  within a level the longest goes first, to the group that ends it earliest (Graham 1969). So no rank idles longer than the
 *  longest job. Several bounds on a job's time are tried, and the best is taken. Local, deterministic.
 *  @param[out] out  freed with nps_schedule_free()
 *  @param[out] misfit  the job that no group holds, of several the one that needs most; else -1. May be NULL
 *  @return NPS_ERR_CONFIG (not recorded: the caller knows the name) when a job does not fit */
nps_err_t nps_schedule_make(const nps_jobs_t *jobs, nps_schedule_t **out, int *misfit);
void nps_schedule_free(nps_schedule_t *schedule);

/** Share jobs that are one rank's each: longest first, each to the rank with the least to do. Local, deterministic.
 *  @param seconds  [count]; @param[out] owner  [count] ranks */
void nps_schedule_assign(const double *seconds, int count, int ranks, int *owner);

/** Cut a chain of items into stretches of neighbours so that the heaviest is as light as can be. Local, deterministic.
 *  @param weight  gives the weight of the items [first, end); one with more items is not lighter
 *  @param parts   1 to `count`
 *  @param[out] cut  [parts + 1] stretch p is [cut[p], cut[p + 1]), none is empty */
void nps_schedule_split(int count, int parts, int64_t (*weight)(const void *ctx, int first, int end), const void *ctx,
                        int *cut);

/** Cut a line of items into pieces that groups take one after the other as they fall idle: each is a half of the groups' equal
 *  share of what is left, so that in the end pieces are single items, and no group idles longer than one takes. One group takes
 *  all at once. Local, deterministic.
 *  @param work  [count] of the items; @param[out] cut  [count + 1] piece p is [cut[p], cut[p + 1])
 *  @return number of pieces */
int64_t nps_schedule_deal(const double *work, int64_t count, int groups, int64_t *cut);

/** Give the least bytes a rank with which a job fits. Local. */
int64_t nps_schedule_least_bytes(const nps_jobs_t *jobs, int job);

/** Give the least number of ranks with which a job fits into its memory, at most a million; 0: none. Local. */
int nps_schedule_least_ranks(const nps_jobs_t *jobs, int job);

#endif
