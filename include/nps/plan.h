/** @file plan.h
 *  Who does what, with predicted memory, disk and time. Layer 4. Pure functions: costs are passed in.
 *
 *  The targets in file order form one line of elements; the line is cut into one stretch a rank, equal in cost. A cut
 *  inside a tensor lies on a multiple of NPS_BLOCK, or of what the method asks for, and moves to the tensor's border where
 *  that is near. Every rank thus reads and writes contiguous ranges, and at most its first and last tensors are shared with
 *  neighbours.
 *
 *  Where tensors stay whole, each is one rank's, or a group's of which every rank has some of its rows (nps/schedule.h). */
#ifndef NPS_PLAN_H
#define NPS_PLAN_H

#include "nps/base.h"
#include "nps/model.h"
#include "nps/schedule.h"

/** Elements that are read, and written, in one go: few enough to be looked at while they are in the cache. */
#define NPS_STEP (4 * NPS_BLOCK)

/** A stretch of one target. */
typedef struct nps_piece {
  int target;    /**< index into the layout */
  int64_t first; /**< first element, a multiple of NPS_BLOCK; of a group's tensor, of its columns */
  int64_t count; /**< elements; up to the tensor's end, or to a multiple as above */
} nps_piece_t;

/** Speeds of a machine and of a method, for predictions. */
typedef struct nps_costs {
  double read_rate;    /**< bytes/s that one rank reads from the page cache */
  double hash_rate;    /**< bytes/s that one rank hashes */
  double write_rate;   /**< bytes/s that one rank writes */
  double compute_time; /**< seconds an element and input, all passes of the method together */
  double start_time;   /**< seconds, once: start-up, metadata, commit */
  int cores_per_node;  /**< ranks beyond it share cores */
  int ranks_per_node;
  int64_t fixed_memory; /**< bytes a rank needs before any tensor: libraries, MPI, HDF5 */
} nps_costs_t;

/** What a method needs of memory. */
typedef struct nps_demand {
  bool whole_pieces;    /**< statistics are needed before the first output: hold a whole piece where memory allows */
  bool whole_model;     /**< statistics over the whole model come first: one sweep over all pieces for each pass */
  int passes;           /**< statistics passes over the data, before the merging pass */
  int64_t state_memory; /**< bytes of statistics a rank */
  /** Give what a cut inside a merged target lies on multiples of, a multiple of NPS_BLOCK itself. NULL: NPS_BLOCK. */
  int64_t (*unit)(const void *ctx, int target);
  /** Predict the computing seconds of a merged target that stays whole / its bytes on every rank, slabs aside, on one
   *  rank or a group; INT64_MAX: not on a group. NULL: tensors may be cut, and costs tell the time. */
  double (*seconds)(const void *ctx, int target, int ranks);
  int64_t (*bytes)(const void *ctx, int target, int ranks);
  const void *ctx;             /**< borrowed */
  const int64_t *target_parts; /**< [targets] bytes that are written besides; NULL: none. Borrowed */
  int64_t kept_width;          /**< bytes an element of merged tensors that are written besides the tensor itself */
  int64_t held_width;          /**< bytes an element of a rank's merged tensors that are kept until all are made */
} nps_demand_t;

/** The plan for all ranks. */
typedef struct nps_plan {
  int ranks;
  nps_piece_t *pieces; /**< [piece_count], rank by rank; groups' tensors as scheduled, then in file order */
  int piece_count;
  int *first_piece;         /**< [ranks + 1]: rank r has pieces first_piece[r] … first_piece[r + 1] − 1 */
  int *owner_first;         /**< [targets] first rank that has part of the target */
  int *owner_last;          /**< [targets] last rank */
  nps_schedule_t *schedule; /**< of the targets, where they stay whole; else NULL */
  int64_t slab;             /**< elements of all inputs held at a time, at most, a multiple of NPS_BLOCK */
  int64_t memory_limit;     /**< bytes a rank may use */
  int ranks_per_node;       /**< as assumed, at most */
  int cores_per_node;       /**< as assumed */
  int64_t *memory;          /**< [ranks] predicted peak, bytes */
  int64_t *read;            /**< [ranks] bytes read */
  int64_t *write;           /**< [ranks] bytes written */
  double *time;             /**< [ranks] predicted seconds */
} nps_plan_t;

/** Plan a merge. Local, deterministic, does no I/O.
 *  @param layout, inputs  what is merged ([layout->inputs] catalogues)
 *  @param memory_limit    bytes a rank may use
 *  @param[out] out  freed with nps_plan_free()
 *  @return NPS_ERR_CONFIG (recorded) when memory_limit is too small for any slab, with the least that would do */
nps_err_t nps_plan_make(const nps_layout_t *layout, const nps_model_t *const *inputs, int ranks,
                        const nps_demand_t *demand, const nps_costs_t *costs, int64_t memory_limit, nps_plan_t **out);
void nps_plan_free(nps_plan_t *plan);

/** Give stored bytes an element of a target takes in all its inputs together. Local. */
int64_t nps_plan_input_width(const nps_target_t *target, const nps_model_t *const *inputs, int n);

/** Give the bytes of buffers for a piece of `count` elements in slabs of at most `slab`: a slab of all its inputs and a
 *  step of output. Local. */
int64_t nps_plan_buffer_bytes(const nps_target_t *target, const nps_model_t *const *inputs, int n, int64_t count,
                              int64_t slab);

#endif
