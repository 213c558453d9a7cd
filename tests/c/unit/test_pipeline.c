/* The room `pipeline`: what of a task's options is kept, callers with older or newer options, and
 * what happens without memory. */
#include "../kit.h"

#include "pipeline.h"
#include "text.h"

TEST(options_are_kept_as_given) {
    int bound;
    pyper_pipeline *p =
        pyper_task(pass, .branch = true, .workers = 3, .ordered = true, .throttle = 9,
                   .bind = &bound, .type = &item_type, .name = "named");
    CHECK_EQ(p->count, 1);
    const pyper__task *t = p->tasks[0];
    CHECK(t->fn == pass && t->branch && !t->join && t->ordered);
    CHECK_EQ(t->workers, 3);
    CHECK_EQ(t->throttle, 9);
    CHECK(t->bind == &bound && t->type == &item_type);
    CHECK_STR(t->name, "named");
    pyper_unref(p);
}

/* Texts are cut between characters: of one to four bytes, and of what is no UTF-8 anywhere. */
TEST(a_text_is_never_cut_inside_a_character) {
    CHECK_EQ(pyper__text_fit("", 4), 0);
    CHECK_EQ(pyper__text_fit("abc", 4), 3);
    CHECK_EQ(pyper__text_fit("abcde", 4), 4);
    const char *text = "a\xc3\xa9\xe5\xad\x97\xf0\x9f\x90\x8d"; /* 1, 2, 3 and 4 bytes */
    const int fits[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10};
    for (size_t most = 0; most < sizeof fits / sizeof *fits; most++)
        CHECK_EQ(pyper__text_fit(text, most), fits[most]);
    CHECK_EQ(pyper__text_fit("ab\x80\x80\x80\x80\x80", 6), 6);
    char copy[6];
    pyper__text_copy(copy, sizeof copy, text);
    CHECK_STR(copy, "a\xc3\xa9");
    char end[] = "a\xe5\xad";
    pyper__text_end(end);
    CHECK_STR(end, "a");
}

TEST(a_long_name_is_cut_in_messages_between_characters) {
    char name[100] = "a";
    for (int i = 0; i < 30; i++) strcat(name, "\xe5\xad\x97");
    pyper_pipeline *p = pyper_task(NULL, .name = name);
    const char *end = strchr(strchr(pyper_pipeline_message(p), '\'') + 1, '\'');
    CHECK_EQ(end - pyper_pipeline_message(p), strlen("task '") + 1 + 21 * 3);
    CHECK(memcmp(end - 3, "\xe5\xad\x97", 3) == 0);
    pyper_unref(p);
}

/* One worker keeps the order by itself: nothing is paid for it. */
TEST(one_worker_needs_no_order) {
    pyper_pipeline *p = pyper_task(pass, .ordered = true);
    CHECK(!p->tasks[0]->ordered);
    CHECK_EQ(p->tasks[0]->workers, 1);
    pyper_unref(p);
}

TEST(parts_share_their_tasks) {
    pyper_pipeline *part = pyper_pipe(pyper_task(pass), pyper_task(add_one));
    const pyper__task *first = part->tasks[0], *second = part->tasks[1];
    pyper_pipeline *p = pyper_pipe(pyper_ref(part), part, pyper_task(pass));
    CHECK_EQ(p->count, 5);
    CHECK(p->tasks[0] == first && p->tasks[1] == second);
    CHECK(p->tasks[2] == first && p->tasks[3] == second);
    CHECK(p->tasks[4] != first);
    pyper_unref(p);
}

/* An older caller's options end before ours do: the rest has its default. */
TEST(options_of_an_older_caller) {
    pyper_task_options options = {.size = offsetof(pyper_task_options, workers),
                                  .fn = pass,
                                  .branch = true,
                                  .workers = -5,
                                  .throttle = -5};
    pyper_pipeline *p = pyper_task_from(&options);
    CHECK_EQ(pyper_pipeline_error(p), 0);
    CHECK(p->tasks[0]->branch);
    CHECK_EQ(p->tasks[0]->workers, 1);
    CHECK_EQ(p->tasks[0]->throttle, 0);
    pyper_unref(p);
}

/* A newer caller's are longer: what we know of is read. */
TEST(options_of_a_newer_caller) {
    struct {
        pyper_task_options known;
        char unknown[64];
    } options = {.known = {.size = sizeof options, .fn = pass, .workers = 2, .name = "newer"}};
    memset(options.unknown, 0x7f, sizeof options.unknown);
    pyper_pipeline *p = pyper_task_from(&options.known);
    CHECK_EQ(pyper_pipeline_error(p), 0);
    CHECK_EQ(p->tasks[0]->workers, 2);
    CHECK_STR(p->tasks[0]->name, "newer");
    pyper_unref(p);
}

static void count_release(void *bind) {
    tally_add(bind, 1);
}

/* Each allocation on the way fails in turn, and `bind` is released whatever happens. */
TEST(without_memory_there_is_a_failed_pipeline) {
    tally released = TALLY;
    for (long at = 1, error = PYPER_ENOMEM; error != 0; at++) {
        long before = tally_count(&released);
        atomic_store(&pyper__fail_alloc_at, at);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(pass, .bind = &released, .release = count_release),
                       pyper_pipe(pyper_task(pass, .bind = &released, .release = count_release),
                                  pyper_task(pass, .bind = &released, .release = count_release)));
        atomic_store(&pyper__fail_alloc_at, -1);
        error = pyper_pipeline_error(p);
        CHECK(error == 0 || error == PYPER_ENOMEM);
        if (error) CHECK(*pyper_pipeline_message(p));
        CHECK_EQ(pyper_task_count(p), error ? 0 : 3);
        pyper_unref(pyper_ref(p));
        pyper_unref(p);
        CHECK_EQ(tally_count(&released), before + 3);
        CHECK(at < 100);
    }
}

/* There may not even be memory to say what is wrong. */
TEST(without_memory_a_bad_option_is_still_a_failure) {
    tally released = TALLY;
    atomic_store(&pyper__fail_alloc_stays, 1);
    atomic_store(&pyper__fail_alloc_at, 1);
    pyper_pipeline *p =
        pyper_task(NULL, .bind = &released, .release = count_release, .name = "without a function");
    CHECK(pyper_pipeline_error(p) < 0);
    CHECK(*pyper_pipeline_message(p));
    pyper_pipeline *pipe = pyper_pipe(pyper_ref(p), p, NULL);
    CHECK(pyper_pipeline_error(pipe) < 0);
    pyper_unref(pipe);
    CHECK_EQ(tally_count(&released), 1);
}
