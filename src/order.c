/* order - see order.h. */
#include "order.h"

#include <string.h>

/* What the ticket t with t % size == index has kept, for turn <= t < turn + window. */
struct record {
    void **items; /* `one`, or memory of its own if the call has kept several */
    void *one;
    int64_t count, capacity;
    bool done;
    _Atomic bool blocked; /* its worker waits for room */
    pyper__event turn;    /* where its worker waits, and those of the tickets t + n * size */
};

struct pyper__order {
    pyper__queue *queue;
    int64_t window;
    int64_t size; /* of the ring: the least power of two that has room for the window */
    _Atomic int64_t turn;
    _Atomic int64_t pushed;  /* for statistics: kept + tail would miss what is on its way */
    _Atomic int64_t blocked; /* how many records are */
    _Atomic int64_t waiting; /* how many threads wait for a turn */
    _Atomic int trouble; /* a code: the turn could not be moved on, and does not move any more */
    bool one_each;
    struct record ring[];
};

/* A record's memory is kept for the next ticket up to this many outputs. */
#define CAPACITY_KEPT 64

pyper__order *pyper__order_create(pyper__queue *queue, int64_t window) {
    int64_t size = 1;
    while (size < window) size *= 2;
    pyper__order *order = pyper__alloc(sizeof *order + (size_t)size * sizeof(struct record));
    if (!order) return NULL;
    order->queue = queue;
    order->window = window;
    order->size = size;
    for (int64_t i = 0; i < size; i++) {
        struct record *record = &order->ring[i];
        record->items = &record->one;
        record->capacity = 1;
        pyper__event_init(&record->turn);
    }
    return order;
}

void pyper__order_expect_one_each(pyper__order *order) {
    order->one_each = true;
}

static int trouble(const pyper__order *order) {
    return atomic_load_explicit(&order->trouble, memory_order_relaxed);
}

static void reset(struct record *record) {
    record->count = 0;
    record->done = false;
    if (record->capacity > CAPACITY_KEPT) {
        pyper__free(record->items);
        record->items = &record->one;
        record->capacity = 1;
    }
}

void pyper__order_free(pyper__order *order) {
    if (!order) return;
    for (int64_t i = 0; i < order->size; i++)
        if (order->ring[i].items != &order->ring[i].one) pyper__free(order->ring[i].items);
    pyper__free(order);
}

static struct record *record_of(pyper__order *order, int64_t ticket) {
    return &order->ring[ticket & (order->size - 1)];
}

/* One more output for a ticket whose turn has not come.  Under push_lock. */
static int keep_locked(pyper__order *order, struct record *record, void *item) {
    if (record->count == record->capacity) {
        int64_t capacity = record->capacity * 2;
        void **items = pyper__alloc((size_t)capacity * sizeof *items);
        if (!items) return PYPER_ENOMEM;
        memcpy(items, record->items, (size_t)record->count * sizeof *items);
        if (record->items != &record->one) pyper__free(record->items);
        record->items = items;
        record->capacity = capacity;
    }
    record->items[record->count++] = item;
    atomic_fetch_add(&order->queue->kept, 1);
    return 0;
}

static void set_blocked_locked(pyper__order *order, struct record *record, bool blocked) {
    if (atomic_load(&record->blocked) == blocked) return;
    atomic_store(&record->blocked, blocked);
    atomic_fetch_add(&order->blocked, blocked ? 1 : -1);
}

/* PYPER__AGAIN: wait until turn >= until, at the event, or, with none, for room. */
static int wait_until(pyper__order *order, int64_t until, pyper__event *event,
                      struct pyper__turn *ret_wait) {
    *ret_wait = (struct pyper__turn){event, order->queue, order, until, false};
    return PYPER__AGAIN;
}

/* *tail: of the queue, moved on if the item has the turn; to be published. */
static int try_push_locked(pyper__order *order, void *item, int64_t ticket, int64_t *tail,
                           struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    if (trouble(order) < 0) return trouble(order);
    int64_t turn = atomic_load(&order->turn);
    struct record *record = record_of(order, ticket);
    if (ticket >= turn + order->window)
        return wait_until(order, ticket - order->window + 1, &record->turn, ret_wait);
    set_blocked_locked(order, record, false);
    int64_t room = pyper__queue_room(queue);
    if (ticket == turn) {
        if (room <= 0) return wait_until(order, ticket, NULL, ret_wait);
        int rc = pyper__queue_write(queue, *tail, item);
        if (rc == 0) ++*tail;
        return rc;
    }
    if (queue->limit == INT64_MAX && record->count >= order->window)
        return wait_until(order, ticket, &record->turn, ret_wait);
    if (room <= 1) {
        set_blocked_locked(order, record, true);
        wait_until(order, ticket, &record->turn, ret_wait);
        ret_wait->or_for_room = true;
        return PYPER__AGAIN;
    }
    return keep_locked(order, record, item);
}

/* What the ticket has kept goes behind the last item: it is counted in the queue already, so there is
 * room. */
static int write_kept_locked(pyper__order *order, struct record *record, int64_t *tail) {
    for (int64_t i = 0; i < record->count; i++) {
        int rc = pyper__queue_write(order->queue, *tail, record->items[i]);
        if (rc < 0) {
            record->count -= i;
            memmove(record->items, record->items + i, (size_t)record->count * sizeof(void *));
            return rc;
        }
        ++*tail;
    }
    record->count = 0;
    return 0;
}

/* The turn moves on to the next ticket that is not done.  If it fails the order goes no further: later
 * outputs must not pass those that are left. */
static int move_turn_locked(pyper__order *order, int64_t *tail) {
    int64_t turn = atomic_load(&order->turn), first = *tail;
    int rc = 0;
    while (rc == 0 && record_of(order, turn)->done) {
        reset(record_of(order, turn));
        rc = write_kept_locked(order, record_of(order, ++turn), tail);
    }
    if (rc < 0) atomic_store(&order->trouble, rc);
    /* kept before tail: seen from outside an item is never counted twice. */
    if (*tail > first) atomic_fetch_sub(&order->queue->kept, *tail - first);
    atomic_store(&order->turn, turn);
    return rc;
}

/* The ticket, below turn + window, has no more outputs. */
static int done_locked(pyper__order *order, int64_t ticket, int64_t *tail) {
    record_of(order, ticket)->done = true;
    return ticket == atomic_load(&order->turn) ? move_turn_locked(order, tail) : 0;
}

/* What was written is visible: how many there are. */
static int64_t publish_locked(pyper__queue *queue, int64_t tail) {
    int64_t before = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (tail > before) atomic_store(&queue->tail, tail);
    return tail - before;
}

/* Without the lock, after it: there is more to take, and the turn has moved on.  Wake whoever waits
 * for a record that is free now, and the one who has the turn. */
static void tell(pyper__order *order, int64_t published, int64_t before, int64_t after) {
    if (published > 0) pyper__event_notify(&order->queue->items, (uint32_t)published);
    if (after == before || atomic_load(&order->waiting) == 0) return;
    for (int64_t t = before; t <= after; t++) pyper__event_notify_all(&record_of(order, t)->turn);
}

int pyper__order_try_push(pyper__order *order, void *item, int64_t ticket,
                          struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    pyper__lock_take(&queue->push_lock);
    int64_t before = atomic_load(&order->turn);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    int rc = try_push_locked(order, item, ticket, &tail, ret_wait);
    if (rc == 0) {
        int64_t pushed = atomic_load_explicit(&order->pushed, memory_order_relaxed);
        atomic_store_explicit(&order->pushed, pushed + 1, memory_order_relaxed);
        if (order->one_each) {
            /* What goes wrong the worker learns when it is done. */
            (void)done_locked(order, ticket, &tail);
        }
    }
    int64_t published = publish_locked(queue, tail);
    int64_t after = atomic_load(&order->turn);
    pyper__lock_give(&queue->push_lock);
    tell(order, published, before, after);
    return rc;
}

int pyper__order_try_done(pyper__order *order, int64_t ticket, struct pyper__turn *ret_wait) {
    if (order->one_each) return trouble(order);
    pyper__queue *queue = order->queue;
    pyper__lock_take(&queue->push_lock);
    int64_t before = atomic_load(&order->turn);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    bool beyond = ticket >= before + order->window;
    int rc = pyper__queue_state(queue) != PYPER__OPEN ? PYPER_ECANCELED : trouble(order);
    if (rc == 0 && !beyond) rc = done_locked(order, ticket, &tail);
    int64_t published = publish_locked(queue, tail);
    int64_t after = atomic_load(&order->turn);
    pyper__lock_give(&queue->push_lock);
    tell(order, published, before, after);
    if (rc < 0 || !beyond) return rc;
    return wait_until(order, ticket - order->window + 1, &record_of(order, ticket)->turn, ret_wait);
}

void pyper__order_await(const struct pyper__turn *turn, pyper__seat *seat) {
    atomic_fetch_add(&turn->order->waiting, 1);
    pyper__await(seat, turn->event, pyper__order_turn_has_come, turn, PYPER_FOREVER, PYPER__BLOCKED,
                 false);
    atomic_fetch_sub(&turn->order->waiting, 1);
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

bool pyper__order_turn_has_come(const void *arg) {
    const struct pyper__turn *turn = arg;
    const pyper__queue *queue = turn->queue;
    return atomic_load(&queue->state) != PYPER__OPEN ||
           atomic_load(&turn->order->turn) >= turn->until ||
           (turn->or_for_room && pyper__queue_room(queue) > 1);
}

/* They have tickets soon after the turn, so they are found soon. */
void pyper__order_notify_blocked(pyper__order *order, int64_t count) {
    int64_t left = atomic_load(&order->blocked);
    if (left > count) left = count;
    int64_t turn = atomic_load(&order->turn);
    for (int64_t t = turn + 1; left > 0 && t < turn + order->window; t++) {
        struct record *record = record_of(order, t);
        if (!atomic_load(&record->blocked)) continue;
        pyper__event_notify_all(&record->turn);
        left--;
    }
}

void pyper__order_notify_all(pyper__order *order) {
    for (int64_t i = 0; i < order->size; i++) pyper__event_notify_all(&order->ring[i].turn);
}

int64_t pyper__order_pushed(const pyper__order *order) {
    return atomic_load_explicit(&order->pushed, memory_order_relaxed);
}

bool pyper__order_take_any(pyper__order *order, void **ret_item) {
    for (int64_t i = 0; i < order->size && atomic_load(&order->queue->kept) > 0; i++) {
        struct record *record = &order->ring[i];
        if (record->count == 0) continue;
        *ret_item = record->items[--record->count];
        atomic_fetch_sub(&order->queue->kept, 1);
        return true;
    }
    return false;
}
