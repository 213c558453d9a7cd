/* slot - see slot.h, and pyper.h for what the public functions promise. */
#include "slot.h"

#include <assert.h>

#include "loop.h"
#include "transfer.h"

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

bool pyper__slot_may_go_on(const pyper__slot *slot, int64_t *room) {
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
    pyper__posts_append(&slot->hand, kept);
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

void pyper__slot_carry_out(pyper__post *post) {
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

/* Whatever other threads have done for this slot up to now comes before what happens next to it. */
static void catch_up(pyper__slot *slot) {
    int64_t upto = atomic_load(&slot->posted);
    while (slot->carried < upto) pyper__loop_take_post(slot->crew->loop);
}

/* ------------------------------------------------------------------------ a slot's steps, in C */

void pyper__slot_leave(pyper__slot *slot) {
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

/* The function has forked, and this is the child: it has no part in the run. */
static bool is_in_fork(const pyper__slot *slot) {
    return pyper__run_inherited(slot->worker->run);
}

/* Around every call of a slot's function.  In a child that it has forked the slice is over. */
static void enter_call(pyper__slot *slot) {
    slot->worker->outer = pyper__worker_current;
    pyper__worker_current = slot->worker;
    slot->calling = true;
}

static void leave_call(pyper__slot *slot) {
    slot->calling = false;
    pyper__worker_current = slot->worker->outer;
    if (is_in_fork(slot)) slot->crew->loop->budget = 0;
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
 * the crew has been told to stop, though its input may not have been cancelled yet: who begins
 * after that would not be told any more. */
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

/* Go on with an operation whose hand is empty.  False: it waits, for whatever it is, or has
 * left. */
static bool go_on(pyper__slot *slot) {
    pyper_fn resume = slot->wants ? resumes_with(slot) : NULL;
    bool telling = is_to_be_told(slot);
    /* (If nothing is to happen, there may be somebody who posts all the time.) */
    if (slot->done || resume || telling) catch_up(slot);
    if (slot->hand.first) return true;
    if (slot->done) {
        if (judge(slot)) return true;
        pyper__slot_leave(slot);
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
    if (rc == 0) pyper__slot_leave(slot);
    return rc == 1 && !waits(slot);
}

/* Go on with the slot as far as it goes without waiting. */
static void step(pyper__slot *slot) {
    bool goes_on = true;
    while (goes_on && !is_in_fork(slot)) {
        leave_list(slot);
        int rc = empty_hand(slot);
        if (rc == PYPER__AGAIN) {
            wait_for(slot, &slot->crew->blocked);
            return;
        }
        if (rc < 0) destroy_hand(slot);
        goes_on = slot->operating ? go_on(slot) : take_up(slot);
    }
}

/* ----------------------------------------------------------------------- what the loop asks for */

void pyper__slot_resume(pyper__slot *slot) {
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

void pyper__slot_see_to(pyper__slot *slot) {
    slot->touched = false;
    /* If it waits for room and has not ended it goes on when the list is served.  A host's goes on
     * by itself. */
    if (!slot->left && !slot->crew->loop->host_slots && !waits(slot)) step(slot);
}

void pyper__slot_tell(pyper__slot *slot) {
    pyper__loop *loop = slot->crew->loop;
    if (slot->left || slot->list || slot->resumed) return;
    if (loop->host_slots)
        loop->run->host->cancel_slot(loop->run->host_data, slot->worker);
    else
        step(slot);
}

void pyper__slot_enlist(pyper_worker *worker) {
    worker->slot->crew->count++;
}

/* ------------------------------------------------------------------- what operations may call */

int pyper__slot_emit(pyper_worker *worker, void *item) {
    pyper__slot *slot = worker->slot;
    pyper__loop *loop = slot->crew->loop;
    if (is_in_fork(slot)) return pyper__worker_refuse(worker, item, PYPER_ECANCELED);
    if (pyper__loop_is_driver(loop)) {
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
    pyper__loop_post(loop, posted);
    return PYPER_KEPT;
}

void pyper_done(pyper_worker *worker, int rc) {
    pyper__slot *slot = worker->slot;
    if (!slot || is_in_fork(slot)) return;
    pyper__loop *loop = slot->crew->loop;
    if (pyper__loop_is_driver(loop) && slot->calling) {
        slot->done = true;
        slot->rc = rc;
        return;
    }
    slot->done_post.slot = slot;
    slot->done_post.done = true;
    slot->done_post.rc = rc;
    pyper__loop_post(loop, &slot->done_post);
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
        int64_t room = blocked ? pyper__edge_room_or_end(slot->worker->output) : 0;
        if (blocked
                ? pyper__edge_is_over(slot->worker->output) || pyper__slot_may_go_on(slot, &room)
                : pyper__edge_items_or_end(slot->worker->stage->input) > 0)
            return 0;
    } while (pyper__watch_enter(what));
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

/* Outside of a call a slot that waited, and waits no longer in the right list, is looked at
 * again. */
static void look_again(pyper__slot *slot, bool waited) {
    pyper__loop *loop = slot->crew->loop;
    if (!waited || slot->calling || loop->host_slots || waits(slot)) return;
    touch(slot);
    pyper__waker_wake(&loop->waker);
}

int pyper_try_pull(pyper_worker *worker, void **ret_item) {
    pyper__slot *slot = worker->slot;
    if (!slot) return PYPER_EINVAL;
    if (is_in_fork(slot)) return PYPER_ECANCELED;
    bool waited = slot->list != NULL;
    int rc = try_pull(worker, ret_item);
    look_again(slot, waited);
    return rc;
}

static int try_emit(pyper_worker *worker, void *item) {
    pyper__slot *slot = worker->slot;
    come(slot, &slot->crew->blocked);
    catch_up(slot);
    /* It waited for room when the others were told, and is told now.  (The output may still be
     * open, see stop() in run.c.) */
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
    if (is_in_fork(slot)) return pyper__worker_refuse(worker, item, PYPER_ECANCELED);
    bool waited = slot->list != NULL;
    int rc = try_emit(worker, item);
    look_again(slot, waited);
    return rc;
}

void pyper_slot_left(pyper_worker *worker) {
    pyper__slot *slot = worker->slot;
    if (!slot || slot->left || is_in_fork(slot)) return;
    pyper__loop *loop = slot->crew->loop;
    if (!pyper__loop_is_driver(loop)) pyper__loop_become_driver(loop);
    come(slot, slot->list);
    pyper__slot_leave(slot);
}
