/* order - see order.h. */
#include "order.h"

#include <assert.h>
#include <string.h>

/* What the ticket t with t % size == index has kept, for turn <= t < turn + window.  Small, because
 * workers on different processors touch one after the other. */
struct record {
    void *first;
    union {
        struct {
            int32_t count;
            bool done;
        };
        _Atomic int64_t stands; /* with one output each: TURN or DONE of a ticket */
    };
};

/* With one output each: how a record stands.  The value has the ticket in it, so that one of an
 * earlier ticket, or none, says that neither is the case. */
#define TURN(ticket) (2 * (ticket) + 1) /* its worker has the turn */
#define DONE(ticket) (2 * (ticket) + 2) /* its output is kept here */

/* What only few tickets need, at the same index. */
struct extra {
    void **items; /* those that were kept after the first */
    int64_t capacity;
    _Atomic bool blocked; /* its worker waits for its turn or a place */
    /* Where threads wait for the turn of this ticket, or of t + n * size; or for a place for it. */
    pyper__event turn;
};

/* So that those who wait for different tickets wait in different places, however narrow the
 * window. */
#define SIZE_MIN 64

struct pyper__order {
    pyper__queue *queue;
    int64_t window;
    int64_t size; /* of the ring: the least power of two that has room for the window */
    int32_t most; /* that one ticket may keep */
    bool one_each;
    struct record *ring;
    _Atomic int64_t upto;    /* with one output each: earlier tickets may be pushed */
    _Atomic int64_t blocked; /* how many threads wait for a place */
    _Atomic int64_t waiting; /* how many threads wait for a turn */
    _Atomic int trouble; /* a code: the turn could not be moved on, and does not move any more */
    int64_t drain_at, drain_end; /* the tickets that pyper__order_take_any() has still to look at */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t own_turn; /* see turn_of() */
    _Atomic int64_t pushed; /* a count of its own, for kept + tail would miss what is on its way:
                             * pyper__edge_is_complete() decides by it, and statistics show it */
    struct extra extras[];
};

pyper__order *pyper__order_create(pyper__queue *queue, int64_t window) {
    size_t size = SIZE_MIN;
    while (size < (size_t)window) size *= 2;
    pyper__order *order = pyper__alloc(sizeof *order + size * sizeof(struct extra));
    if (!order) return NULL;
    order->ring = pyper__alloc(size * sizeof(struct record));
    if (!order->ring) {
        pyper__free(order);
        return NULL;
    }
    order->queue = queue;
    order->window = window;
    order->size = (int64_t)size;
    bool bounded = queue->limit != INT64_MAX || window > INT32_MAX;
    order->most = bounded ? INT32_MAX : (int32_t)window;
    bool light = pyper__event_let_notify_lightly(&queue->items, true);
    for (size_t i = 0; i < size; i++) {
        pyper__event_init(&order->extras[i].turn);
        if (light) pyper__event_let_notify_lightly(&order->extras[i].turn, false);
    }
    return order;
}

static int trouble(const pyper__order *order) {
    return atomic_load_explicit(&order->trouble, memory_order_relaxed);
}

void pyper__order_free(pyper__order *order) {
    if (!order) return;
    for (int64_t i = 0; i < order->size; i++) pyper__free(order->extras[i].items);
    pyper__free(order->ring);
    pyper__free(order);
}

/* Which ticket has the turn.  With one output each it is the one whose output will be the next
 * item. */
static int64_t turn_of(const pyper__order *order) {
    return atomic_load(order->one_each ? &order->queue->tail : &order->own_turn);
}

static struct record *record_of(pyper__order *order, int64_t ticket) {
    return &order->ring[ticket & (order->size - 1)];
}

static struct extra *extra_of(pyper__order *order, int64_t ticket) {
    return &order->extras[ticket & (order->size - 1)];
}

static int make_capacity_locked(struct extra *extra, int64_t count) {
    if (count <= extra->capacity) return 0;
    int64_t capacity = extra->capacity ? extra->capacity * 2 : 4;
    void **items = pyper__alloc_unset((size_t)capacity * sizeof *items);
    if (!items) return PYPER_ENOMEM;
    if (extra->items) memcpy(items, extra->items, (size_t)extra->capacity * sizeof *items);
    pyper__free(extra->items);
    extra->items = items;
    extra->capacity = capacity;
    return 0;
}

/* PYPER__AGAIN: wait for turn >= until. */
static int wait_for_turn(pyper__order *order, int64_t until, struct pyper__turn *ret_wait) {
    *ret_wait = (struct pyper__turn){&extra_of(order, until)->turn, order->queue, order, until, -1};
    return PYPER__AGAIN;
}

/* PYPER__AGAIN: wait for a place for this ticket, or for its turn. */
static int wait_for_place(pyper__order *order, int64_t ticket, struct pyper__turn *ret_wait) {
    pyper__event *event = &extra_of(order, ticket)->turn;
    *ret_wait = (struct pyper__turn){event, order->queue, order, ticket, ticket};
    return PYPER__AGAIN;
}

/* What was written is visible: how many there are.  For who has the producing end. */
static int64_t publish(pyper__queue *queue, int64_t tail) {
    int64_t before = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (tail > before) atomic_store_explicit(&queue->tail, tail, memory_order_release);
    return tail - before;
}

/* There is more to take, and the turn has moved on: wake whoever waits for that.  Not under the
 * lock. */
static void tell(pyper__order *order, int64_t published, int64_t before, int64_t after) {
    pyper__event *items = &order->queue->items;
    if (items->light)
        atomic_signal_fence(memory_order_seq_cst); /* `waiting` is read behind the turn */
    else
        atomic_thread_fence(memory_order_seq_cst);
    if (published > 0 && pyper__event_has_waiters_light(items))
        pyper__event_notify_slow(items, (uint32_t)published);
    if (after == before || atomic_load_explicit(&order->waiting, memory_order_relaxed) == 0) return;
    for (int64_t t = before + 1; t <= after; t++)
        pyper__event_notify_all(&extra_of(order, t)->turn);
}

/* ------------------------------------------------------- any number of outputs, under push_lock */

/* Only under push_lock as long as anybody pushes. */
static void count_kept_locked(pyper__order *order, int64_t more) {
    int64_t kept = atomic_load_explicit(&order->queue->kept, memory_order_relaxed);
    atomic_store_explicit(&order->queue->kept, kept + more, memory_order_release);
}

/* One more output for a ticket whose turn has not come.  Under push_lock. */
static int keep_locked(pyper__order *order, int64_t ticket, void *item) {
    struct record *record = record_of(order, ticket);
    if (record->count == 0) {
        record->first = item;
    } else {
        struct extra *extra = extra_of(order, ticket);
        int rc = make_capacity_locked(extra, record->count);
        if (rc < 0) return rc;
        extra->items[record->count - 1] = item;
    }
    record->count++;
    count_kept_locked(order, 1);
    return 0;
}

/* *tail: of the queue, moved on if the item has the turn; to be published. */
static int try_push_locked(pyper__order *order, void *item, int64_t ticket, int64_t *tail,
                           struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    if (trouble(order) < 0) return trouble(order);
    int64_t turn = turn_of(order);
    if (ticket >= turn + order->window)
        return wait_for_turn(order, ticket - order->window + 1, ret_wait);
    int64_t room = pyper__queue_room(queue);
    if (ticket == turn) {
        ret_wait->event = NULL; /* if there is no room, that is what to wait for */
        if (room <= 0) return PYPER__AGAIN;
        int rc = pyper__queue_write(queue, *tail, item);
        if (rc == 0) ++*tail;
        return rc;
    }
    if (record_of(order, ticket)->count >= order->most)
        return wait_for_turn(order, ticket, ret_wait);
    if (room <= 1) return wait_for_place(order, ticket, ret_wait);
    return keep_locked(order, ticket, item);
}

/* A record's further memory is kept for the next ticket up to this many outputs. */
#define CAPACITY_KEPT 64

static void forget_locked(pyper__order *order, int64_t ticket) {
    struct extra *extra = extra_of(order, ticket);
    if (extra->capacity <= CAPACITY_KEPT) return;
    pyper__free(extra->items);
    extra->items = NULL;
    extra->capacity = 0;
}

/* What the ticket has kept goes behind the last item: it is counted in the queue already, so there
 * is room. */
static int write_kept_locked(pyper__order *order, int64_t ticket, int64_t *tail) {
    struct record *record = record_of(order, ticket);
    if (record->count == 0) return 0;
    int rc = pyper__queue_write(order->queue, *tail, record->first);
    if (rc < 0) return rc;
    ++*tail;
    int32_t further = record->count - 1;
    record->count = 0;
    if (further == 0) return 0;
    void **items = extra_of(order, ticket)->items;
    for (int32_t i = 0; i < further; i++) {
        rc = pyper__queue_write(order->queue, *tail, items[i]);
        if (rc < 0) {
            record->first = items[i];
            record->count = further - i;
            memmove(items, items + i + 1, (size_t)(further - i - 1) * sizeof *items);
            return rc;
        }
        ++*tail;
    }
    forget_locked(order, ticket);
    return 0;
}

/* The turn moves on to the next ticket that is not done.  If it fails the order goes no further:
 * later outputs must not pass those that are left. */
static int move_turn_locked(pyper__order *order, int64_t *tail) {
    int64_t turn = turn_of(order), first = *tail;
    int rc = 0;
    while (rc == 0 && record_of(order, turn)->done) {
        record_of(order, turn)->done = false;
        rc = write_kept_locked(order, ++turn, tail);
    }
    if (rc < 0) atomic_store(&order->trouble, rc);
    /* kept before tail: seen from outside an item is never counted twice. */
    if (*tail > first) count_kept_locked(order, first - *tail);
    atomic_store_explicit(&order->own_turn, turn, memory_order_release);
    return rc;
}

/* The ticket, below turn + window, has no more outputs. */
static int done_locked(pyper__order *order, int64_t ticket, int64_t *tail) {
    record_of(order, ticket)->done = true;
    return ticket == turn_of(order) ? move_turn_locked(order, tail) : 0;
}

static int push_any(pyper__order *order, void *item, int64_t ticket, struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    pyper__lock_take(&queue->push_lock);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    int rc = try_push_locked(order, item, ticket, &tail, ret_wait);
    if (rc == 0) {
        int64_t pushed = atomic_load_explicit(&order->pushed, memory_order_relaxed);
        atomic_store_explicit(&order->pushed, pushed + 1, memory_order_relaxed);
    }
    int64_t published = publish(queue, tail);
    pyper__lock_give(&queue->push_lock);
    tell(order, published, 0, 0);
    return rc;
}

int pyper__order_try_done(pyper__order *order, int64_t ticket, struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    pyper__lock_take(&queue->push_lock);
    int64_t before = turn_of(order);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    bool beyond = ticket >= before + order->window;
    int rc = pyper__queue_state(queue) != PYPER__OPEN ? PYPER_ECANCELED : trouble(order);
    if (rc == 0 && !beyond) rc = done_locked(order, ticket, &tail);
    int64_t published = publish(queue, tail);
    int64_t after = turn_of(order);
    pyper__lock_give(&queue->push_lock);
    tell(order, published, before, after);
    if (rc < 0 || !beyond) return rc;
    return wait_for_turn(order, ticket - order->window + 1, ret_wait);
}

/* --------------------------------- one output each: whoever has the turn has the end */

/* May the ticket be pushed?  Acquire and release: who may use a record sees that the ticket before
 * has left it. */
static bool is_within_window(pyper__order *order, int64_t ticket, struct pyper__turn *ret_wait) {
    if (pyper__likely(ticket < atomic_load_explicit(&order->upto, memory_order_acquire)))
        return true;
    int64_t upto = turn_of(order) + order->window;
    if (ticket >= upto) {
        wait_for_turn(order, ticket - order->window + 1, ret_wait);
        return false;
    }
    atomic_store_explicit(&order->upto, upto, memory_order_release);
    return true;
}

/* The outputs of all tickets before `turn` are written.  So are those of all that are done behind
 * them.  Then the turn is handed to the next one; unless that has been done meanwhile. */
static int move_turn(pyper__order *order, int64_t turn) {
    pyper__queue *queue = order->queue;
    int64_t before = turn - 1;
    bool done = false; /* the ticket `turn`, although its record says that it has the turn */
    for (;;) {
        int rc = 0;
        struct record *record = record_of(order, turn);
        while (done || atomic_load_explicit(&record->stands, memory_order_acquire) == DONE(turn)) {
            rc = pyper__queue_write(queue, turn, record->first);
            if (rc < 0) break;
            done = false;
            record = record_of(order, ++turn);
        }
        publish(queue, turn);
        /* If it fails the turn stays here: later outputs must not pass this one. */
        if (rc < 0) {
            atomic_store_explicit(&record->stands, DONE(turn), memory_order_relaxed);
            atomic_store(&order->trouble, rc);
        } else {
            done = atomic_exchange_explicit(&record->stands, TURN(turn), memory_order_acq_rel) ==
                   DONE(turn);
        }
        tell(order, turn - before, before, turn);
        if (!done || rc < 0) return rc;
        before = turn;
    }
}

static int push_in_turn(pyper__order *order, void *item, int64_t ticket,
                        struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    if (trouble(order) < 0) return trouble(order);
    if (!is_within_window(order, ticket, ret_wait)) return PYPER__AGAIN;
    struct record *record = record_of(order, ticket);
    bool has_turn = atomic_load_explicit(&record->stands, memory_order_acquire) == TURN(ticket);
    if (!has_turn) {
        record->first = item;
        has_turn = atomic_exchange_explicit(&record->stands, DONE(ticket), memory_order_acq_rel) ==
                   TURN(ticket);
        if (!has_turn) return 0;
    }
    int rc = pyper__queue_write(queue, ticket, item);
    if (rc < 0) {
        atomic_store_explicit(&record->stands, TURN(ticket), memory_order_relaxed);
        return rc;
    }
    return move_turn(order, ticket + 1) < 0 ? PYPER__TAKEN : 0;
}

/* Whether a ticket has been pushed never changes from yes to no, so nor does their number go
 * back. */
static int64_t pushed_in_turn(const pyper__order *order) {
    const pyper__queue *queue = order->queue;
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_acquire), count = tail;
    for (int64_t t = tail; t < tail + order->size; t++) {
        const struct record *record = &order->ring[t & (order->size - 1)];
        if (atomic_load_explicit(&record->stands, memory_order_acquire) == DONE(t) ||
            atomic_load_explicit(&queue->tail, memory_order_acquire) > t)
            count++;
    }
    return count;
}

/* ----------------------------------------------------------------------------------- either */

void pyper__order_expect_one_each(pyper__order *order) {
    assert(order->queue->limit == INT64_MAX);
    order->one_each = true;
    order->queue->passes_turn = false;
    atomic_init(&order->ring[0].stands, TURN(0));
}

int pyper__order_try_push(pyper__order *order, void *item, int64_t ticket,
                          struct pyper__turn *ret_wait) {
    return order->one_each ? push_in_turn(order, item, ticket, ret_wait)
                           : push_any(order, item, ticket, ret_wait);
}

static bool has_place(const struct pyper__turn *wait) {
    return pyper__queue_room(wait->queue) > 1; /* the last one is for the turn */
}

bool pyper__order_turn_has_come(const void *arg) {
    const struct pyper__turn *wait = arg;
    if (atomic_load(&wait->queue->state) != PYPER__OPEN) return true;
    if (wait->place_for >= 0 && has_place(wait)) return true;
    return turn_of(wait->order) >= wait->until;
}

void pyper__order_await(const struct pyper__turn *wait, pyper__seat *seat) {
    pyper__order *order = wait->order;
    struct extra *extra = wait->place_for >= 0 ? extra_of(order, wait->place_for) : NULL;
    if (extra) atomic_store(&extra->blocked, true);
    if (extra) atomic_fetch_add(&order->blocked, 1);
    atomic_fetch_add(&order->waiting, 1);
    pyper__await(seat, wait->event, pyper__order_turn_has_come, wait, PYPER_FOREVER, PYPER__BLOCKED,
                 false);
    atomic_fetch_sub(&order->waiting, 1);
    if (extra) atomic_fetch_sub(&order->blocked, 1);
    if (extra) atomic_store(&extra->blocked, false);
}

int pyper__order_done(pyper__order *order, int64_t ticket, pyper__seat *seat, pyper__queue *input) {
    for (;;) {
        struct pyper__turn wait_for;
        int rc = pyper__order_try_done(order, ticket, &wait_for);
        if (rc != PYPER__AGAIN) return rc;
        if (input) pyper__queue_settle(input);
        pyper__order_await(&wait_for, seat);
    }
}

void pyper__order_notify_blocked(pyper__order *order, int64_t count) {
    int64_t left = atomic_load(&order->blocked);
    if (left > count) left = count;
    int64_t turn = turn_of(order);
    /* They have tickets soon after the turn, so they are found soon. */
    for (int64_t t = turn + 1; left > 0 && t < turn + order->window; t++) {
        struct extra *extra = extra_of(order, t);
        if (!atomic_load(&extra->blocked)) continue;
        pyper__event_notify_all(&extra->turn);
        left--;
    }
}

void pyper__order_notify_all(pyper__order *order) {
    for (int64_t i = 0; i < order->size; i++) pyper__event_notify_all(&order->extras[i].turn);
}

int64_t pyper__order_pushed(const pyper__order *order) {
    if (order->one_each) return pushed_in_turn(order);
    return atomic_load_explicit(&order->pushed, memory_order_relaxed);
}

bool pyper__order_take_any(pyper__order *order, void **ret_item) {
    if (order->drain_end == 0) {
        order->drain_at = turn_of(order);
        order->drain_end = order->drain_at + order->size;
    }
    for (; order->drain_at < order->drain_end; order->drain_at++) {
        struct record *record = record_of(order, order->drain_at);
        if (order->one_each) {
            if (atomic_load(&record->stands) != DONE(order->drain_at)) continue;
            atomic_store(&record->stands, 0);
            *ret_item = record->first;
            return true;
        }
        if (record->count == 0) continue;
        int32_t left = --record->count;
        *ret_item = left == 0 ? record->first : extra_of(order, order->drain_at)->items[left - 1];
        atomic_fetch_sub(&order->queue->kept, 1);
        return true;
    }
    return false;
}
