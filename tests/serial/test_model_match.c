#include "../nps_check.h"
#include "nps/model.h"

#include <math.h>

static char note[2048];

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  snprintf(note + strlen(note), sizeof note - strlen(note), "%s\n", text);
}

static void set_up(void) {
  note[0] = '\0';
  nps_note_set_sink(keep_note, NULL);
}

static void tear_down(void) {
  nps_problem_clear();
  nps_note_set_sink(NULL, NULL);
}

/* A catalogue in memory; tensors are given in byte order of their names. */
typedef struct {
  nps_model_t model;
  nps_tensor_info_t tensors[8];
  nps_model_file_t file;
} fake_t;

static void fake_init(fake_t *f, const char *name) {
  memset(f, 0, sizeof *f);
  f->model.name = (char *)(uintptr_t)name;
  f->model.path = (char *)(uintptr_t) "/models/x";
  f->model.tensors = f->tensors;
  f->model.files = &f->file;
  f->model.file_count = 1;
}

static void fake_add(fake_t *f, const char *name, nps_dtype_t dtype, int64_t extent, int64_t offset) {
  f->tensors[f->model.tensor_count++] = (nps_tensor_info_t){
      .name = (char *)(uintptr_t)name, .dtype = dtype, .ndim = 1, .shape = {extent}, .count = extent, .offset = offset};
}

static void check_problem(const char *part) {
  ck_assert_int_gt(nps_problem_count(), 0);
  for (int i = 0; i < nps_problem_count(); i++)
    if (strstr(nps_problem_text(i), part)) return;
  ck_abort_msg("'%s' not in '%s'", part, nps_problem_text(0));
}

static bool near(double x, double y) { return fabs(x - y) < 1e-15; }

/* base: a, b, buffer; one and two: these and a head each. */
static void make_three(fake_t f[3]) {
  static const char *const names[] = {"base", "one", "two"};
  for (int i = 0; i < 3; i++) {
    fake_init(&f[i], names[i]);
    fake_add(&f[i], "a", NPS_BF16, 4, 100);
    fake_add(&f[i], "b", i == 1 ? NPS_F32 : NPS_BF16, 6, 20);
    fake_add(&f[i], "buffer", NPS_I64, 2, 50);
    if (i) fake_add(&f[i], i == 1 ? "c.bias" : "d.bias", NPS_F16, 1, 300);
    if (i) fake_add(&f[i], i == 1 ? "c.weight" : "d.weight", NPS_F16, 3, 200);
  }
}

START_TEST(the_base_decides_what_is_merged) {
  fake_t f[3];
  make_three(f);
  const nps_model_t *const inputs[] = {&f[1].model, &f[0].model, &f[2].model};
  nps_layout_t *layout = NULL;
  const nps_dtype_t dtype = NPS_F32;
  ck_assert_int_eq(nps_layout_match(inputs, 3, 1, 2, &dtype, &layout), NPS_OK);
  ck_assert_int_eq(layout->count, 5);
  const char *const names[] = {"b", "buffer", "a", "d.weight", "d.bias"};
  const nps_action_t actions[] = {NPS_ACTION_MERGE, NPS_ACTION_COPY, NPS_ACTION_MERGE, NPS_ACTION_HEAD,
                                  NPS_ACTION_HEAD};
  const nps_dtype_t types[] = {NPS_F32, NPS_I64, NPS_F32, NPS_F16, NPS_F16};
  for (int i = 0; i < 5; i++) {
    ck_assert_str_eq(layout->targets[i].name, names[i]);
    ck_assert_int_eq(layout->targets[i].action, actions[i]);
    ck_assert_int_eq(layout->targets[i].dtype, types[i]);
  }
  for (int k = 0; k < 3; k++) ck_assert_int_eq(layout->targets[2].source[k], 0);
  ck_assert_int_eq(layout->targets[3].source[0], -1);
  ck_assert_int_eq(layout->targets[3].source[1], -1);
  ck_assert_int_eq(layout->targets[3].source[2], 4);
  ck_assert_str_eq(note, "not merged, as the base lacks them: c.bias, c.weight (of one)\n");
  nps_layout_free(layout);
}
END_TEST

START_TEST(a_model_may_lack_a_buffer_of_the_base) {
  fake_t f[3];
  make_three(f);
  f[2].model.tensor_count = 2; /* a, b */
  const nps_model_t *const inputs[] = {&f[0].model, &f[1].model, &f[2].model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 3, 0, -1, NULL, &layout), NPS_OK);
  ck_assert_int_eq(layout->count, 3);
  ck_assert_int_eq(layout->targets[1].action, NPS_ACTION_COPY);
  ck_assert_int_eq(layout->targets[1].source[1], 2);
  ck_assert_int_eq(layout->targets[1].source[2], -1);
  nps_layout_free(layout);
}
END_TEST

/* A catalogue with names of its own, as they are freed when they change. */
static nps_model_t *named(const char *const *names) {
  nps_model_t *model = nps_xcalloc(1, sizeof *model);
  for (; names[model->tensor_count]; model->tensor_count++) {
    model->tensors = nps_xrealloc(model->tensors, (size_t)model->tensor_count + 1, sizeof *model->tensors);
    model->tensors[model->tensor_count] =
        (nps_tensor_info_t){.name = nps_xstrdup(names[model->tensor_count]), .count = 1};
  }
  model->name = nps_xstrdup("named");
  model->path = nps_xstrdup("/models/named");
  return model;
}

/* Names of `model`, in byte order and separated by spaces, once they are like those of the other. */
static char *renamed(const char *const *names, const char *const *like_names, bool expect_change) {
  nps_model_t *model = named(names), *like = named(like_names);
  nps_text_t text = {0};
  bool changed;
  ck_assert_int_eq(nps_model_name_like(model, like, &changed), NPS_OK);
  ck_assert_int_eq(changed, expect_change);
  for (int i = 0; i < model->tensor_count; i++) nps_text_add(&text, "%s%s", i ? " " : "", model->tensors[i].name);
  nps_model_free(model);
  nps_model_free(like);
  return text.text;
}

static void check_renamed(const char *const *names, const char *const *like, bool change, const char *expected) {
  char *found = renamed(names, like, change);
  ck_assert_str_eq(found, expected);
  free(found);
}

START_TEST(names_differ_by_what_stands_before_them) {
  static const char *const bare[] = {"embeddings.ids", "embeddings.word", "encoder.0.w", "pooler.w", NULL};
  static const char *const full[] = {"bert.embeddings.word", "bert.encoder.0.w", "bert.pooler.w", "classifier.w", NULL};
  static const char *const both[] = {"classifier.w", "encoder.0.w", "pooler.w", NULL};
  static const char *const other[] = {"a.w", "b.a.w", "b.c.w", NULL};
  static const char *const deep[] = {"x.y.bert.encoder.0.w", "x.y.bert.pooler.w", NULL};
  check_renamed(bare, full, true, "bert.embeddings.ids bert.embeddings.word bert.encoder.0.w bert.pooler.w");
  check_renamed(full, bare, true, "classifier.w embeddings.word encoder.0.w pooler.w");
  check_renamed(both, full, true, "bert.encoder.0.w bert.pooler.w classifier.w");
  check_renamed(full, both, true, "classifier.w embeddings.word encoder.0.w pooler.w");
  check_renamed(full, deep, true, "classifier.w x.y.bert.embeddings.word x.y.bert.encoder.0.w x.y.bert.pooler.w");
  check_renamed(bare, bare, false, "embeddings.ids embeddings.word encoder.0.w pooler.w");
  check_renamed(other, other, false, "a.w b.a.w b.c.w");
  check_renamed(other, bare, false, "a.w b.a.w b.c.w");
}
END_TEST

START_TEST(a_single_model_brings_its_head) {
  fake_t f[3];
  make_three(f);
  const nps_model_t *const inputs[] = {&f[0].model, &f[1].model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 2, 0, -1, NULL, &layout), NPS_OK);
  ck_assert_int_eq(layout->count, 5);
  ck_assert_int_eq(layout->targets[0].dtype, NPS_BF16);
  ck_assert_int_eq(layout->targets[4].action, NPS_ACTION_HEAD);
  ck_assert_str_eq(note, "");
  nps_layout_free(layout);
  ck_assert_int_eq(nps_layout_match(inputs + 1, 1, -1, -1, NULL, &layout), NPS_OK);
  ck_assert_int_eq(layout->count, 5);
  ck_assert_int_eq(layout->targets[3].action, NPS_ACTION_MERGE);
  nps_layout_free(layout);
}
END_TEST

START_TEST(without_a_base_the_common_tensors_are_merged) {
  fake_t f[3];
  make_three(f);
  const nps_model_t *const inputs[] = {&f[1].model, &f[2].model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 2, -1, -1, NULL, &layout), NPS_OK);
  ck_assert_int_eq(layout->count, 3);
  ck_assert_str_eq(note, "not merged, as not all models have them: c.bias, c.weight (of one)\n"
                         "not merged, as not all models have them: d.bias, d.weight (of two)\n");
  nps_layout_free(layout);
}
END_TEST

START_TEST(misfits_are_all_listed) {
  fake_t f[3];
  make_three(f);
  f[1].tensors[0].shape[0] = 5;        /* a */
  f[1].tensors[1].dtype = NPS_I32;     /* b */
  f[2].tensors[1].dtype = NPS_F8_E4M3; /* b */
  f[2].tensors[2].dtype = NPS_I32;     /* buffer */
  fake_add(&f[0], "z", NPS_F32, 1, 500);
  const nps_model_t *const inputs[] = {&f[0].model, &f[1].model, &f[2].model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 3, 0, -1, NULL, &layout), NPS_ERR_INPUT);
  ck_assert_ptr_null(layout);
  ck_assert_int_eq(nps_problem_count(), 7);
  check_problem("one: tensor a has shape [5], expected [4] as in base");
  check_problem("one: tensor b has type I32, in base BF16");
  check_problem("two: tensor b has type F8_E4M3, which cannot be merged");
  check_problem("two: tensor buffer has type I32, in base I64");
  check_problem("one: lacks tensor z of the base");
  check_problem("two: lacks tensor z of the base");
  check_problem("base: no other model has z; where that is a head, use the base without it");
}
END_TEST

START_TEST(nothing_in_common_is_an_error) {
  fake_t f[2];
  fake_init(&f[0], "one");
  fake_init(&f[1], "two");
  fake_add(&f[0], "a", NPS_F32, 1, 0);
  fake_add(&f[1], "b", NPS_F32, 1, 0);
  const nps_model_t *const inputs[] = {&f[0].model, &f[1].model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 2, -1, -1, NULL, &layout), NPS_ERR_INPUT);
  check_problem("no tensor is common to all models");
}
END_TEST

START_TEST(quantised_models_are_refused) {
  fake_t f;
  fake_init(&f, "q");
  f.model.config_json = (char *)(uintptr_t) "{\"quantization_config\": {\"bits\": 4}}";
  fake_add(&f, "l.bias", NPS_F16, 1, 0);
  fake_add(&f, "l.qweight", NPS_I32, 1, 8);
  const nps_model_t *const inputs[] = {&f.model};
  nps_layout_t *layout = NULL;
  ck_assert_int_eq(nps_layout_match(inputs, 1, -1, -1, NULL, &layout), NPS_ERR_INPUT);
  ck_assert_int_eq(nps_problem_count(), 1);
  check_problem("q: /models/x: is quantised (quantization_config in its config, tensor l.qweight is I32)");
}
END_TEST

START_TEST(layers_are_found_in_names) {
  static const char *const names[] = {
      "model.layers.0.w",  "model.layers.1.w", "model.layers.2.w",           "model.norm", "vision.blocks.0.w",
      "vision.blocks.1.w", "head.0",           "model.layers.1.experts.7.w", "h2.w",
  };
  double t[9];
  nps_layer_positions(names, 9, "{\"num_hidden_layers\": 3}", t);
  const double text[9] = {0, 0.5, 1, 0, 0, 0, 0, 0.5, 0};
  for (int i = 0; i < 9; i++) ck_assert_msg(near(t[i], text[i]), "%s: %g", names[i], t[i]);
  nps_layer_positions(names, 9, NULL, t);
  for (int i = 0; i < 9; i++) ck_assert_msg(near(t[i], text[i]), "%s: %g", names[i], t[i]);
  nps_layer_positions(names, 9, "{\"n_layer\": 2}", t);
  const double vision[9] = {0, 0, 0, 0, 0, 1, 0, 0, 0};
  for (int i = 0; i < 9; i++) ck_assert_msg(near(t[i], vision[i]), "%s: %g", names[i], t[i]);
  nps_layer_positions(names, 9, "{\"num_layers\": 2, \"num_decoder_layers\": 3}", t);
  for (int i = 0; i < 9; i++) ck_assert_msg(near(t[i], text[i] + vision[i]), "%s: %g", names[i], t[i]);
  nps_layer_positions(names, 1, NULL, t);
  ck_assert(near(t[0], 1));
}
END_TEST

int main(void) {
  TCase *cases = tcase_create("model_match");
  tcase_add_checked_fixture(cases, set_up, tear_down);
  tcase_add_test(cases, the_base_decides_what_is_merged);
  tcase_add_test(cases, a_single_model_brings_its_head);
  tcase_add_test(cases, without_a_base_the_common_tensors_are_merged);
  tcase_add_test(cases, a_model_may_lack_a_buffer_of_the_base);
  tcase_add_test(cases, names_differ_by_what_stands_before_them);
  tcase_add_test(cases, misfits_are_all_listed);
  tcase_add_test(cases, nothing_in_common_is_an_error);
  tcase_add_test(cases, quantised_models_are_refused);
  tcase_add_test(cases, layers_are_found_in_names);
  return run_tests("model_match", cases);
}
