/* loop - see loop.h, and pyper.h for what the public functions promise. */
#include "loop.h"

#include <assert.h>

#include "process.h"
#include "transfer.h"

/* So many calls of user code in one slice of driving, at most: some 100 us with quick functions. */
#define BUDGET 256
/* And so many posts: who posts faster than they can be carried out would keep the driver for ever. */
#define POSTS 1024

/* --------------------------------------------------------------------------------- the driver */

/* The calling thread.  Not the address of something of its own: when it has ended the next thread
 * may get the same memory, and would be taken for the driver. */
static inline uint64_t this_thread(void) {
    return pyper__likely(pyper__thread_number) ? pyper__thread_number : pyper__number_thread();
}

static bool is_driver(const pyper__loop *loop) {
    return atomic_load_explicit(&loop->owner, memory_order_relaxed) == this_thread();
}

/* Become the driver if nobody is; says whether it took that (give it back with leave_driving()). */
static bool take_driving(pyper__loop *loop) {
    uint64_t nobody = 0;
    return atomic_compare_exchange_strong(&loop->owner, &nobody, this_thread());
}

static bool loop_is_asleep(const pyper__loop *loop) {
    return atomic_load_explicit(loop->waker.state, memory_order_relaxed) == PYPER__ASLEEP;
}

static void unwatch(pyper__watch *watch) {
    if (watch->in) pyper__event_leave(watch->event, watch->seen);
    watch->in = false;
}

/* Those who wait for the driver to find something for them may be the next driver. */
static void leave_driving(pyper__loop *loop) {
    unwatch(&loop->outputs);
    unwatch(&loop->end);
    atomic_store(&loop->owner, 0);
    pyper__event_notify_all(loop->outputs.event);
    pyper__event_notify_all(loop->end.event);
}

/* Count in; false if that is so already and nothing has come since: then there is no need to look
 * again. */
static bool watch(pyper__watch *watch) {
    if (watch->in && !pyper__event_notified(watch->event, watch->seen)) return false;
    watch->seen = pyper__event_enter(watch->event);
    watch->in = true;
    return true;
}

/* ----------------------------------------------------------------------------------- waiting */

static int clock_of(const pyper__slot *slot, const pyper__waiters *list) {
    return list == &slot->crew->starved ? PYPER__STARVED : PYPER__BLOCKED;
}

/* Out of the list that it is in, if any. */
static void leave_list(pyper__slot *slot) {
    pyper__waiters *list = slot->list;
    if (!list) return;
    if (slot->previous)
        slot->previous->next = slot->next;
    else
        list->first = slot->next;
    if (slot->next)
        slot->next->previous = slot->previous;
    else
        list->last = slot->previous;
    slot->list = NULL;
    pyper__seat_end_wait(&slot->worker->seat, clock_of(slot, list), pyper_now());
}

/* Put the slot at the end of a list of its crew, and of no other one. */
static void enter_list(pyper__slot *slot, pyper__waiters *list) {
    assert(!slot->left);
    leave_list(slot);
    slot->list = list;
    slot->next = NULL;
    slot->previous = list->last;
    if (list->last)
        list->last->next = slot;
    else
        list->first = slot;
    list->last = slot;
    pyper__seat_begin_wait(&slot->worker->seat, clock_of(slot, list), pyper_now());
}

/* pyper__edge_state() as those who wait must read it: seq_cst, and with what is still to come in
 * mind. */
static int state_of(const pyper__queue *edge) {
#if PYPER__PROCESSES
    if (edge->channel) return pyper__channel_state(edge->channel);
#endif
    return pyper__queue_state_of_items(edge);
}

static bool over(const pyper__queue *edge) {
    return state_of(edge) != PYPER__OPEN;
}

/* How many inputs are there; INT64_MAX at the end, which everybody must see. */
static int64_t inputs(const pyper__queue *edge) {
    int state = state_of(edge);
    int64_t count = pyper__edge_there(edge);
    return state == PYPER__CANCELLED || (state == PYPER__ENDED && count == 0) ? INT64_MAX : count;
}

static int64_t places(const pyper__queue *edge) {
    return over(edge) ? INT64_MAX : pyper__edge_room(edge);
}

/* May a slot that is blocked try again? */
static bool may_go_on(const pyper__slot *slot, int64_t *room) {
#if PYPER__PROCESSES
    if (slot->worker->output->channel && slot->wait.turn >= 0)
        return pyper__channel_may_try_again(&slot->wait);
#endif
    if (slot->turn.event) return pyper__order_turn_has_come(&slot->turn);
    if (*room <= 0) return false;
    if (*room != INT64_MAX) --*room;
    return true;
}

/* -------------------------------------------------------------------------- emitting, finishing */

/* 0, PYPER_ECANCELED, PYPER_ENOMEM, PYPER_EFAILED (it could not be encoded), or PYPER__AGAIN, and
 * the slot says what to wait for. */
static int push(pyper__slot *slot, void *item) {
    pyper_worker *worker = slot->worker;
    pyper__queue *queue = worker->output;
#if PYPER__PROCESSES
    if (queue->channel)
        return pyper__try_send(worker->run, worker->stage, queue, item, worker->ticket,
                               &slot->wait);
#endif
    slot->turn.event = NULL;
    if (queue->order) return pyper__order_try_push(queue->order, item, worker->ticket, &slot->turn);
    int rc = pyper__queue_try_push(queue, item);
    if (rc == 0) pyper__event_notify(&queue->items, 1);
    return rc;
}

/* The ticket of the call under way is done, of an ordered task: as push(). */
static int pass_turn_on(pyper__slot *slot) {
    pyper__queue *output = slot->worker->output;
#if PYPER__PROCESSES
    if (output->channel)
        return pyper__channel_try_done(output->channel, slot->worker->ticket, &slot->wait);
#endif
    return pyper__order_try_done(output->order, slot->worker->ticket, &slot->turn);
}

/* The call under way is over: its ticket is done.  As push(). */
static int finish(pyper__slot *slot) {
    pyper__crew *crew = slot->crew;
    if (!slot->ticketed) return 0;
    if (slot->worker->output->passes_turn) {
        int rc = pass_turn_on(slot);
        if (rc == PYPER__AGAIN) return rc;
        if (rc == PYPER_ENOMEM)
            pyper__worker_fail(slot->worker, PYPER_ENOMEM, rc, pyper_strerror(rc));
        if (rc < 0) return rc;
        /* Only the driver moves the turn: who waits for it is seen to when it drives again. */
        if (crew->blocked.first) pyper__waker_wake(&crew->loop->waker);
    }
    slot->ticketed = false;
    return 0;
}

/* An item for the slot's hand: 0 or PYPER_ENOMEM. */
static int keep(pyper__slot *slot, void *item) {
    pyper__post *kept = pyper__alloc(sizeof *kept);
    if (!kept) return PYPER_ENOMEM;
    kept->item = item;
    if (slot->hand.first)
        slot->hand.last->next = kept;
    else
        slot->hand.first = kept;
    slot->hand.last = kept;
    return 0;
}

static void *take_first(pyper__posts *posts) {
    pyper__post *post = posts->first;
    void *item = post->item;
    posts->first = post->next;
    pyper__free(post);
    return item;
}

/* Empty the slot's hand, as far as there is room: as push(). */
static int empty_hand(pyper__slot *slot) {
    while (slot->hand.first) {
        void *item = slot->hand.first->item;
        int rc = push(slot, item);
        if (rc == PYPER__AGAIN) return rc;
        take_first(&slot->hand);
        if (rc < 0) return pyper__worker_refuse(slot->worker, item, rc);
    }
    return 0;
}

static void destroy_hand(pyper__slot *slot) {
    while (slot->hand.first)
        pyper__worker_refuse(slot->worker, take_first(&slot->hand), PYPER_ECANCELED);
}

/* Emit for the slot, as its driver: 0, PYPER_KEPT or a code, and then the item has been
 * destroyed. */
static int emit(pyper__slot *slot, void *item) {
    if (!slot->worker->stage->task->branch && slot->emitted > 0)
        return pyper__worker_refuse(slot->worker, item, PYPER_EINVAL);
    int rc = slot->hand.first ? PYPER__AGAIN : push(slot, item);
    bool kept = rc == PYPER__AGAIN;
    if (kept) rc = keep(slot, item);
    if (rc < 0) return pyper__worker_refuse(slot->worker, item, rc);
    slot->emitted++;
    return kept ? PYPER_KEPT : 0;
}

/* ---------------------------------------------------------------- what others do for a slot */

static void touch(pyper__slot *slot) {
    pyper__loop *loop = slot->crew->loop;
    if (slot->touched) return;
    slot->touched = true;
    slot->next_touched = NULL;
    *loop->last_touched = slot;
    loop->last_touched = &slot->next_touched;
}

static void carry_out(pyper__post *post) {
    pyper__slot *slot = post->slot;
    slot->carried++;
    touch(slot);
    if (post->done) { /* it is a part of the slot */
        slot->done = true;
        slot->rc = post->rc;
        return;
    }
    emit(slot, post->item);
    /* He was told that it is kept, and may wait until it has left; or for ever, if it was refused
     * and nobody told him. */
    slot->wants = true;
    if (slot->list == &slot->crew->starved) leave_list(slot);
    pyper__free(post);
}

/* Carry out the next post, if there is one.  Nobody is called for it who might emit or end in turn:
 * so this may be done inside of a call, too.  The slot goes on later. */
static bool take_post(pyper__loop *loop) {
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
    carry_out(post);
    return true;
}

/* Whatever other threads have done for this slot up to now comes before what happens next to it. */
static void catch_up(pyper__slot *slot) {
    int64_t upto = atomic_load(&slot->posted);
    while (slot->carried < upto) take_post(slot->crew->loop);
}

/* ------------------------------------------------------------------------ a slot's steps, in C */

/* What is under way is over for good. */
static void leave(pyper__slot *slot) {
    pyper_worker *worker = slot->worker;
    leave_list(slot);
    destroy_hand(slot);
    slot->left = true;
    /* It may be the first to have seen the end of the inputs; and what was promised to it may be
     * there for another. */
    pyper__waker_wake(&slot->crew->loop->waker);
    int64_t now = pyper_now();
    if (!atomic_load_explicit(&worker->seat.clock->started_ns, memory_order_relaxed))
        atomic_store_explicit(&worker->seat.clock->started_ns, now, memory_order_relaxed);
    atomic_store_explicit(&worker->seat.clock->left_ns, now, memory_order_relaxed);
    pyper__run_worker_left(worker->run, worker->stage);
    pyper__run_release(worker->run);
}

/* Does it wait in the right list?  It has asked in vain for an input, or for room: but then it may
 * have ended, or kept an item that has to leave first. */
static bool waits(const pyper__slot *slot) {
    if (!slot->list || slot->done) return false;
    return !slot->hand.first || slot->list == &slot->crew->blocked;
}

/* Wait in the list until the loop finds that it may go on. */
static void wait_for(pyper__slot *slot, pyper__waiters *list) {
    pyper__edge_settle(slot->worker->stage->input);
    enter_list(slot, list);
}

/* Around every call of a slot's function. */
static void enter_call(pyper__slot *slot) {
    slot->worker->outer = pyper__worker_current;
    pyper__worker_current = slot->worker;
    slot->calling = true;
}

static void leave_call(pyper__slot *slot) {
    slot->calling = false;
    pyper__worker_current = slot->worker->outer;
}

/* Call fn or resume.  What it answered is in slot->done and slot->rc, unless it is pending. */
static void call(pyper__slot *slot, pyper_fn fn, void *item) {
    pyper__loop *loop = slot->crew->loop;
    loop->budget--;
    slot->wants = false;
    enter_call(slot);
    int rc = fn(slot->worker, item, slot->worker->stage->task->bind);
    leave_call(slot);
    if (slot->done) return;
    if (rc == PYPER_PENDING) return;
    slot->done = true;
    slot->rc = rc;
}

static void begin(pyper__slot *slot, void *item) {
    pyper_worker *worker = slot->worker;
    if (!atomic_load_explicit(&worker->seat.clock->started_ns, memory_order_relaxed))
        atomic_store_explicit(&worker->seat.clock->started_ns, pyper_now(), memory_order_relaxed);
    slot->emitted = 0;
    slot->state = NULL;
    slot->done = false;
    slot->operating = true;
    slot->ticketed = !worker->stage->task->join;
    call(slot, worker->stage->task->fn, item);
}

/* The operation is done: was it as it should be?  False: its worker is done as well. */
static bool judge(pyper__slot *slot) {
    pyper_worker *worker = slot->worker;
    slot->operating = false;
    if (slot->rc < 0) {
        pyper__worker_judge(worker, slot->rc);
        return false;
    }
    if (!worker->stage->task->branch && slot->emitted != 1) {
        if (!pyper__worker_stopped(worker))
            pyper__worker_fail(worker, PYPER_EFAILED, PYPER_EINVAL,
                               "done without an output; emit exactly one, or set branch");
        return false;
    }
    return true;
}

/* What a resumed operation runs; NULL: it does not want to be resumed. */
static pyper_fn resumes_with(const pyper__slot *slot) {
    const pyper__task *task = slot->worker->stage->task;
    return task->resume ? task->resume : task->join ? task->fn : NULL;
}

/* The next input: as pyper__queue_try_pop(), or PYPER_EFAILED (it could not be decoded).  None once
 * the crew has been told to stop, though its input may not have been cancelled yet: who begins after
 * that would not be told any more. */
static int pop(pyper_worker *worker, void **ret_item) {
    pyper__queue *input = worker->stage->input;
    if (worker->slot->crew->told) return PYPER_ECANCELED;
#if PYPER__PROCESSES
    if (input->channel)
        return pyper__try_receive(worker->run, worker->stage, input, ret_item, &worker->ticket);
#endif
    return pyper__queue_try_pop(input, ret_item, &worker->ticket);
}

/* Take the next input and begin: PYPER__AGAIN, 0 (the worker is done), 1. */
static int begin_next(pyper__slot *slot) {
    pyper_worker *worker = slot->worker;
    if (worker->stage->task->join) {
        if (slot->started || pyper__worker_stopped(worker)) return 0;
        slot->started = true;
        begin(slot, NULL);
        return 1;
    }
    void *item;
    int rc = pop(worker, &item);
    if (rc == PYPER__AGAIN) return rc;
    if (rc <= 0) return 0;
    begin(slot, item);
    return 1;
}

/* Is it to be told that the run is over?  That is for operations which wait for something else than
 * the library: at once, or when what they waited for here has come to nothing. */
static bool is_to_be_told(const pyper__slot *slot) {
    return slot->crew->told && !slot->told && slot->worker->stage->task->cancel;
}

static void tell_operation(pyper__slot *slot) {
    const pyper__task *task = slot->worker->stage->task;
    slot->told = true;
    enter_call(slot);
    task->cancel(slot->worker, task->bind);
    leave_call(slot);
}

/* Go on with an operation whose hand is empty.  False: it waits, for whatever it is, or has left. */
static bool go_on(pyper__slot *slot) {
    pyper_fn resume = slot->wants ? resumes_with(slot) : NULL;
    bool telling = is_to_be_told(slot);
    /* (If nothing is to happen, there may be somebody who posts all the time.) */
    if (slot->done || resume || telling) catch_up(slot);
    if (slot->hand.first) return true;
    if (slot->done) {
        if (judge(slot)) return true;
        leave(slot);
        return false;
    }
    if (resume)
        call(slot, resume, NULL);
    else if (telling)
        tell_operation(slot);
    else
        return false;
    return !waits(slot);
}

/* Go on with a slot that has no operation, or has ended it.  As go_on(). */
static bool take_up(pyper__slot *slot) {
    pyper__crew *crew = slot->crew;
    int rc = finish(slot);
    if (rc == PYPER__AGAIN) {
        wait_for(slot, &crew->blocked);
        return false;
    }
    if (rc == 0 && crew->loop->budget <= 0 && !crew->stage->task->join) {
        enter_list(slot, &crew->starved); /* others, too, want a turn */
        return false;
    }
    rc = rc < 0 ? 0 : begin_next(slot);
    if (rc == PYPER__AGAIN) wait_for(slot, &crew->starved);
    if (rc == 0) leave(slot);
    return rc == 1 && !waits(slot);
}

/* Go on with the slot as far as it goes without waiting. */
static void step(pyper__slot *slot) {
    do {
        leave_list(slot);
        int rc = empty_hand(slot);
        if (rc == PYPER__AGAIN) {
            wait_for(slot, &slot->crew->blocked);
            return;
        }
        if (rc < 0) destroy_hand(slot);
    } while (slot->operating ? go_on(slot) : take_up(slot));
}

/* ----------------------------------------------------------------------------------- driving */

/* Let a slot go on that waited (or has never worked). */
static void resume(pyper__slot *slot) {
    pyper__loop *loop = slot->crew->loop;
    pyper_worker *worker = slot->worker;
    const pyper_host *host = loop->run->host;
    if (!loop->host_slots) {
        step(slot);
        return;
    }
    bool starved = !slot->list || slot->list == &slot->crew->starved;
    leave_list(slot);
    loop->budget--;
    /* A slot of a joined task need not come: its coroutine may have other things to do. */
    if (starved && !slot->crew->stage->task->join) {
        slot->resumed = true;
        slot->crew->due++;
    }
    if (slot->started) {
        host->resume_slot(loop->run->host_data, worker);
        return;
    }
    slot->started = true;
    atomic_store_explicit(&worker->seat.clock->started_ns, pyper_now(), memory_order_relaxed);
    int rc = host->start_slot(loop->run->host_data, worker);
    if (rc < 0) {
        pyper__run_fail(loop->run, rc, slot->crew->stage, rc, "a worker could not be started", NULL,
                        NULL);
        pyper_slot_left(worker);
    }
}

/* The next slot that has never worked: it begins, unless there is nothing left for it. */
static void resume_fresh(pyper__crew *crew) {
    pyper__slot *slot = &crew->slots[crew->fresh++];
    const pyper__stage *stage = crew->stage;
    /* A joined task is called also when there is nothing to read. */
    if (pyper__worker_stopped(slot->worker) ||
        (!stage->task->join && pyper__edge_is_complete(stage->input)))
        leave(slot);
    else
        resume(slot);
}

static void serve_starved(pyper__crew *crew) {
    pyper__queue *input = crew->stage->input;
    do {
        while (crew->stage->task->join && crew->fresh < crew->count) resume_fresh(crew);
        while (inputs(input) - crew->due > 0 &&
               (crew->starved.first || crew->fresh < crew->count)) {
            if (crew->loop->budget <= 0) return;
            if (crew->starved.first)
                resume(crew->starved.first);
            else
                resume_fresh(crew);
        }
        if (!crew->starved.first && crew->fresh == crew->count) {
            unwatch(&crew->items);
            return;
        }
    } while (watch(&crew->items));
}

static void serve_blocked(pyper__crew *crew) {
    pyper__queue *output = crew->stage->output;
    do {
        pyper__slot *last = crew->blocked.last;
        int64_t room = places(output);
        for (pyper__slot *slot = crew->blocked.first, *next; slot; slot = next) {
            next = slot == last ? NULL : slot->next;
            if (crew->loop->budget <= 0) return;
            if (room <= 0 && !output->passes_turn) break;
            if (over(output) || may_go_on(slot, &room)) resume(slot);
        }
        if (!crew->blocked.first) {
            unwatch(&crew->places);
            return;
        }
    } while (watch(&crew->places));
}

/* The stage has been told to stop: so are those who do not wait here.  The others find out when they
 * go on. */
static void tell(pyper__crew *crew) {
    pyper__loop *loop = crew->loop;
    crew->told = true;
    for (int64_t k = 0; k < crew->fresh; k++) {
        pyper__slot *slot = &crew->slots[k];
        if (slot->left || slot->list || slot->resumed) continue;
        if (loop->host_slots)
            loop->run->host->cancel_slot(loop->run->host_data, slot->worker);
        else
            step(slot);
    }
}

/* Let those go on for whom other threads have done something. */
static void serve_touched(pyper__loop *loop) {
    while (loop->carried < POSTS && take_post(loop)) continue;
    pyper__slot *slot = loop->touched;
    loop->touched = NULL;
    loop->last_touched = &loop->touched;
    while (slot) {
        pyper__slot *next = slot->next_touched;
        slot->touched = false;
        /* If it waits for room and has not ended it goes on when the list is served.  A host's goes
         * on by itself. */
        if (!slot->left && !loop->host_slots && !waits(slot)) step(slot);
        slot = next;
    }
}

/* One look at everything. */
static void look(pyper__loop *loop) {
    pyper_run *run = loop->run;
    serve_touched(loop);
    for (size_t i = loop->count; i-- > 0;) {
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
    return over(edge) || pyper__edge_there(edge) != 0;
}

/* Look until there is nothing more to do or the slice is over; says whether there is more. */
static bool drive(pyper__loop *loop) {
    loop->budget = BUDGET;
    loop->carried = 0;
    do {
        atomic_store(loop->waker.state, PYPER__DRIVEN);
        look(loop);
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
        if (ready(loop->run)) break;
        if (more || watch(what)) continue;
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
        rc = taken || is_driver(loop)
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
        bool mine = taken || is_driver(loop);
        /* Operations should not stand still because there are outputs to take. */
        if (mine && !loop_is_asleep(loop)) {
            drive(loop);
            fall_asleep(loop);
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

/* The calling thread is the driver now: see pyper_drive(). */
static void become_driver(pyper__loop *loop) {
    atomic_store(&loop->owner, this_thread());
}

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
    } while (watch(&loop->outputs));
    return false;
}

int pyper_drive(pyper_run *run) {
    int rc = refuse_driver(run);
    if (rc < 0) return rc;
    if (!run->loop) return run->count == 0 ? 0 : PYPER_EINVAL;
    pyper__loop *loop = run->loop;
    pyper__run_enter(run);
    become_driver(loop);
    pyper__bell_silence(loop->waker.bell);
    drive(loop);
    fall_asleep(loop);
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
    } while (watch(what));
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
    become_driver(run->loop);
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

/* ------------------------------------------------------------------- what operations may call */

/* Hand it to the driver.  He may see to it, and the run may end, before this returns: hence the
 * reference. */
static void post(pyper__loop *loop, pyper__post *post) {
    pyper_run *run = loop->run;
    atomic_fetch_add(&run->refs, 1);
    pyper__lock_take(&loop->posts_lock);
    post->next = NULL;
    if (loop->posts.first)
        loop->posts.last->next = post;
    else
        loop->posts.first = post;
    loop->posts.last = post;
    atomic_store(&loop->any_posts, true);
    atomic_fetch_add(&post->slot->posted, 1);
    pyper__lock_give(&loop->posts_lock);
    pyper__waker_wake(&loop->waker);
    if (atomic_load(&loop->abandoned)) drive_abandoned(loop);
    pyper__run_release(run);
}

int pyper__slot_emit(pyper_worker *worker, void *item) {
    pyper__slot *slot = worker->slot;
    pyper__loop *loop = slot->crew->loop;
    if (is_driver(loop)) {
        catch_up(slot);
        int rc = emit(slot, item);
        if (rc == PYPER_KEPT) {
            slot->wants = true;
            /* Outside of a step nobody else would put it where the room is waited for. */
            if (!slot->calling && !waits(slot)) {
                enter_list(slot, &slot->crew->blocked);
                pyper__waker_wake(&loop->waker);
            }
        }
        return rc;
    }
    if (pyper__worker_stopped(worker)) return pyper__worker_refuse(worker, item, PYPER_ECANCELED);
    pyper__post *posted = pyper__alloc(sizeof *posted);
    if (!posted) return pyper__worker_refuse(worker, item, PYPER_ENOMEM);
    posted->slot = slot;
    posted->item = item;
    post(loop, posted);
    return PYPER_KEPT;
}

void pyper_done(pyper_worker *worker, int rc) {
    pyper__slot *slot = worker->slot;
    if (!slot) return;
    pyper__loop *loop = slot->crew->loop;
    if (is_driver(loop) && slot->calling) {
        slot->done = true;
        slot->rc = rc;
        return;
    }
    slot->done_post.slot = slot;
    slot->done_post.done = true;
    slot->done_post.rc = rc;
    post(loop, &slot->done_post);
}

void **pyper_worker_state(pyper_worker *worker) {
    return worker->slot ? &worker->slot->state : NULL;
}

/* A host's slot has come to what it was resumed for. */
static void come(pyper__slot *slot, pyper__waiters *asks) {
    /* Who waits for the other thing does so until he has asked for this in vain. */
    if (slot->list == asks || slot->crew->loop->host_slots) leave_list(slot);
    if (!slot->resumed) return;
    slot->resumed = false;
    slot->crew->due--;
}

/* Wait in a list: PYPER_EAGAIN; or 0, it may try again at once. */
static int wait_as_slot(pyper__slot *slot, pyper__waiters *list, pyper__watch *what) {
    pyper__edge_settle(slot->worker->stage->input);
    bool blocked = list == &slot->crew->blocked;
    do {
        int64_t room = blocked ? places(slot->worker->output) : 0;
        if (blocked ? over(slot->worker->output) || may_go_on(slot, &room)
                    : inputs(slot->worker->stage->input) > 0)
            return 0;
    } while (watch(what));
    enter_list(slot, list);
    return PYPER_EAGAIN;
}

/* The way to a host's slot's next input leads over the end of the call before. */
static int end_call(pyper__slot *slot) {
    for (;;) {
        int rc = empty_hand(slot);
        if (rc == 0) rc = finish(slot);
        if (rc != PYPER__AGAIN) return rc;
        rc = wait_as_slot(slot, &slot->crew->blocked, &slot->crew->places);
        if (rc < 0) return rc;
    }
}

static int try_pull(pyper_worker *worker, void **ret_item) {
    pyper__slot *slot = worker->slot;
    pyper__crew *crew = slot->crew;
    bool join = worker->stage->task->join, host = crew->loop->host_slots;
    if (!join && !host) return PYPER_EINVAL;
    come(slot, &crew->starved);
    if (host) {
        int rc = end_call(slot);
        if (rc < 0) return rc;
    } else if (slot->hand.first) {
        slot->wants = true; /* the step that has called us sees to the rest */
        return PYPER_EAGAIN;
    }
    /* Who pulls as long as there is something would never leave the driver to anybody else. */
    if (!host && crew->loop->budget-- <= 0) {
        slot->wants = true;
        wait_for(slot, &crew->starved);
        pyper__waker_wake(&crew->loop->waker);
        return PYPER_EAGAIN;
    }
    for (;;) {
        int rc = pop(worker, ret_item);
        if (rc == 1 && !join) {
            slot->emitted = 0;
            slot->ticketed = true;
        }
        if (rc != PYPER__AGAIN) return rc;
        rc = wait_as_slot(slot, &crew->starved, &crew->items);
        if (rc < 0) {
            slot->wants = true;
            return rc;
        }
    }
}

/* Outside of a call a slot that waited, and waits no longer in the right list, is looked at again. */
static void see_to(pyper__slot *slot, bool waited) {
    pyper__loop *loop = slot->crew->loop;
    if (!waited || slot->calling || loop->host_slots || waits(slot)) return;
    touch(slot);
    pyper__waker_wake(&loop->waker);
}

int pyper_try_pull(pyper_worker *worker, void **ret_item) {
    pyper__slot *slot = worker->slot;
    if (!slot) return PYPER_EINVAL;
    bool waited = slot->list != NULL;
    int rc = try_pull(worker, ret_item);
    see_to(slot, waited);
    return rc;
}

static int try_emit(pyper_worker *worker, void *item) {
    pyper__slot *slot = worker->slot;
    come(slot, &slot->crew->blocked);
    catch_up(slot);
    /* It waited for room when the others were told, and is told now.  (The output may still be open,
     * see stop() in run.c.) */
    if (slot->crew->told) return pyper__worker_refuse(worker, item, PYPER_ECANCELED);
    for (;;) {
        if (!worker->stage->task->branch && slot->emitted > 0)
            return pyper__worker_refuse(worker, item, PYPER_EINVAL);
        int rc = empty_hand(slot);
        if (rc == 0) rc = push(slot, item);
        if (rc == 0) {
            slot->emitted++;
            return 0;
        }
        if (rc != PYPER__AGAIN) return pyper__worker_refuse(worker, item, rc);
        slot->wants = true;
        rc = wait_as_slot(slot, &slot->crew->blocked, &slot->crew->places);
        if (rc < 0) return rc;
    }
}

int pyper_try_emit(pyper_worker *worker, void *item) {
    pyper__slot *slot = worker->slot;
    if (!slot) {
        pyper__worker_refuse(worker, item, PYPER_ECANCELED);
        return PYPER_EINVAL;
    }
    bool waited = slot->list != NULL;
    int rc = try_emit(worker, item);
    see_to(slot, waited);
    return rc;
}

void pyper_slot_left(pyper_worker *worker) {
    pyper__slot *slot = worker->slot;
    if (!slot || slot->left) return;
    pyper__loop *loop = slot->crew->loop;
    if (!is_driver(loop)) become_driver(loop);
    come(slot, slot->list);
    leave(slot);
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
    if (yours) become_driver(loop);
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

void pyper__slot_enlist(pyper_worker *worker) {
    worker->slot->crew->count++;
}
