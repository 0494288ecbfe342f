#include "../nps_check_mpi.h"

#include <time.h>

/* Whether this rank has recorded exactly these problems (none: all NULL); forgets them. */
static bool problems_are(const char *first, const char *second) {
  const int expected = (first != NULL) + (second != NULL);
  bool ok = nps_problem_count() == expected;
  if (ok && first) ok = strcmp(nps_problem_text(0), first) == 0;
  if (ok && second) ok = strcmp(nps_problem_text(1), second) == 0;
  nps_problem_clear();
  return ok;
}

static bool on_first(const char *first, const char *second) {
  return rank == 0 ? problems_are(first, second) : problems_are(NULL, NULL);
}

/* ---- agree ---- */

START_TEST(success_is_agreed_on) {
  bool ok = nps_comm_agree(comm, NPS_OK) == NPS_OK && problems_are(NULL, NULL);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(one_failing_rank_is_heard_by_all) {
  bool ok = true;
  for (int failing = 0; failing < size; failing++)
    for (int code = NPS_OK + 1; code < NPS_ERR_COUNT; code++) {
      char text[64];
      snprintf(text, sizeof text, "rank %d: 100%% wrong, %%s", failing);
      nps_err_t err = rank == failing ? nps_fail((nps_err_t)code, "%s", text) : NPS_OK;
      ok = ok && nps_comm_agree(comm, err) == (nps_err_t)code;
      if (rank == 0) ok = ok && nps_problem_count() == 1 && nps_problem_code(0) == (nps_err_t)code;
      ok = on_first(text, NULL) && ok;
    }
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(of_several_failing_ranks_the_lowest_speaks) {
  nps_fail(NPS_ERR_INPUT, "rank %d: first", rank);
  nps_fail(NPS_ERR_INPUT, "rank %d: second", rank);
  bool ok = nps_comm_agree(comm, NPS_ERR_INPUT) == NPS_ERR_INPUT;
  ok = on_first("rank 0: first", "rank 0: second") && ok;
  nps_err_t err = rank >= size / 2 ? nps_fail(NPS_ERR_IO, "rank %d: full", rank) : NPS_OK;
  char lowest[64];
  snprintf(lowest, sizeof lowest, "rank %d: full", size / 2);
  ok = nps_comm_agree(comm, err) == NPS_ERR_IO && ok;
  ok = on_first(lowest, NULL) && ok;
  ck_assert(everywhere(ok));
}
END_TEST

/* Rank 0 has input problems, the last one config problems, which come first. */
START_TEST(the_worst_code_wins_and_brings_its_messages) {
  nps_err_t err = NPS_OK;
  if (rank == 0) err = nps_fail(NPS_ERR_INPUT, "an input");
  if (rank == size - 1) {
    nps_fail(NPS_ERR_INPUT, "another input");
    err = nps_fail(NPS_ERR_CONFIG, "the config");
  }
  bool ok = nps_comm_agree(comm, err) == NPS_ERR_CONFIG;
  if (size == 1)
    ok = nps_problem_count() == 3 && ok;
  else {
    if (rank == 0) ok = nps_problem_code(0) == NPS_ERR_INPUT && nps_problem_code(1) == NPS_ERR_CONFIG && ok;
    ok = on_first("another input", "the config") && ok;
  }
  nps_problem_clear();
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(long_messages_and_many_of_them_arrive) {
  enum { LENGTH = 300000, COUNT = 1000 };
  char *text = nps_xcalloc(LENGTH + 1, 1);
  memset(text, 'x', LENGTH);
  nps_err_t err = NPS_OK;
  if (rank == size - 1) {
    err = nps_fail(NPS_ERR_INPUT, "%s", text);
    for (int i = 1; i < COUNT; i++) nps_fail(NPS_ERR_INPUT, "%s %d", i % 2 ? "τ" : "", i);
  }
  bool ok = nps_comm_agree(comm, err) == NPS_ERR_INPUT;
  ok = nps_problem_count() == (rank == 0 ? COUNT : 0) && ok;
  if (rank == 0 && ok)
    ok = strcmp(nps_problem_text(0), text) == 0 && strcmp(nps_problem_text(COUNT - 1), "τ 999") == 0 &&
         strcmp(nps_problem_text(COUNT - 2), " 998") == 0;
  nps_problem_clear();
  free(text);
  ck_assert(everywhere(ok));
}
END_TEST

/* ---- communicators ---- */

START_TEST(ranks_are_split_by_colour) {
  nps_comm_t *part = NULL;
  nps_comm_split(comm, rank % 2, &part);
  bool ok = part && nps_comm_rank(part) == rank / 2 && nps_comm_size(part) == (size + 1 - rank % 2) / 2;
  int64_t sum = rank;
  nps_comm_sum_i64(part, &sum, 1);
  int64_t expected = 0;
  for (int r = rank % 2; r < size; r += 2) expected += r;
  ok = ok && sum == expected;
  nps_comm_free(part);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(a_negative_colour_takes_no_part) {
  nps_comm_t *part = comm;
  nps_comm_split(comm, rank == 0 ? -1 : 5, &part);
  bool ok = rank == 0 ? part == NULL : part && nps_comm_size(part) == size - 1 && nps_comm_rank(part) == rank - 1;
  nps_comm_free(part);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(agreement_in_a_part_leaves_the_others_alone) {
  nps_comm_t *part = NULL;
  nps_comm_split(comm, rank == 0 ? 0 : 1, &part);
  nps_err_t err = rank == size - 1 ? nps_fail(NPS_ERR_IO, "full") : NPS_OK;
  nps_err_t agreed = nps_comm_agree(part, err);
  bool ok = agreed == (rank > 0 || size == 1 ? NPS_ERR_IO : NPS_OK);
  const bool speaks = nps_comm_rank(part) == 0 && agreed != NPS_OK;
  ok = problems_are(speaks ? "full" : NULL, NULL) && ok;
  nps_comm_free(part);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(hosts_and_single_processes_have_communicators) {
  nps_comm_t *host = NULL, *self = nps_comm_self();
  nps_comm_split_host(comm, &host);
  bool ok = nps_comm_size(self) == 1 && nps_comm_rank(self) == 0;
  ok = ok && nps_comm_size(host) >= 1 && nps_comm_size(host) <= size && nps_comm_rank(host) < nps_comm_size(host);
  nps_comm_free(host);
  nps_comm_free(self);
  nps_comm_free(NULL);
  nps_comm_barrier(comm);
  ck_assert(everywhere(ok));
}
END_TEST

/* ---- data ---- */

START_TEST(bytes_are_sent_to_all) {
  enum { BYTES = 3000001 };
  char *data = nps_xcalloc(BYTES, 1);
  for (int i = 0; rank == 0 && i < BYTES; i++) data[i] = (char)(i * 7);
  nps_comm_bcast(comm, data, BYTES - 1);
  bool ok = data[BYTES - 1] == (rank == 0 ? (char)((BYTES - 1) * 7) : 0);
  for (int i = 0; i < BYTES - 1; i++) ok = ok && data[i] == (char)(i * 7);
  nps_comm_bcast(comm, NULL, 0);
  free(data);
  ck_assert(everywhere(ok));
}
END_TEST

static bool text_arrives(const char *sent) {
  char *text = rank == 0 && sent ? nps_xstrdup(sent) : NULL;
  nps_comm_bcast_text(comm, &text);
  bool ok = sent ? text && strcmp(text, sent) == 0 : text == NULL;
  free(text);
  return ok;
}

START_TEST(texts_are_sent_to_all) {
  enum { LENGTH = 2000000 };
  char *text = nps_xcalloc(LENGTH + 1, 1);
  for (int i = 0; i < LENGTH; i++) text[i] = (char)('a' + i % 26);
  bool ok = text_arrives(NULL) & text_arrives("") & text_arrives("θ") & text_arrives(text);
  free(text);
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(arrays_are_reduced_element_by_element) {
  int64_t sums[3] = {rank, -rank * (INT64_C(1) << 40), 1}, total = (int64_t)size * (size - 1) / 2;
  double one[3] = {rank == size - 1 ? 0.1 : 0, 0, rank == 0 ? -3.5 : 0}, largest[2] = {rank, -rank - 1};
  nps_comm_sum_i64(comm, sums, 3);
  nps_comm_sum_f64(comm, one, 3);
  nps_comm_max_f64(comm, largest, 2);
  nps_comm_sum_i64(comm, NULL, 0);
  bool ok = sums[0] == total && sums[1] == -total * (INT64_C(1) << 40) && sums[2] == size;
  ok = ok && one[0] == 0.1 && one[1] == 0 && one[2] == -3.5 && largest[0] == size - 1 && largest[1] == -1;
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(the_ranks_before_are_added_up) {
  int64_t x[3] = {rank + 1, 10, INT64_C(1) << 40};
  nps_comm_exscan_i64(comm, x, 3);
  nps_comm_exscan_i64(comm, NULL, 0);
  bool ok = x[0] == (int64_t)rank * (rank + 1) / 2 && x[1] == 10 * rank && x[2] == rank * (INT64_C(1) << 40);
  ck_assert(everywhere(ok));
}
END_TEST

/* ---- pulse ---- */

/* Long enough for any machine that is not broken. */
#define PATIENCE 60.0

static void pause_ms(int ms) {
  const struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
  nanosleep(&t, NULL);
}

/* Beats until all ranks' work is heard of. */
static bool hears_total(nps_pulse_t *pulse, int64_t done, int64_t expected) {
  const double start = nps_now();
  int64_t total = 0, before = 0;
  bool ok = true;
  while (ok && total < expected && nps_now() - start < PATIENCE) {
    ok = nps_pulse_beat(pulse, done, &total) && total >= before && total <= expected;
    before = total;
    pause_ms(1);
  }
  return ok && total == expected;
}

START_TEST(totals_are_heard_of) {
  nps_pulse_t *pulse = nps_pulse_start(comm);
  bool ok = nps_pulse_beat(pulse, 0, NULL);
  ok = ok && hears_total(pulse, 1000 + rank, (int64_t)size * 1000 + (int64_t)size * (size - 1) / 2);
  ok = nps_pulse_end(pulse, 1000 + rank, NPS_OK, NULL, NULL) == NPS_OK && ok;
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(ranks_may_end_without_a_beat) {
  bool ok = true;
  for (int i = 0; i < 20; i++) {
    nps_pulse_t *pulse = nps_pulse_start(comm);
    if (i % (rank + 2) == 0) pause_ms(3);
    ok = nps_pulse_end(pulse, i, NPS_OK, NULL, NULL) == NPS_OK && ok;
  }
  ck_assert(everywhere(ok));
}
END_TEST

/* Beats until a failure is heard of. */
static bool hears_failure(nps_pulse_t *pulse) {
  const double start = nps_now();
  while (nps_now() - start < PATIENCE) {
    if (!nps_pulse_beat(pulse, 1, NULL)) return true;
    pause_ms(1);
  }
  return false;
}

START_TEST(a_failing_rank_is_heard_of_and_all_end) {
  bool ok = true;
  for (int failing = 0; failing < size; failing++) {
    nps_pulse_t *pulse = nps_pulse_start(comm);
    nps_err_t err = rank == failing ? nps_fail(NPS_ERR_INPUT, "NaN") : NPS_OK;
    if (rank != failing) ok = hears_failure(pulse) && ok;
    ok = nps_pulse_end(pulse, 1, err, NULL, NULL) == NPS_ERR_INPUT && ok;
    ok = on_first("NaN", NULL) && ok;
  }
  ck_assert(everywhere(ok));
}
END_TEST

START_TEST(several_failing_ranks_end_with_the_worst_code) {
  nps_pulse_t *pulse = nps_pulse_start(comm);
  nps_err_t err = NPS_OK;
  char text[64];
  snprintf(text, sizeof text, "rank %d is full", size - 1);
  if (rank == 0) err = nps_fail(NPS_ERR_INPUT, "NaN");
  if (rank == size - 1) {
    nps_problem_clear();
    pause_ms(20);
    err = nps_fail(NPS_ERR_IO, "%s", text);
  }
  bool ok = err != NPS_OK || hears_failure(pulse);
  ok = nps_pulse_end(pulse, 1, err, NULL, NULL) == NPS_ERR_IO && ok;
  ok = on_first(text, NULL) && ok;
  ck_assert(everywhere(ok));
}
END_TEST

typedef struct {
  int calls;
  int64_t largest;
} idle_t;

static void note_idle(void *ctx, int64_t total) {
  idle_t *idle = ctx;
  idle->calls++;
  if (total > idle->largest) idle->largest = total;
}

START_TEST(those_who_wait_are_told_the_total) {
  idle_t idle = {0};
  nps_pulse_t *pulse = nps_pulse_start(comm);
  for (int i = 0; rank == size - 1 && i < 60; i++) {
    nps_pulse_beat(pulse, 5, NULL);
    pause_ms(10);
  }
  bool ok = nps_pulse_end(pulse, 5, NPS_OK, note_idle, &idle) == NPS_OK;
  if (rank < size - 1) ok = ok && idle.calls >= 1;
  ok = ok && idle.largest <= 5 * (int64_t)size;
  ck_assert(everywhere(ok));
}
END_TEST

/* ---- messages and counters ---- */

/* Round a ring, several on their way at once, of all lengths. */
START_TEST(messages_come_in_order) {
  enum { COUNT = 20, MOST = 50000 };
  static int64_t out[COUNT][MOST], in[COUNT][MOST];
  nps_message_t *messages[2 * COUNT];
  bool ok = true;
  for (int i = 0; i < COUNT; i++) {
    const size_t bytes = (size_t)(i * i * i) * sizeof(int64_t);
    for (int k = 0; k < i * i * i; k++) out[i][k] = 1000000 * rank + 10000 * i + k;
    messages[i] = nps_comm_receive(comm, (rank + size - 1) % size, in[i], bytes);
    messages[COUNT + i] = nps_comm_send(comm, (rank + 1) % size, out[i], bytes);
  }
  nps_comm_progress(comm);
  for (int i = 0; i < 2 * COUNT; i++) nps_message_wait(messages[i]);
  nps_message_wait(NULL);
  for (int i = 0; i < COUNT; i++)
    for (int k = 0; k < i * i * i; k++) ok = ok && in[i][k] == 1000000 * ((rank + size - 1) % size) + 10000 * i + k;
  ck_assert(everywhere(ok));
}
END_TEST

/* Every number is drawn once, however often each rank draws, and again after setting back. */
START_TEST(numbers_are_drawn_once) {
  enum { DRAWS = 30 };
  nps_counter_t *counter = nps_counter_new(comm);
  bool ok = true;
  for (int round = 0; round < 2; round++) {
    int64_t drawn[DRAWS * 16] = {0}, last = -1;
    for (int i = 0; i < DRAWS + rank; i++) {
      const int64_t number = nps_counter_next(counter);
      ok = ok && number > last && number < (int64_t)(sizeof drawn / sizeof *drawn);
      if (ok) drawn[last = number]++;
    }
    nps_comm_sum_i64(comm, drawn, DRAWS * 16);
    const int64_t all = (int64_t)DRAWS * size + size * (size - 1) / 2;
    for (int64_t i = 0; i < DRAWS * 16; i++) ok = ok && drawn[i] == (i < all);
    nps_counter_reset(counter);
  }
  nps_counter_free(counter);
  nps_counter_free(NULL);
  ck_assert(everywhere(ok));
}
END_TEST

int main(int argc, char **argv) {
  start_mpi(&argc, &argv);
  TCase *cases = tcase_create("comm");
  tcase_add_test(cases, success_is_agreed_on);
  tcase_add_test(cases, one_failing_rank_is_heard_by_all);
  tcase_add_test(cases, of_several_failing_ranks_the_lowest_speaks);
  tcase_add_test(cases, the_worst_code_wins_and_brings_its_messages);
  tcase_add_test(cases, long_messages_and_many_of_them_arrive);
  tcase_add_test(cases, ranks_are_split_by_colour);
  tcase_add_test(cases, a_negative_colour_takes_no_part);
  tcase_add_test(cases, agreement_in_a_part_leaves_the_others_alone);
  tcase_add_test(cases, hosts_and_single_processes_have_communicators);
  tcase_add_test(cases, bytes_are_sent_to_all);
  tcase_add_test(cases, texts_are_sent_to_all);
  tcase_add_test(cases, arrays_are_reduced_element_by_element);
  tcase_add_test(cases, the_ranks_before_are_added_up);
  tcase_add_test(cases, messages_come_in_order);
  tcase_add_test(cases, numbers_are_drawn_once);
  tcase_add_test(cases, totals_are_heard_of);
  tcase_add_test(cases, ranks_may_end_without_a_beat);
  tcase_add_test(cases, a_failing_rank_is_heard_of_and_all_end);
  tcase_add_test(cases, several_failing_ranks_end_with_the_worst_code);
  tcase_add_test(cases, those_who_wait_are_told_the_total);
  return end_mpi(run_tests_everywhere("comm", cases));
}
