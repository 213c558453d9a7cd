/* The locks and the event by themselves: a lock excludes and forgets nobody, one between processes
 * not even if somebody dies at it; a sleeper is woken if what he waits for has come, whoever else
 * leaves, times out or is interrupted meanwhile. */
#include "explorer.h"
#include "park.h"

static struct {
    pyper__lock lock;
    pyper__owned_lock owned;
    pyper__shared_lock shared;
    bool mortal; /* somebody may die with the lock, or on his way */
    int inside;
    long entered;
    pyper__event event;
    _Atomic long units; /* to be had one by one */
    long taken;
    pyper__seat seats[3];
} state;

void *const model_state = &state;
const size_t model_state_size = sizeof state;
const bool model_whole_runs = false;

static void begin(void) {
    for (int i = 0; i < 3; i++) pyper__seat_init(&state.seats[i], NULL, NULL);
    pyper__event_init(&state.event);
    model_private(state.seats, sizeof state.seats);
    model_private(&state.event.yields, sizeof state.event.yields);
    model_name(&state.lock, sizeof state.lock, "lock");
    model_name(&state.owned.lock, sizeof state.owned.lock, "owned.lock");
    model_name(&state.owned.inside, sizeof state.owned.inside, "owned.inside");
    model_name(&state.owned.owner, sizeof state.owned.owner, "owned.owner");
    model_name(&state.shared.mutex, sizeof state.shared.mutex, "shared.mutex");
    model_name(&state.shared.freed, 8, "shared.freed");
    model_name(&state.event, 8, "event");
    model_name(&state.units, sizeof state.units, "units");
}

/* ------------------------------------------------------------------------------------- the lock */

static void enter_twice(void *unused) {
    for (int i = 0; i < 2; i++) {
        if (i == 0)
            pyper__lock_take(&state.lock);
        else
            pyper__lock_take_patiently(&state.lock);
        MODEL_CHECK(state.inside == 0);
        state.inside = 1;
        state.entered++;
        /* Something that the others may see in between. */
        (void)atomic_load(&state.units);
        state.inside = 0;
        pyper__lock_give(&state.lock);
    }
}

static void lock_of_two(void) {
    begin();
    for (int i = 0; i < 2; i++) model_thread(i ? "b" : "a", enter_twice, NULL, 0);
}

static void lock_of_three(void) {
    begin();
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) model_thread(names[i], enter_twice, NULL, 0);
}

static void all_entered(void) {
    MODEL_CHECK(state.entered % 2 == 0 && state.entered >= 4);
    MODEL_CHECK(state.lock.word == 0);
}

/* ------------------------------------------------------------------------------- the owned lock */

static void enter_owned(void *times) {
    for (intptr_t i = 0; i < (intptr_t)times; i++) {
        bool as_owner = pyper__owned_lock_take(&state.owned);
        MODEL_CHECK(state.inside == 0);
        state.inside = 1;
        state.entered++;
        (void)atomic_load(&state.units);
        state.inside = 0;
        pyper__owned_lock_give(&state.owned, as_owner);
    }
}

/* The first to come takes it twice as its owner, unless the other one comes in between. */
static void owned_lock(void) {
    begin();
    pyper__owned_lock_init(&state.owned, false);
    for (int i = 0; i < 2; i++) model_thread(i ? "b" : "a", enter_owned, (void *)3, 0);
}

static void owned_lock_of_three(void) {
    begin();
    pyper__owned_lock_init(&state.owned, false);
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) model_thread(names[i], enter_owned, (void *)2, 0);
}

static void all_entered_owned(void) {
    MODEL_CHECK(state.entered == 6);
    MODEL_CHECK(state.owned.lock.word == 0 && state.owned.inside == 0);
}

/* ------------------------------------------------------------------------------ the shared lock */

/* For how long anybody sleeps there: where nobody dies nobody needs to look for himself. */
int64_t model_look_again_ns(void) {
    return state.mortal ? 1000 : PYPER_FOREVER - pyper_now();
}

static void enter_shared(void *times) {
    for (intptr_t i = 0; i < (intptr_t)times; i++) {
        if (pyper__shared_lock_take(&state.shared)) state.inside = 0;
        MODEL_CHECK(state.inside == 0);
        state.inside = 1;
        state.entered++;
        (void)atomic_load(&state.units);
        state.inside = 0;
        pyper__shared_lock_give(&state.shared);
    }
}

static void enter_often(int threads, intptr_t times, unsigned flags_of_first) {
    begin();
    MODEL_CHECK(pyper__shared_lock_init(&state.shared) == 0);
    state.mortal = flags_of_first & MODEL_MORTAL;
    static const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < threads; i++)
        model_thread(names[i], enter_shared, (void *)times, i == 0 ? flags_of_first : 0);
}
static void shared_lock_of_two(void) {
    enter_often(2, 2, 0);
}
static void shared_lock_of_three(void) {
    enter_often(3, 2, 0);
}
static void shared_lock_outlives_its_owner(void) {
    enter_often(3, 1, MODEL_MORTAL);
}

/* Whoever may die is the first. */
static void all_entered_shared(void) {
    MODEL_CHECK(state.entered >= (state.mortal ? 2 : 4));
    if (!model_has_died(0)) MODEL_CHECK(state.inside == 0);
}

/* ------------------------------------------------------------------------------------ the event */

static bool any_units(const void *unused) {
    return atomic_load(&state.units) > 0;
}

static bool take_unit(void) {
    long n = atomic_load(&state.units);
    while (n > 0)
        if (atomic_compare_exchange_strong(&state.units, &n, n - 1)) return true;
    return false;
}

static void take(void *number) {
    while (!take_unit())
        MODEL_CHECK(pyper__await(&state.seats[(intptr_t)number], &state.event, any_units, NULL,
                                 PYPER_FOREVER, PYPER__OTHER, false) == 0);
    state.taken++;
}

/* Gives up when the time is over, if there is no unit; one more may come just then. */
static void take_impatiently(void *number) {
    for (;;) {
        int rc = pyper__await(&state.seats[(intptr_t)number], &state.event, any_units, NULL, 1000,
                              PYPER__OTHER, true);
        if (rc == PYPER_ETIMEDOUT) return;
        MODEL_CHECK(rc == 0 || rc == PYPER_EINTR);
        if (take_unit()) break;
    }
    state.taken++;
}

static void give(void *count) {
    for (intptr_t i = 0; i < (intptr_t)count; i++) {
        atomic_fetch_add(&state.units, 1);
        pyper__event_notify(&state.event, 1);
    }
}

static void give_by_a_store(void *count) {
    atomic_store(&state.units, (long)(intptr_t)count);
    pyper__event_notify(&state.event, (uint32_t)(intptr_t)count);
}

static void one_sleeper(void) {
    begin();
    model_thread("sleeper", take, (void *)0, 0);
    model_thread("waker", give_by_a_store, (void *)1, 0);
}

static void two_sleepers(void) {
    begin();
    model_thread("sleeper 0", take, (void *)0, 0);
    model_thread("sleeper 1", take, (void *)1, 0);
    model_thread("waker", give, (void *)2, 0);
}

static void two_sleepers_told_at_once(void) {
    begin();
    model_thread("sleeper 0", take, (void *)0, 0);
    model_thread("sleeper 1", take, (void *)1, 0);
    model_thread("waker", give_by_a_store, (void *)2, 0);
}

static void one_is_impatient(void) {
    begin();
    model_thread("sleeper", take, (void *)0, 0);
    model_thread("impatient", take_impatiently, (void *)1, 0);
    model_thread("waker", give, (void *)2, 0);
}

static void units_are_taken(void) {
    MODEL_CHECK(state.taken >= 1 && state.units >= 0);
}

const scenario scenarios[] = {
    {"lock_of_two", lock_of_two, NULL, all_entered, 0, 0, 0},
    {"lock_of_three", lock_of_three, NULL, all_entered, 0, 0, 0},
    {"owned_lock", owned_lock, NULL, all_entered_owned, 0, 0, 0},
    {"owned_lock_of_three", owned_lock_of_three, NULL, all_entered_owned, 0, 0, 0},
    {"shared_lock_of_two", shared_lock_of_two, NULL, all_entered_shared, 0, 0, 0},
    {"shared_lock_of_three", shared_lock_of_three, NULL, all_entered_shared, 0, 0, 0},
    {"shared_lock_outlives_its_owner", shared_lock_outlives_its_owner, NULL, all_entered_shared, 0,
     1, 0},
    {"one_sleeper", one_sleeper, NULL, units_are_taken, 0, 0, 0},
    {"two_sleepers", two_sleepers, NULL, units_are_taken, 0, 0, 0},
    {"two_sleepers_told_at_once", two_sleepers_told_at_once, NULL, units_are_taken, 0, 0, 0},
    {"one_is_impatient", one_is_impatient, NULL, units_are_taken, 1, 0, 0},
    {NULL, NULL, NULL, NULL, 0, 0, 0},
};
