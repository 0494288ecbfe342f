/* --set KEY=VALUE */
#include "overrides.h"

#include <stdlib.h>
#include <string.h>

void cli_overrides_put(cli_overrides_t *o, char *path, const char *value) {
  o->items = nps_xrealloc(o->items, (size_t)o->count + 1, sizeof *o->items);
  o->items[o->count++] = (nps_override_t){path, value};
}

nps_err_t cli_overrides_add(const cli_list_t *set, cli_overrides_t *out) {
  nps_err_t err = NPS_OK;
  for (int i = 0; i < set->count; i++) {
    const char *text = set->items[i];
    const size_t length = strcspn(text, "=");
    if (length > 0 && text[length])
      cli_overrides_put(out, nps_xstrndup(text, length), text + length + 1);
    else
      err = nps_fail(NPS_ERR_CONFIG, "option --set: expected KEY=VALUE (such as parameters.lambda=0.5), found '%s'",
                     text);
  }
  return err;
}

void cli_overrides_free(cli_overrides_t *o) {
  for (int i = 0; i < o->count; i++) free((char *)(uintptr_t)o->items[i].path);
  free(o->items);
  *o = (cli_overrides_t){0};
}
