/* Where the log may go: into no file that the run reads or writes. */
#include "run_internal.h"

#include <stdlib.h>
#include <string.h>

/* An absolute path without links, also of what is not there yet. @return owned, or NULL: its folder is not there either */
static char *resolve(const char *path) {
  size_t n = strlen(path);
  while (n > 1 && path[n - 1] == '/') n--;
  char *plain = nps_xstrndup(path, n), *real = realpath(plain, NULL), *slash = strrchr(plain, '/');
  if (!real) {
    char *folder = slash ? nps_xstrndup(plain, slash == plain ? 1 : (size_t)(slash - plain)) : nps_xstrdup(".");
    char *in = realpath(folder, NULL);
    if (in) real = nps_xstrf("%s/%s", in, slash ? slash + 1 : plain);
    free(in);
    free(folder);
  }
  free(plain);
  return real;
}

/* Whether two paths are the same, or the first lies below the second. */
static bool lies_in(const char *path, const char *place) {
  char *a = resolve(path), *b = resolve(place);
  const size_t n = b ? strlen(b) : 0;
  const bool within = a && b && strncmp(a, b, n) == 0 && (a[n] == '\0' || a[n] == '/');
  free(a);
  free(b);
  return within;
}

static nps_err_t refuse(const char *log, const char *why) {
  return nps_fail(NPS_ERR_CONFIG, "option --log: %s %s", log, why);
}

nps_err_t nps_run_check_log(const nps_run_options_t *o) {
  if (!o->log) return NPS_OK;
  if (lies_in(o->log, o->config)) return refuse(o->log, "is the config");
  if (o->out && lies_in(o->log, o->out)) return refuse(o->log, "is the output, or lies in it");
  if (nps_output_is_hdf5(o->log)) return refuse(o->log, "ends in .h5, as an output does: expected a text file");
  return NPS_OK;
}

static bool lies_in_output(const nps_recipe_t *recipe, const char *path, const char *out) {
  bool within = lies_in(path, out);
  for (int m = 0; m < recipe->model_count && !within; m++) {
    char *one = nps_run_fill_in_name(out, recipe->models[m].name);
    within = lies_in(path, one);
    free(one);
  }
  return within;
}

nps_err_t nps_run_check_log_beside_output(nps_run_state_t *run) {
  const nps_run_options_t *o = run->options;
  const char *out = o->out ? o->out : run->recipe->output_path;
  if (!o->log || !out || !lies_in_output(run->recipe, o->log, out)) return NPS_OK;
  nps_report_drop_log(run->report);
  return refuse(o->log, o->out ? "is the output, or lies in it" : "is output.path of the config, or lies in it");
}
