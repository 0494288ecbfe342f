/* What memory a rank may use, and how fast this kind of machine is taken to be. */
#include "run_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Part of a host's memory that is left for the system and its page cache. */
#define RESERVE 0.1

/* Reads a number of bytes at the start of a small file; 0 when there is none ("max", no file). */
static int64_t read_limit(const char *path) {
  long long value = 0;
  FILE *f = fopen(path, "re");
  if (!f) return 0;
  if (fscanf(f, "%lld", &value) != 1 || value >= (1LL << 60)) value = 0;
  fclose(f);
  return value;
}

/* The limit of this process's control group or of one above it; 0 when there is none. */
static int64_t cgroup_limit(void) {
  char line[4096];
  int64_t least = 0;
  FILE *f = fopen("/proc/self/cgroup", "re");
  while (f && fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = '\0';
    const bool unified = strncmp(line, "0::", 3) == 0;
    char *group = unified ? line + 3 : strstr(line, ":memory:");
    if (!group) continue;
    if (!unified) group += strlen(":memory:");
    for (;;) {
      char *path = nps_xstrf("/sys/fs/cgroup%s%s/%s", unified ? "" : "/memory", strcmp(group, "/") ? group : "",
                             unified ? "memory.max" : "memory.limit_in_bytes");
      int64_t limit = read_limit(path);
      free(path);
      if (limit > 0 && (least == 0 || limit < least)) least = limit;
      char *slash = strrchr(group, '/');
      if (!slash || strcmp(group, "/") == 0 || !*group) break;
      *slash = '\0';
    }
  }
  if (f) fclose(f);
  return least;
}

/* Slurm gives MiB, of the node or of each CPU. */
static int64_t slurm_limit(void) {
  const char *node = getenv("SLURM_MEM_PER_NODE"), *cpu = getenv("SLURM_MEM_PER_CPU");
  const char *cpus = getenv("SLURM_CPUS_ON_NODE");
  int64_t mib = 0;
  if (node)
    mib = atoll(node);
  else if (cpu && cpus)
    mib = atoll(cpu) * atoll(cpus);
  return mib > 0 && mib < ((int64_t)1 << 40) ? mib << 20 : 0;
}

static int64_t free_memory(void) {
  char line[256];
  long long kib = 0;
  FILE *f = fopen("/proc/meminfo", "re");
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
  if (f) fclose(f);
  return kib > 0 ? kib << 10 : (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

/* What a rank may use: the cgroup's or Slurm's limit, else the free memory of this host, divided by the ranks on it, less a
 * reserve. */
static int64_t memory_per_rank(int ranks_here) {
  int64_t limits[3] = {free_memory(), cgroup_limit(), slurm_limit()};
  int64_t least = 0;
  for (int i = 0; i < 3; i++)
    if (limits[i] > 0 && (least == 0 || limits[i] < least)) least = limits[i];
  return (int64_t)((double)least * (1 - RESERVE)) / ranks_here;
}

/* What libraries take later than at the time of planning: HDF5's and MPI-IO's buffers. */
#define LATER_MEMORY ((int64_t)3 << 20)

/* What the libraries take is told in steps of this size, as it differs a little from run to run. */
#define MEMORY_STEP ((int64_t)1 << 20)

/* Private memory that any merge needs besides its own buffers: what this process has now, with MPI up, and a little. */
static int64_t fixed_memory(void) {
  char line[256];
  long long kib = 0, part;
  FILE *f = fopen("/proc/self/status", "re");
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "RssAnon: %lld kB", &part) == 1 || sscanf(line, "RssShmem: %lld kB", &part) == 1) kib += part;
  if (f) fclose(f);
  return ((kib << 10) + LATER_MEMORY + MEMORY_STEP - 1) / MEMORY_STEP * MEMORY_STEP;
}

/* Rates of a current server core with data in the page cache; docs/performance.md tells how they were measured. */
static nps_costs_t machine_costs(int ranks_per_node) {
  return (nps_costs_t){
      .read_rate = 7e9,
      .hash_rate = 1.7e9,
      .write_rate = 1.5e9,
      .start_time = 0.5,
      .cores_per_node = (int)sysconf(_SC_NPROCESSORS_ONLN),
      .ranks_per_node = ranks_per_node,
      .fixed_memory = fixed_memory(),
  };
}

/* Ranks on this host, the most of any host. Collective. */
static int most_ranks_on_a_host(const nps_comm_t *comm) {
  nps_comm_t *host = NULL;
  nps_comm_split_host(comm, &host);
  double most = nps_comm_size(host);
  nps_comm_free(host);
  nps_comm_max_f64(comm, &most, 1);
  return (int)most;
}

int nps_run_ranks_per_node(const nps_run_state_t *run) {
  const nps_run_options_t *o = run->options;
  return o->ranks_per_node ? o->ranks_per_node : o->ranks ? o->ranks : most_ranks_on_a_host(run->comm);
}

int64_t nps_run_free_memory(const nps_comm_t *comm) {
  double most = -(double)memory_per_rank(most_ranks_on_a_host(comm));
  nps_comm_max_f64(comm, &most, 1);
  return (int64_t)-most;
}

int64_t nps_run_memory_limit(const nps_run_state_t *run, int ranks_per_node) {
  double most = -(double)memory_per_rank(ranks_per_node);
  nps_comm_max_f64(run->comm, &most, 1); /* the worst of all hosts, so that all ranks plan alike */
  return run->recipe->memory_per_rank ? run->recipe->memory_per_rank : (int64_t)-most;
}

nps_err_t nps_run_plan(nps_run_state_t *run, nps_run_output_t *output, int ranks) {
  const int per_node = nps_run_ranks_per_node(run);
  nps_costs_t costs = machine_costs(per_node);
  double fixed = (double)costs.fixed_memory;
  nps_comm_max_f64(run->comm, &fixed, 1);
  costs.fixed_memory = (int64_t)fixed;
  for (int i = 0; i < output->input_count; i++) costs.fixed_memory += nps_model_reader_bytes(output->inputs[i]);
  costs.compute_time = run->method->element_seconds;
  nps_demand_t demand = nps_merge_demand(output->merge);
  nps_err_t err = nps_plan_make(output->layout, output->inputs, ranks, &demand, &costs,
                                nps_run_memory_limit(run, per_node), &output->plan);
  if (err == NPS_OK) nps_run_plan_factors(run, output);
  if (err == NPS_OK && nps_run_is_compression(run)) nps_run_predict_archive(run, output);
  return nps_comm_agree(run->comm, err);
}
