#include "texts.h"

#include "nps/blas.h"

#include <string.h>

enum {
  QUERIES = 64,    /* in one call of the attention kernel */
  ROWS = 512,      /* of logits held at once */
  LOGITS = 1 << 23 /* at most so many of them */
};

/* ---- data ---- */

int64_t nps_texts_count(const nps_pass_t *pass) { return nps_dataset_texts(pass->data, pass->n); }

int64_t nps_texts_place(const nps_pass_t *pass, int64_t i) {
  const int64_t choices = nps_dataset_texts(pass->data, 1);
  return pass->samples[i / choices] * choices + i % choices;
}

const int32_t *nps_texts_mask(const nps_pass_t *pass, int64_t i) {
  const nps_dataset_t *data = pass->data;
  const int64_t row = data->targets ? pass->samples[i] : nps_texts_place(pass, i);
  return data->mask ? data->mask + row * data->tokens : NULL;
}

bool nps_texts_ask_next(const nps_dataset_t *data, int64_t text, int64_t p, int *label) {
  const int64_t at = text * data->tokens + p;
  if (data->mask && !(data->mask[at] && data->mask[at + 1])) return false;
  if (data->answer && !data->answer[at + 1]) return false;
  *label = (data->labels && data->places ? data->labels : data->ids)[at + 1];
  return *label != NPS_NOT_ASKED;
}

int64_t nps_texts_next_places(const nps_dataset_t *data) { return data->tokens - 1; }

int64_t nps_texts_next_rows(const void *shape, const nps_dataset_t *data, int64_t n) {
  (void)shape;
  return nps_dataset_texts(data, n) * nps_texts_next_places(data);
}

static nps_err_t check_ids(const nps_net_t *net, const nps_dataset_t *data, int64_t vocabulary, int64_t least) {
  if (!data->ids)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: expected texts (input_ids), as %s needs them, found images",
                    data->path, data->group, net->body->path);
  const int64_t rows = nps_dataset_rows(data, 1);
  if (data->tokens < least || data->tokens > NPS_MOST_TOKENS)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: input_ids: expected rows of %lld to %d tokens, found %lld",
                    data->path, data->group, (long long)least, NPS_MOST_TOKENS, (long long)data->tokens);
  if (rows > NPS_MOST_TOKENS / data->tokens)
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: input_ids: expected at most %d tokens in all choices of a sample",
                    data->path, data->group, NPS_MOST_TOKENS);
  for (int64_t i = 0; i < data->samples * rows * data->tokens; i++)
    if (data->ids[i] < 0 || data->ids[i] >= vocabulary)
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: input_ids: token %d in row %lld: expected 0 to %lld", data->path,
                      data->group, (int)data->ids[i], (long long)(i / data->tokens), (long long)vocabulary - 1);
  return NPS_OK;
}

nps_err_t nps_texts_check(const nps_net_t *net, const nps_dataset_t *data, int64_t vocabulary, int64_t least) {
  if (!data->targets) return check_ids(net, data, vocabulary, least);
  return nps_fail(NPS_ERR_INPUT, "%s: group %s: target_ids are for encoder-decoders, and %s is none", data->path,
                  data->group, net->body->path);
}

static bool asks_any(const nps_dataset_t *data, int64_t text, int64_t places, nps_asks_fn *asks) {
  int label;
  for (int64_t p = 0; p < places; p++)
    if (asks(data, text, p, &label)) return true;
  return false;
}

/* Some text must be asked for a token; of choices each. */
static nps_err_t check_asked(const nps_dataset_t *data, int64_t places, nps_asks_fn *asks) {
  bool any = false;
  for (int64_t i = 0; i < nps_dataset_texts(data, data->samples); i++) {
    const bool asked = asks_any(data, i, places, asks);
    any |= asked;
    if (data->choices && !asked)
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: choice %lld of sample %lld has no token that counts", data->path,
                      data->group, (long long)(i % data->choices), (long long)(i / data->choices));
  }
  if (any) return NPS_OK;
  return nps_fail(NPS_ERR_INPUT, "%s: group %s: no token is asked for: attention_mask or labels leave all out",
                  data->path, data->group);
}

/* Of labels of places, and of targets. */
static nps_err_t check_tokens(const nps_dataset_t *data, const char *name, const int32_t *tokens, int64_t rows,
                              int64_t vocabulary) {
  for (int64_t i = 0; i < rows * data->places; i++)
    if (tokens[i] != NPS_NOT_ASKED && (tokens[i] < 0 || tokens[i] >= vocabulary))
      return nps_fail(NPS_ERR_INPUT, "%s: group %s: %s: %d in row %lld: expected 0 to %lld, or %d where none",
                      data->path, data->group, name, (int)tokens[i], (long long)(i / data->places),
                      (long long)vocabulary - 1, NPS_NOT_ASKED);
  return NPS_OK;
}

nps_err_t nps_texts_check_next(const nps_dataset_t *data, int64_t vocabulary) {
  const int64_t expected[] = {data->samples, data->tokens}, found[] = {data->samples, data->places};
  char expected_text[192], found_text[192];
  if (data->labels && !data->choices && data->places != data->tokens)
    return nps_fail(NPS_ERR_INPUT, "%s: /%s/labels: expected shape %s, as input_ids, found %s", data->path, data->group,
                    nps_shape_format(2, expected, expected_text),
                    nps_shape_format(data->places ? 2 : 1, found, found_text));
  NPS_TRY(check_tokens(data, "labels", data->labels, data->labels ? data->samples : 0, vocabulary));
  return check_asked(data, nps_texts_next_places(data), nps_texts_ask_next);
}

/* ---- encoder-decoders ---- */

bool nps_texts_ask_target(const nps_dataset_t *data, int64_t text, int64_t p, int *label) {
  *label = nps_dataset_targets(data)[text * data->places + p];
  return *label != NPS_NOT_ASKED;
}

nps_err_t nps_texts_check_targets(const nps_net_t *net, const nps_dataset_t *data, int64_t vocabulary) {
  NPS_TRY(check_ids(net, data, vocabulary, 1));
  if (!data->places)
    return nps_fail(
        NPS_ERR_INPUT,
        "%s: group %s: expected input_ids [samples, tokens] with labels [samples, places], or target_ids [samples, "
        "choices, places], as %s needs them",
        data->path, data->group, net->body->path);
  if (data->places > NPS_MOST_TOKENS / nps_dataset_texts(data, 1))
    return nps_fail(NPS_ERR_INPUT, "%s: group %s: expected at most %d tokens in all targets of a sample", data->path,
                    data->group, NPS_MOST_TOKENS);
  NPS_TRY(check_tokens(data, data->targets ? "target_ids" : "labels", nps_dataset_targets(data),
                       nps_dataset_texts(data, data->samples), vocabulary));
  return check_asked(data, data->places, nps_texts_ask_target);
}

/* ---- the vocabulary ---- */

void nps_texts_embed(const nps_pass_t *pass, const nps_net_step_t *step, const int32_t *ids, int64_t positions,
                     int64_t width, float *x) {
  for (int64_t p = 0; p < positions; p++) {
    const int64_t row = ids[p] - step->first;
    if (row < 0 || row >= step->rows) continue;
    memcpy(x + p * width, pass->table + row * width, (size_t)width * sizeof *x);
  }
}

int64_t nps_texts_gather(const nps_pass_t *pass, int64_t positions, int64_t width, nps_asks_fn *asks, float *x) {
  int64_t count = 0;
  for (int64_t i = 0; i < nps_texts_count(pass); i++)
    for (int64_t p = 0; p < positions; p++) {
      int label;
      if (!asks(pass->data, nps_texts_place(pass, i), p, &label)) continue;
      pass->tallies[count].label = label;
      pass->tallies[count].text = i;
      memmove(x + count * width, x + (i * positions + p) * width, (size_t)width * sizeof *x);
      count++;
    }
  return count;
}

static int64_t most_classes(int64_t vocabulary, int64_t width) {
  return nps_min64(vocabulary, nps_max64(NPS_TABLE_COUNT / width, 1));
}

static int64_t logit_rows(int64_t vocabulary, int64_t width) {
  const int64_t rows = LOGITS / most_classes(vocabulary, width);
  return rows < 16 ? 16 : nps_min64(rows, ROWS);
}

int64_t nps_texts_logit_room(int64_t vocabulary, int64_t width) {
  return logit_rows(vocabulary, width) * most_classes(vocabulary, width);
}

void nps_texts_logits(const nps_pass_t *pass, const nps_net_step_t *step, int64_t width, float scale, float cap,
                      const float *x, float *room) {
  const int64_t most = logit_rows(pass->classes, width);
  int64_t asked = 0;
  while (asked < pass->rows && pass->tallies[asked].label >= 0) asked++;
  for (int64_t first = 0; first < asked; first += most) {
    const int64_t count = nps_min64(asked - first, most);
    nps_sgemm(true, count, step->rows, width, scale, x + first * width, width, pass->table, width, 0, room, step->rows);
    if (cap > 0) nps_kernel_cap(room, count * step->rows, 1, cap);
    for (int64_t i = 0; i < count; i++)
      nps_pass_take(pass, first + i, pass->tallies[first + i].label, room + i * step->rows, step->first, step->rows);
  }
}

/* ---- attention ---- */

static int64_t padded(int64_t n) { return (n + NPS_PAD - 1) / NPS_PAD * NPS_PAD; }

static int64_t turned_room(int64_t width) { return padded(width * QUERIES + NPS_PAD); }

int64_t nps_heads_room(int64_t tokens, int64_t width) { return turned_room(width) + (tokens + 3) * QUERIES; }

/* turned[c][i] = number c of query i; columns behind the last are read, though not used. */
static void turn_queries(const float *query, int64_t ld, int64_t count, int64_t width, float *turned) {
  memset(turned, 0, (size_t)turned_room(width) * sizeof *turned);
  for (int64_t i = 0; i < count; i++)
    for (int64_t c = 0; c < width; c++) turned[c * QUERIES + i] = query[i * ld + c];
}

/* A block of queries sees the tokens [from, to). */
static void attend_block(const nps_pass_t *pass, const nps_heads_t *h, int64_t text, int64_t head, int64_t first,
                         float *room) {
  const int64_t count = nps_min64(h->queries - first, QUERIES), group = head / (h->heads / h->groups);
  const int64_t to = h->causal ? first + count : h->tokens;
  const int64_t from = h->window ? nps_max64(first - h->window + 1, 0) : 0, row = text * h->tokens + from;
  const int32_t *mask = h->masked ? nps_texts_mask(pass, text) : NULL;
  nps_attention_t a = {.query = room, .scores = room + turned_room(h->width), .width = h->width, .scale = h->scale};
  a.keys = h->keys + row * h->ldk + group * h->width;
  a.value = h->value + row * h->ldk + group * h->width;
  a.out = h->out + (text * h->queries + first) * h->ldo + head * h->width;
  a.mask = mask ? mask + from : NULL;
  a.bias = h->bias ? h->bias + head * h->ldb + first - from : NULL;
  a.cap = h->cap;
  a.causal = h->causal;
  a.window = h->window;
  a.queries = count;
  a.tokens = to - from;
  a.ldq = QUERIES;
  a.ldk = a.ldv = h->ldk;
  a.ldo = h->ldo;
  turn_queries(h->query + (text * h->queries + first) * h->ldq + head * h->width, h->ldq, count, h->width, room);
  nps_kernel_attention(&a);
}

void nps_heads_attend(const nps_pass_t *pass, const nps_heads_t *h, float *room) {
  for (int64_t text = 0; text < h->texts; text++)
    for (int64_t head = 0; head < h->heads; head++)
      for (int64_t first = 0; first < h->queries; first += QUERIES) attend_block(pass, h, text, head, first, room);
}

/* ---- working memory ---- */

int64_t nps_room_lay_out(const nps_room_part_t *parts, int count, float *memory) {
  int64_t at = 0;
  for (int i = 0; i < count; i++) {
    if (memory) *parts[i].to = memory + at;
    at += padded(parts[i].count);
  }
  return at;
}
