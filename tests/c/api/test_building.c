/* Making tasks and pipelines: what is accepted, what is refused and in which words, and who owns
 * what meanwhile.  Black-box: pyper.h only. */
#include "../kit.h"

/* The pipeline has failed with `code`, says both words, and so does a run of it. */
static void is_refused(pyper_pipeline *p, int code, const char *word, const char *other) {
    CHECK(p != NULL);
    CHECK_EQ(pyper_pipeline_error(p), code);
    CHECK_HAS(pyper_pipeline_message(p), word);
    CHECK_HAS(pyper_pipeline_message(p), other);
    CHECK_EQ(pyper_task_count(p), 0);
    pyper_run *run = START(p, NULL);
    CHECK(run != NULL);
    ENDS_WITH(run, code);
    CHECK_EQ(pyper_failed(run), code);
    CHECK_HAS(pyper_error_message(run), word);
    CHECK_EQ(pyper_stats(run, NULL, 0), 0);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    close_both(run, p);
}

/* The pipeline is sound, but cannot be started. */
static void is_refused_at_start(pyper_pipeline *p, const char *word, const char *other) {
    CHECK_EQ(pyper_pipeline_error(p), 0);
    pyper_run *run = START(p, item_new(1), .type = &item_type);
    CHECK(run != NULL);
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_EQ(pyper_failed(run), PYPER_EINVAL);
    CHECK_HAS(pyper_error_message(run), word);
    CHECK_HAS(pyper_error_message(run), other);
    close_both(run, p);
}

TEST(the_version_is_that_of_the_header) {
    char expected[40];
    snprintf(expected, sizeof expected, "%d.%d.%d", PYPER_VERSION_MAJOR, PYPER_VERSION_MINOR,
             PYPER_VERSION_PATCH);
    CHECK_STR(pyper_version(), expected);
    CHECK_STR(pyper_version(), PYPER_VERSION_STRING);
}

TEST(each_error_has_a_name_and_a_text) {
#define BOTH(name, number, text)                                                                   \
    CHECK_STR(pyper_err_name(PYPER_##name), "PYPER_" #name);                                       \
    CHECK_STR(pyper_strerror(PYPER_##name), text);                                                 \
    CHECK_EQ(PYPER_##name, number);                                                                \
    CHECK(PYPER_##name < 0);
    PYPER_ERRORS(BOTH)
#undef BOTH
    static const int unknown[] = {0, 1, -10, -1000, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        CHECK_STR(pyper_err_name(unknown[i]), "PYPER_E?");
        CHECK_STR(pyper_strerror(unknown[i]), "unknown error");
    }
}

TEST(the_clock_does_not_go_back) {
    int64_t before = pyper_now();
    CHECK(before > 0);
    for (int i = 0; i < 1000; i++) {
        int64_t now = pyper_now();
        CHECK_GE(now, before);
        before = now;
    }
}

EACH_HOST(a_task_without_options_has_the_defaults) {
    pyper_pipeline *p = pyper_task(pass);
    CHECK_EQ(pyper_pipeline_error(p), 0);
    CHECK_STR(pyper_pipeline_message(p), "");
    CHECK_EQ(pyper_task_count(p), 1);
    pyper_run *run = START(p, PTR(42));
    NEXT_IS(run, 42);
    ENDS_WITH(run, 0);
    pyper_task_stats stats;
    CHECK_EQ(pyper_stats(run, &stats, 1), 1);
    CHECK_EQ(stats.workers, 1);
    CHECK_STR(stats.name, "task");
    close_both(run, p);
}

TEST(zero_workers_are_one) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(pass, .workers = 0));
    pyper_run *run = START(p, PTR(1));
    NEXT_IS(run, 1);
    pyper_task_stats stats[2];
    CHECK_EQ(pyper_stats(run, stats, 2), 2);
    CHECK_EQ(stats[0].workers, 1);
    CHECK_EQ(stats[1].workers, 1);
    close_both(run, p);
}

TEST(a_task_without_a_function_is_refused) {
    is_refused(pyper_task(NULL, .name = "parse"), PYPER_EINVAL, "parse", "function");
    is_refused(pyper_task(NULL), PYPER_EINVAL, "task", "function");
}

TEST(absurd_numbers_of_workers_are_refused) {
    static const int64_t absurd[] = {-1, INT64_MIN, PYPER_WORKERS_MAX + 1, (int64_t)1 << 31,
                                     INT64_MAX};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++)
        is_refused(pyper_task(pass, .workers = absurd[i], .name = "parse"), PYPER_EINVAL, "parse",
                   "workers");
    /* The message says which number was given and which would do. */
    pyper_pipeline *p = pyper_task(pass, .workers = -1);
    CHECK_HAS(pyper_pipeline_message(p), "-1");
    CHECK_HAS(pyper_pipeline_message(p), "1000000");
    pyper_unref(p);
    p = pyper_task(pass, .workers = INT64_MAX);
    CHECK_HAS(pyper_pipeline_message(p), "9223372036854775807");
    pyper_unref(p);
    p = pyper_task(pass, .workers = PYPER_WORKERS_MAX);
    CHECK_EQ(pyper_pipeline_error(p), 0);
    pyper_unref(p);
}

TEST(a_negative_throttle_is_refused) {
    is_refused(pyper_task(pass, .throttle = -1, .name = "parse"), PYPER_EINVAL, "parse",
               "throttle");
    is_refused(pyper_task(pass, .throttle = INT64_MIN, .name = "parse"), PYPER_EINVAL, "parse",
               "throttle");
}

TEST(an_enormous_throttle_is_accepted) {
    static const int64_t enormous[] = {(int64_t)1 << 31, (int64_t)1 << 40, INT64_MAX};
    for (size_t i = 0; i < sizeof enormous / sizeof *enormous; i++) {
        for (int ordered = 0; ordered < 2; ordered++) {
            pyper_pipeline *p = pyper_pipe(
                pyper_task(count_up, .branch = true, .throttle = enormous[i], .ordered = ordered),
                pyper_task(pass, .workers = 2, .throttle = enormous[i], .ordered = ordered));
            CHECK_EQ(pyper_pipeline_error(p), 0);
            pyper_run *run = START(p, PTR(100));
            long count;
            CHECK_EQ(drain(run, &count, NULL), 0);
            CHECK_EQ(count, 100);
            close_both(run, p);
        }
    }
}

TEST(ordered_join_with_several_workers_is_refused) {
    is_refused(pyper_task(sum, .join = true, .ordered = true, .workers = 2, .name = "total"),
               PYPER_EINVAL, "total", "ordered");
    for (int64_t workers = 0; workers < 2; workers++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(sum, .join = true, .ordered = true, .workers = workers));
        CHECK_EQ(pyper_pipeline_error(p), 0);
        pyper_run *run = START(p, PTR(10));
        NEXT_IS(run, 45);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

TEST(options_that_are_missing_are_refused) {
    pyper_pipeline *p = pyper_task_from(NULL);
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK(*pyper_pipeline_message(p));
    pyper_unref(p);
    p = pyper_task_from(&(pyper_task_options){.size = 0, .fn = pass});
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK(*pyper_pipeline_message(p));
    pyper_unref(p);
    pyper_run *run = pyper_start_from(NULL);
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_EQ(pyper_close(run), 0);
}

EACH_HOST(a_join_cannot_be_the_first_task) {
    is_refused_at_start(pyper_task(sum, .join = true, .name = "total"), "total", "join");
    is_refused_at_start(
        pyper_pipe(pyper_task(sum, .join = true, .name = "total"), pyper_task(pass)), "total",
        "join");
}

EACH_HOST(several_workers_cannot_be_the_first_task) {
    is_refused_at_start(pyper_task(pass, .workers = 2, .name = "parse"), "parse", "workers");
    /* The same task in the second place is welcome. */
    pyper_pipeline *task = pyper_task(pass, .workers = 2, .name = "parse");
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), pyper_ref(task));
    is_refused_at_start(task, "parse", "workers");
    pyper_run *run = START(p, PTR(10));
    long count, total;
    CHECK_EQ(drain(run, &count, &total), 0);
    CHECK_EQ(count, 10);
    CHECK_EQ(total, 45);
    close_both(run, p);
}

TEST(a_pipe_of_nothing_is_refused) {
    is_refused(pyper_pipe_from(NULL, 0), PYPER_EINVAL, "pipe", "");
    is_refused(pyper_pipe_from(NULL, 2), PYPER_EINVAL, "pyper_pipe_from", "");
}

static void count_release(void *bind) {
    tally_add(bind, 1);
}

TEST(a_pipe_with_a_missing_part_is_refused) {
    tally released = TALLY;
    for (int missing = 0; missing < 3; missing++) {
        pyper_pipeline *parts[3];
        for (int i = 0; i < 3; i++)
            parts[i] =
                i == missing ? NULL : pyper_task(pass, .bind = &released, .release = count_release);
        long before = tally_count(&released);
        pyper_pipeline *p = pyper_pipe(parts[0], parts[1], parts[2]);
        is_refused(p, PYPER_EINVAL, "NULL", "");
        /* The sound parts were taken all the same. */
        CHECK_EQ(tally_count(&released), before + 2);
    }
}

TEST(a_pipe_with_a_failed_part_has_its_failure) {
    pyper_pipeline *failed = pyper_task(NULL, .name = "the broken one");
    char message[500];
    snprintf(message, sizeof message, "%s", pyper_pipeline_message(failed));
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), failed, pyper_task(pass));
    CHECK_STR(pyper_pipeline_message(p), message);
    p = pyper_pipe(pyper_task(pass), p);
    CHECK_HAS(pyper_pipeline_message(p), "the broken one");
    is_refused(p, PYPER_EINVAL, "the broken one", "function");
}

EACH_HOST(a_pipeline_may_be_piped_into_itself) {
    pyper_pipeline *once = pyper_task(add_one);
    pyper_pipeline *twice = pyper_pipe(pyper_ref(once), once);
    pyper_pipeline *four = pyper_pipe(pyper_ref(twice), twice);
    pyper_pipeline *nine = pyper_pipe(pyper_ref(four), four, pyper_task(add_one));
    CHECK_EQ(pyper_pipeline_error(nine), 0);
    CHECK_EQ(pyper_task_count(nine), 9);
    pyper_run *run = START(nine, PTR(100));
    NEXT_IS(run, 109);
    ENDS_WITH(run, 0);
    close_both(run, nine);
}

static int append_digit(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, PTR(INT(item) * 10 + *(const int *)bind));
}

TEST(a_pipe_of_pipes_keeps_the_order) {
    static const int digits[] = {1, 2, 3, 4, 5};
    pyper_pipeline *part[5];
    for (int i = 0; i < 5; i++) part[i] = pyper_task(append_digit, .bind = &digits[i]);
    pyper_pipeline *p =
        pyper_pipe(pyper_pipe(part[0], pyper_pipe(part[1], part[2])), pyper_pipe(part[3]), part[4]);
    CHECK_EQ(pyper_task_count(p), 5);
    pyper_run *run = START(p, PTR(0));
    NEXT_IS(run, 12345);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

TEST(a_long_chain_works) {
    enum { LENGTH = 100 };
    pyper_pipeline *parts[LENGTH];
    for (int i = 0; i < LENGTH; i++) parts[i] = pyper_task(add_one, .throttle = 1 + i % 3);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_pipe_from(parts, LENGTH));
    pyper_run *run = START(p, PTR(20));
    for (int i = 0; i < 20; i++) NEXT_IS(run, i + LENGTH);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

TEST(bind_is_released_once_by_the_last_reference) {
    tally released = TALLY;
    pyper_pipeline *task = pyper_task(pass, .bind = &released, .release = count_release);
    pyper_pipeline *again = pyper_ref(task);
    CHECK(again == task);
    pyper_unref(task);
    CHECK_EQ(tally_count(&released), 0);
    pyper_pipeline *pipe = pyper_pipe(pyper_ref(again), pyper_ref(again));
    pyper_pipeline *other = pyper_pipe(pyper_task(pass), pyper_ref(again));
    pyper_unref(again);
    CHECK_EQ(tally_count(&released), 0);
    pyper_unref(pipe);
    CHECK_EQ(tally_count(&released), 0);
    pyper_unref(other);
    CHECK_EQ(tally_count(&released), 1);
}

TEST(bind_is_released_also_when_the_task_has_failed) {
    tally released = TALLY;
    pyper_pipeline *p = pyper_task(NULL, .bind = &released, .release = count_release);
    pyper_unref(p);
    CHECK_EQ(tally_count(&released), 1);
    p = pyper_task(pass, .workers = -1, .bind = &released, .release = count_release);
    pyper_pipeline *pipe =
        pyper_pipe(p, NULL, pyper_task(pass, .bind = &released, .release = count_release));
    pyper_unref(pipe);
    CHECK_EQ(tally_count(&released), 3);
}

EACH_HOST(a_run_keeps_its_pipeline_alive) {
    tally released = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 2),
                   pyper_task(pass, .bind = &released, .release = count_release, .throttle = 2));
    pyper_run *run = START(p, NULL);
    NEXT_IS(run, 0);
    pyper_unref(p);
    for (int i = 1; i < 100; i++) NEXT_IS(run, i);
    CHECK_EQ(tally_count(&released), 0);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(tally_count(&released), 1);
}

TEST(the_name_is_copied) {
    char name[] = "first name";
    pyper_pipeline *p = pyper_task(pass, .name = name);
    memset(name, 'x', sizeof name - 1);
    pyper_run *run = START(p, NULL);
    pyper_task_stats stats;
    CHECK_EQ(pyper_stats(run, &stats, 1), 1);
    CHECK_STR(stats.name, "first name");
    NEXT_IS(run, 0);
    close_both(run, p);
}

/* Names come from users: long ones, empty ones, and ones that look like formats. */
TEST(odd_names_do_no_harm) {
    char lengthy[5000];
    memset(lengthy, 'n', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = 0;
    const char *names[] = {"", "%s%n%d", lengthy, "\xff\xfe", "a\nb"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        pyper_pipeline *p = pyper_task(pass, .workers = -1, .name = names[i]);
        CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
        CHECK(*pyper_pipeline_message(p));
        pyper_unref(p);
        p = pyper_task(pass, .name = names[i]);
        pyper_run *run = START(p, PTR(5));
        NEXT_IS(run, 5);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

TEST(null_is_accepted_where_the_header_says_so) {
    CHECK(pyper_ref(NULL) == NULL);
    pyper_unref(NULL);
    CHECK_EQ(pyper_pipeline_error(NULL), PYPER_EINVAL);
    CHECK(pyper_pipeline_message(NULL) != NULL);
    CHECK_EQ(pyper_task_count(NULL), 0);
    pyper_cancel(NULL);
    CHECK_EQ(pyper_wait_until(NULL, PYPER_NOWAIT), PYPER_EINVAL);
    CHECK_EQ(pyper_close(NULL), 0);
    CHECK(pyper_run_ref(NULL) == NULL);
    pyper_run_unref(NULL);
    CHECK_EQ(pyper_stats(NULL, NULL, 0), 0);
    void *out = &out;
    CHECK_EQ(pyper_next(NULL, &out), PYPER_EINVAL);
    CHECK(out == &out);
}

EACH_HOST(a_run_of_no_pipeline_is_refused) {
    pyper_run *run = START(NULL, item_new(1), .type = &item_type);
    CHECK(run != NULL);
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_EQ(pyper_failed(run), PYPER_EINVAL);
    CHECK(*pyper_error_message(run));
    CHECK_EQ(pyper_close(run), 0);
}

EACH_HOST(a_run_that_could_not_start_can_be_cancelled_and_given_up) {
    pyper_pipeline *p = pyper_task(NULL);
    pyper_run *run = START(p, item_new(1), .type = &item_type);
    pyper_cancel(run);
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), 0);
    CHECK_EQ(pyper_failed(run), PYPER_EINVAL);
    pyper_run_unref(run);
    pyper_unref(p);
}

static void refer(void *pipeline) {
    for (int i = 0; i < 2000; i++) {
        pyper_pipeline *mine = pyper_pipe(pyper_ref(pipeline), pyper_ref(pipeline));
        CHECK_EQ(pyper_task_count(mine), 4);
        pyper_unref(mine);
    }
}

TEST(references_are_counted_from_several_threads) {
    tally released = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(pass), pyper_task(pass, .bind = &released, .release = count_release));
    thread threads[4];
    for (int i = 0; i < 4; i++) thread_start(&threads[i], refer, p);
    for (int i = 0; i < 4; i++) thread_join(&threads[i]);
    CHECK_EQ(tally_count(&released), 0);
    pyper_unref(p);
    CHECK_EQ(tally_count(&released), 1);
}
