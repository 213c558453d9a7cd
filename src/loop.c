/* loop - see loop.h, and pyper.h for what the public functions promise. */
#include "loop.h"

#include "process.h"
#include "transfer.h"

/* So many calls of user code in one slice of driving, at most: some 100 us with quick functions. */
#define BUDGET 256
/* And so many posts: who posts faster than they can be carried out would keep the driver for
 * ever. */
#define POSTS 1024

/* --------------------------------------------------------------------------------- the driver */

/* Become the driver if nobody is; says whether it took that (give it back with leave_driving()). */
static bool take_driving(pyper__loop *loop) {
    uint64_t nobody = 0;
    return atomic_compare_exchange_strong(&loop->owner, &nobody, pyper__this_thread());
}

/* Read behind what was written before, in the one order of all: whoever posts for an abandoned run
 * wakes its loop and then finds no driver, or a driver who has left finds the loop awake. */
static bool loop_is_asleep(const pyper__loop *loop) {
    return atomic_load(loop->waker.state) == PYPER__ASLEEP;
}

/* One of the functions has forked, and this is the child.  What it shares with its parent must be
 * left alone: the bell, and the events of channels. */
static bool is_in_fork(const pyper__loop *loop) {
    return pyper__run_inherited(loop->run);
}

/* Those who wait for the driver to find something for them may be the next driver. */
static void leave_driving(pyper__loop *loop) {
    if (is_in_fork(loop)) return;
    pyper__watch_leave(&loop->outputs);
    pyper__watch_leave(&loop->end);
    atomic_store(&loop->owner, 0);
    pyper__event_notify_all(loop->outputs.event);
    pyper__event_notify_all(loop->end.event);
}

/* ----------------------------------------------------------------------------------- driving */

/* The next slot that has never worked: it begins, unless there is nothing left for it. */
static void resume_fresh(pyper__crew *crew) {
    pyper__slot *slot = &crew->slots[crew->fresh++];
    const pyper__stage *stage = crew->stage;
    /* A joined task is called also when there is nothing to read. */
    if (pyper__worker_stopped(slot->worker) ||
        (!stage->task->join && pyper__edge_is_complete(stage->input)))
        pyper__slot_leave(slot);
    else
        pyper__slot_resume(slot);
}

static void serve_starved(pyper__crew *crew) {
    pyper__queue *input = crew->stage->input;
    do {
        while (crew->stage->task->join && crew->fresh < crew->count && !is_in_fork(crew->loop))
            resume_fresh(crew);
        while (pyper__edge_items_or_end(input) - crew->due > 0 &&
               (crew->starved.first || crew->fresh < crew->count)) {
            if (crew->loop->budget <= 0) return;
            if (crew->starved.first)
                pyper__slot_resume(crew->starved.first);
            else
                resume_fresh(crew);
            if (is_in_fork(crew->loop)) return;
        }
        if (is_in_fork(crew->loop)) return;
        if (!crew->starved.first && crew->fresh == crew->count) {
            pyper__watch_leave(&crew->items);
            return;
        }
    } while (pyper__watch_enter(&crew->items));
}

static void serve_blocked(pyper__crew *crew) {
    pyper__queue *output = crew->stage->output;
    do {
        pyper__slot *last = crew->blocked.last;
        int64_t room = pyper__edge_room_or_end(output);
        for (pyper__slot *slot = crew->blocked.first, *next; slot; slot = next) {
            next = slot == last ? NULL : slot->next;
            if (crew->loop->budget <= 0) return;
            if (room <= 0 && !output->passes_turn) break;
            if (pyper__edge_is_over(output) || pyper__slot_may_go_on(slot, &room))
                pyper__slot_resume(slot);
            if (is_in_fork(crew->loop)) return;
        }
        if (!crew->blocked.first) {
            pyper__watch_leave(&crew->places);
            return;
        }
    } while (pyper__watch_enter(&crew->places));
}

/* The stage has been told to stop: so are those who do not wait here.  The others find out when
 * they go on. */
static void tell(pyper__crew *crew) {
    crew->told = true;
    for (int64_t k = 0; k < crew->fresh; k++) pyper__slot_tell(&crew->slots[k]);
}

bool pyper__loop_take_post(pyper__loop *loop) {
    if (!loop->taken && atomic_load(&loop->any_posts)) {
        pyper__lock_take(&loop->posts_lock);
        loop->taken = loop->posts.first;
        loop->posts.first = loop->posts.last = NULL;
        atomic_store(&loop->any_posts, false);
        pyper__lock_give(&loop->posts_lock);
    }
    pyper__post *post = loop->taken;
    if (!post) return false;
    loop->taken = post->next;
    loop->carried++;
    pyper__slot_carry_out(post);
    return true;
}

/* Let those go on for whom other threads have done something. */
static void serve_touched(pyper__loop *loop) {
    while (loop->carried < POSTS && pyper__loop_take_post(loop)) continue;
    pyper__slot *slot = loop->touched;
    loop->touched = NULL;
    loop->last_touched = &loop->touched;
    while (slot) {
        pyper__slot *next = slot->next_touched;
        pyper__slot_see_to(slot);
        slot = next;
    }
}

/* One look at everything. */
static void look(pyper__loop *loop) {
    pyper_run *run = loop->run;
    serve_touched(loop);
    for (size_t i = loop->count; i-- > 0 && !is_in_fork(loop);) {
        pyper__crew *crew = &loop->crews[i];
        if (!crew->told && pyper__run_stopped(run, crew->stage->index)) tell(crew);
        /* Who had an input may have found no room for what came of it: then the loop must count
         * itself in there as well. */
        do {
            serve_blocked(crew);
            serve_starved(crew);
        } while (loop->budget > 0 && crew->blocked.first && !crew->places.in);
    }
}

static bool output_or_over(const void *arg) {
    const pyper_run *run = arg;
    const pyper__queue *edge = &run->queues[run->count];
    return pyper__edge_is_over(edge) || pyper__edge_there(edge) != 0;
}

/* Look until there is nothing more to do or the slice is over; says whether there is more. */
static bool drive(pyper__loop *loop) {
    loop->budget = BUDGET;
    loop->carried = 0;
    do {
        atomic_store(loop->waker.state, PYPER__DRIVEN);
        look(loop);
        if (is_in_fork(loop)) return false;
        if (loop->budget <= 0 || loop->carried >= POSTS) {
            atomic_store(loop->waker.state, PYPER__WOKEN);
            return true;
        }
    } while (loop->taken || atomic_load(loop->waker.state) == PYPER__WOKEN);
    return false;
}

/* Nobody looks any more: whoever has something must ring. */
static void fall_asleep(pyper__loop *loop) {
    int state = PYPER__DRIVEN;
    if (is_in_fork(loop)) return;
    if (!atomic_compare_exchange_strong(loop->waker.state, &state, PYPER__ASLEEP) && loop->yours)
        pyper__bell_ring(loop->waker.bell);
}

/* ------------------------------------------------------------ driving for a caller who waits */

/* Drive until ready(run).  The caller is the driver. */
static int drive_until(pyper__loop *loop, bool (*ready)(const void *), pyper__watch *what,
                       int64_t deadline_ns) {
    int rc = 0;
    for (;;) {
        bool more = drive(loop);
        if (is_in_fork(loop)) return PYPER_EFORKED;
        if (ready(loop->run)) break;
        if (more || pyper__watch_enter(what)) continue;
        pyper__seat *seat = &loop->run->callers;
        if (deadline_ns <= pyper_now()) {
            rc = PYPER_ETIMEDOUT;
            break;
        }
        rc = pyper__await_bell(seat, &loop->waker, deadline_ns,
                               pyper__run_is_interruptible(loop->run));
        if (rc < 0) break;
    }
    fall_asleep(loop);
    return rc;
}

static bool nobody_drives(const pyper_run *run) {
    return !run->loop->yours && atomic_load(&run->loop->owner) == 0;
}

static bool output_or_nobody(const void *arg) {
    return output_or_over(arg) || nobody_drives(arg);
}

static bool all_left_or_nobody(const void *arg) {
    return pyper__run_all_left(arg) || nobody_drives(arg);
}

int pyper__loop_await_end(pyper__loop *loop, int64_t deadline_ns) {
    pyper_run *run = loop->run;
    int rc = 0;
    pyper__run_enter(run);
    while (rc == 0 && !pyper__run_all_left(run)) {
        bool taken = take_driving(loop);
        rc = taken || pyper__loop_is_driver(loop)
                 ? drive_until(loop, pyper__run_all_left, &loop->end, deadline_ns)
                 : pyper__await(&run->callers, &run->done, all_left_or_nobody, run, deadline_ns,
                                PYPER__OTHER, pyper__run_is_interruptible(run));
        if (taken) leave_driving(loop);
    }
    pyper__run_leave(run);
    return rc;
}

#if PYPER__PROCESSES
static int receive_output(pyper__loop *loop, void **ret_item) {
    pyper_run *run = loop->run;
    pyper__queue *edge = &run->queues[run->count];
    int64_t ticket;
    int rc = pyper__try_receive(run, &run->stages[run->count - 1], edge, ret_item, &ticket);
    if (rc == PYPER__AGAIN) pyper__edge_settle(edge);
    return pyper__run_received(run, rc);
}
#endif

static int pop_output(pyper__loop *loop, void **ret_item) {
    pyper__queue *queue = &loop->run->queues[loop->run->count];
    int64_t ticket;
#if PYPER__PROCESSES
    if (queue->channel) return receive_output(loop, ret_item);
#endif
    bool as_owner = pyper__owned_lock_take(&queue->pop_lock);
    int rc = pyper__queue_try_pop(queue, ret_item, &ticket);
    pyper__owned_lock_give(&queue->pop_lock, as_owner);
    if (rc == PYPER__AGAIN) pyper__queue_settle(queue);
    return rc;
}

int pyper__loop_pop(pyper__loop *loop, void **ret_item, int64_t deadline_ns) {
    pyper_run *run = loop->run;
    for (;;) {
        bool taken = take_driving(loop);
        bool mine = taken || pyper__loop_is_driver(loop);
        /* Operations should not stand still because there are outputs to take. */
        if (mine && !loop_is_asleep(loop)) {
            drive(loop);
            fall_asleep(loop);
            if (is_in_fork(loop)) return PYPER_EFORKED;
        }
        int rc = pop_output(loop, ret_item), waited = 0;
        if (rc == PYPER__AGAIN)
            waited =
                mine ? drive_until(loop, output_or_over, &loop->outputs, deadline_ns)
                     : pyper__await(&run->callers, loop->outputs.event, output_or_nobody, run,
                                    deadline_ns, PYPER__STARVED, pyper__run_is_interruptible(run));
        if (taken) leave_driving(loop);
        if (rc == 1) pyper__seat_share_token(&run->callers);
        if (rc != PYPER__AGAIN) return rc;
        if (waited < 0) return waited;
    }
}

/* ------------------------------------------------------------------------------ being driven */

int pyper_fd(pyper_run *run) {
    return run && run->loop && run->loop->yours ? run->loop->waker.bell[0] : PYPER_EINVAL;
}

/* 0, or why the run cannot be driven by this caller. */
static int refuse_driver(const pyper_run *run) {
    if (!run) return PYPER_EINVAL;
    if ((run->count > 0 || run->child) && pyper__run_inherited(run)) return PYPER_EFORKED;
    if (run->child) return PYPER_EDEADLK;
    if (run->loop && !run->loop->yours) return PYPER_EINVAL;
    return run->loop && pyper__worker_is_inside(run) ? PYPER_EDEADLK : 0;
}

/* Is it worth while for the caller to ask again?  If not, the loop is counted in where he waits: a
 * notification may have come for what he had taken already. */
static bool caller_may_go_on(pyper__loop *loop) {
    do {
        if (output_or_over(loop->run) || pyper__run_all_left(loop->run)) return true;
    } while (pyper__watch_enter(&loop->outputs));
    return false;
}

int pyper_drive(pyper_run *run) {
    int rc = refuse_driver(run);
    if (rc < 0) return rc;
    if (!run->loop) return run->count == 0 ? 0 : PYPER_EINVAL;
    pyper__loop *loop = run->loop;
    pyper__run_enter(run);
    pyper__loop_become_driver(loop);
    pyper__bell_silence(loop->waker.bell);
    drive(loop);
    fall_asleep(loop);
    if (is_in_fork(loop)) return PYPER_EFORKED;
    bool go_on = loop->caller_waits && caller_may_go_on(loop);
    pyper__run_leave(run);
    if (go_on) {
        loop->caller_waits = false;
        if (run->host && run->host->resume_caller) run->host->resume_caller(run->host_data);
    }
    return 0;
}

/* PYPER_EAGAIN, unless what `what` watches is there after all. */
static int wait_as_caller(pyper__loop *loop, bool (*ready)(const void *), pyper__watch *what) {
    do {
        if (ready(loop->run)) return 0;
    } while (pyper__watch_enter(what));
    loop->caller_waits = true;
    return PYPER_EAGAIN;
}

/* 1; 0: all outputs have been taken, and all workers have left; or a code.  A run that has been
 * cancelled says so when they have left, too: until then it has to be driven. */
static int next_of(pyper__loop *loop, void **ret_item) {
    for (;;) {
        /* As in next_slow() of run.c: what comes after a failure has ended the stream. */
        bool complete = pyper__run_all_left(loop->run);
        int rc = pop_output(loop, ret_item);
        if (rc == 1) pyper__seat_share_token(&loop->run->callers);
        if (!complete && (rc == 0 || rc == PYPER_ECANCELED))
            rc = wait_as_caller(loop, pyper__run_all_left, &loop->end);
        else if (rc == PYPER__AGAIN)
            rc = wait_as_caller(loop, output_or_over, &loop->outputs);
        else
            return rc;
        if (rc < 0) return rc;
    }
}

int pyper_try_next(pyper_run *run, void **ret_item) {
    int rc = refuse_driver(run);
    if (rc < 0) return rc;
    if (!run->loop) return run->count == 0 ? pyper_failed(run) : PYPER_EINVAL;
    pyper__run_enter(run);
    pyper__loop_become_driver(run->loop);
    rc = next_of(run->loop, ret_item);
    pyper__run_leave(run);
    if (rc == 0) rc = pyper__run_join_once(run, PYPER_FOREVER);
    return rc != 0 ? rc : pyper__run_outcome(run);
}

/* ------------------------------------------------------------------------- an abandoned run */

/* Drive by whoever comes along, until there is nothing to do at the moment. */
static void drive_abandoned(pyper__loop *loop) {
    pyper_run *run = loop->run;
    atomic_fetch_add(&run->refs, 1); /* the last slot may leave meanwhile */
    pyper__run_enter(run);
    while (!loop_is_asleep(loop) && take_driving(loop)) {
        while (drive(loop)) continue;
        fall_asleep(loop);
        leave_driving(loop);
        if (is_in_fork(loop)) return;
    }
    pyper__run_leave(run);
    pyper__run_release(run);
}

void pyper__loop_abandon(pyper__loop *loop) {
    if (loop->yours) atomic_store(&loop->owner, 0);
    atomic_store(&loop->abandoned, true);
    pyper__run_enter(loop->run);
    pyper__waker_wake(&loop->waker);
    pyper__run_leave(loop->run);
    drive_abandoned(loop);
}

/* The driver may see to it, and the run may end, before this returns: hence the reference. */
void pyper__loop_post(pyper__loop *loop, pyper__post *post) {
    pyper_run *run = loop->run;
    atomic_fetch_add(&run->refs, 1);
    pyper__lock_take(&loop->posts_lock);
    pyper__posts_append(&loop->posts, post);
    atomic_store(&loop->any_posts, true);
    atomic_fetch_add(&post->slot->posted, 1);
    pyper__lock_give(&loop->posts_lock);
    pyper__waker_wake(&loop->waker);
    if (atomic_load(&loop->abandoned)) drive_abandoned(loop);
    pyper__run_release(run);
}

/* --------------------------------------------------------------------------------- life time */

/* The loop may be among those who wait there. */
static void wakes(pyper__loop *loop, pyper__event *event) {
    event->looped = true;
    if (!event->shared) event->waker = &loop->waker;
}

static int create_crew(pyper__loop *loop, pyper__crew *crew, pyper__stage *stage) {
    int64_t count = stage->task->workers;
    crew->loop = loop;
    crew->stage = stage;
    crew->slots = pyper__alloc((size_t)count * sizeof *crew->slots);
    if (!crew->slots) return PYPER_ENOMEM;
    for (int64_t k = 0; k < count; k++) {
        pyper_worker *worker = &stage->workers[k];
        pyper__slot *slot = &crew->slots[k];
        slot->worker = worker;
        slot->crew = crew;
        worker->slot = slot;
        pyper__seat_init(&worker->seat, loop->run->host, loop->run->host_data);
    }
    crew->items.event = pyper__edge_items(stage->input);
    crew->places.event = pyper__edge_places(stage->output);
    wakes(loop, crew->items.event);
    wakes(loop, crew->places.event);
    crew->items.event->no_sleepers = crew->places.event->no_sleepers = true;
    stage->crew = crew;
    return 0;
}

int pyper__loop_create(pyper_run *run, bool yours) {
    size_t count = 0;
    for (size_t i = 0; i < run->count; i++) count += run->stages[i].task->async;
    if (count == 0 && !yours) return 0;
    pyper__loop *loop = pyper__alloc(sizeof *loop);
    if (!loop) return PYPER_ENOMEM;
    _Atomic int *state = NULL;
#if PYPER__PROCESSES
    if (run->processes) state = pyper__processes_waker_state(run);
#endif
    int rc = pyper__waker_init(&loop->waker, state);
    if (rc < 0) {
        pyper__free(loop);
        return rc;
    }
#if PYPER__PROCESSES
    if (run->processes) pyper__processes_set_waker(run, &loop->waker);
#endif
    run->loop = loop;
    loop->run = run;
    loop->yours = yours;
    loop->last_touched = &loop->touched;
    loop->host_slots = run->host && run->host->start_slot;
    loop->outputs.event = pyper__edge_items(&run->queues[run->count]);
    loop->end.event = &run->done;
    wakes(loop, loop->outputs.event);
    wakes(loop, loop->end.event);
    if (yours) pyper__loop_become_driver(loop);
    /* Slots are to be started, and the caller to ask for outputs for the first time. */
    pyper__waker_wake(&loop->waker);
    if (count == 0) return 0;
    loop->crews = pyper__alloc(count * sizeof *loop->crews);
    if (!loop->crews) return PYPER_ENOMEM;
    for (size_t i = 0; rc == 0 && i < run->count; i++)
        if (run->stages[i].task->async)
            rc = create_crew(loop, &loop->crews[loop->count++], &run->stages[i]);
    return rc;
}

void pyper__loop_free(pyper__loop *loop) {
    if (!loop) return;
    /* (What is shared has none, and need not be there any more.) */
    pyper_run *run = loop->run;
    run->done.waker = NULL;
    run->queues[run->count].items.waker = NULL;
    for (size_t i = 0; i < loop->count; i++) {
        loop->crews[i].stage->input->items.waker = NULL;
        loop->crews[i].stage->output->places.waker = NULL;
        pyper__free(loop->crews[i].slots);
    }
    pyper__free(loop->crews);
    pyper__waker_fini(&loop->waker);
    pyper__free(loop);
}
