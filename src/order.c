/* order - see order.h. */
#include "order.h"

#include <string.h>

/* What the ticket t with t % size == index has kept, for turn <= t < turn + window.  Small, because
 * workers on different processors touch one after the other. */
struct record {
    void *first;
    int32_t count;
    bool done;
};

/* What only few tickets need, at the same index. */
struct extra {
    void **items; /* those that were kept after the first */
    int64_t capacity;
    _Atomic bool blocked; /* its worker waits for room */
    pyper__event turn;    /* where its worker waits, and those of the tickets t + n * size */
};

struct pyper__order {
    pyper__queue *queue;
    int64_t window;
    int64_t size; /* of the ring: the least power of two that has room for the window */
    int32_t most; /* that one ticket may keep */
    _Atomic int64_t turn;
    _Atomic int64_t pushed;  /* for statistics: kept + tail would miss what is on its way */
    _Atomic int64_t blocked; /* how many records are */
    _Atomic int64_t waiting; /* how many threads wait for a turn */
    _Atomic int trouble; /* a code: the turn could not be moved on, and does not move any more */
    bool one_each;
    struct record *ring;
    struct extra extras[];
};

pyper__order *pyper__order_create(pyper__queue *queue, int64_t window) {
    size_t size = 1;
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
    bool light = pyper__event_let_notify_lightly(&queue->items);
    for (size_t i = 0; i < size; i++) {
        pyper__event_init(&order->extras[i].turn);
        if (light) pyper__event_let_notify_lightly(&order->extras[i].turn);
    }
    return order;
}

void pyper__order_expect_one_each(pyper__order *order) {
    order->one_each = true;
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

static void set_blocked_locked(pyper__order *order, int64_t ticket, bool blocked) {
    if (!blocked && atomic_load(&order->blocked) == 0) return;
    struct extra *extra = extra_of(order, ticket);
    if (atomic_load(&extra->blocked) == blocked) return;
    atomic_store(&extra->blocked, blocked);
    atomic_fetch_add(&order->blocked, blocked ? 1 : -1);
}

/* PYPER__AGAIN: wait for turn >= until, which the worker of `ticket` is told. */
static int wait_for_turn(pyper__order *order, int64_t ticket, int64_t until,
                         struct pyper__turn *ret_wait) {
    *ret_wait =
        (struct pyper__turn){&extra_of(order, ticket)->turn, order->queue, order, until, false};
    return PYPER__AGAIN;
}

/* *tail: of the queue, moved on if the item has the turn; to be published. */
static int try_push_locked(pyper__order *order, void *item, int64_t ticket, int64_t *tail,
                           struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    if (trouble(order) < 0) return trouble(order);
    int64_t turn = atomic_load(&order->turn);
    if (ticket >= turn + order->window)
        return wait_for_turn(order, ticket, ticket - order->window + 1, ret_wait);
    set_blocked_locked(order, ticket, false);
    int64_t room = pyper__queue_room(queue);
    if (ticket == turn) {
        ret_wait->event = NULL; /* if there is no room, that is what to wait for */
        if (room <= 0) return PYPER__AGAIN;
        int rc = pyper__queue_write(queue, *tail, item);
        if (rc == 0) ++*tail;
        return rc;
    }
    if (record_of(order, ticket)->count >= order->most)
        return wait_for_turn(order, ticket, ticket, ret_wait);
    if (room <= 1) {
        set_blocked_locked(order, ticket, true);
        wait_for_turn(order, ticket, ticket, ret_wait);
        ret_wait->or_for_room = true;
        return PYPER__AGAIN;
    }
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

/* What the ticket has kept goes behind the last item: it is counted in the queue already, so there is
 * room. */
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

/* The turn moves on to the next ticket that is not done.  If it fails the order goes no further: later
 * outputs must not pass those that are left. */
static int move_turn_locked(pyper__order *order, int64_t *tail) {
    int64_t turn = atomic_load(&order->turn), first = *tail;
    int rc = 0;
    while (rc == 0 && record_of(order, turn)->done) {
        record_of(order, turn)->done = false;
        rc = write_kept_locked(order, ++turn, tail);
    }
    if (rc < 0) atomic_store(&order->trouble, rc);
    /* kept before tail: seen from outside an item is never counted twice. */
    if (*tail > first) count_kept_locked(order, first - *tail);
    atomic_store_explicit(&order->turn, turn, memory_order_release);
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
    if (tail > before) atomic_store_explicit(&queue->tail, tail, memory_order_release);
    return tail - before;
}

/* Without the lock, after it: there is more to take, and the turn has moved on.  Wake whoever waits
 * for a record that is free now, and the one who has the turn. */
static void tell(pyper__order *order, int64_t published, int64_t before, int64_t after) {
    pyper__event *items = &order->queue->items;
    if (!items->light) atomic_thread_fence(memory_order_seq_cst);
    if (published > 0 && pyper__event_has_waiters_light(items))
        pyper__event_notify_slow(items, (uint32_t)published);
    if (after == before || atomic_load_explicit(&order->waiting, memory_order_relaxed) == 0) return;
    for (int64_t t = before; t <= after; t++) pyper__event_notify_all(&extra_of(order, t)->turn);
}

int pyper__order_try_push(pyper__order *order, void *item, int64_t ticket,
                          struct pyper__turn *ret_wait) {
    pyper__queue *queue = order->queue;
    pyper__lock_take(&queue->push_lock);
    int64_t before = atomic_load_explicit(&order->turn, memory_order_relaxed);
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
    int64_t before = atomic_load_explicit(&order->turn, memory_order_relaxed);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    bool beyond = ticket >= before + order->window;
    int rc = pyper__queue_state(queue) != PYPER__OPEN ? PYPER_ECANCELED : trouble(order);
    if (rc == 0 && !beyond) rc = done_locked(order, ticket, &tail);
    int64_t published = publish_locked(queue, tail);
    int64_t after = atomic_load(&order->turn);
    pyper__lock_give(&queue->push_lock);
    tell(order, published, before, after);
    if (rc < 0 || !beyond) return rc;
    return wait_for_turn(order, ticket, ticket - order->window + 1, ret_wait);
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
    return atomic_load_explicit(&order->pushed, memory_order_relaxed);
}

bool pyper__order_take_any(pyper__order *order, void **ret_item) {
    for (int64_t i = 0; i < order->size && atomic_load(&order->queue->kept) > 0; i++) {
        struct record *record = &order->ring[i];
        if (record->count == 0) continue;
        int32_t left = --record->count;
        *ret_item = left == 0 ? record->first : order->extras[i].items[left - 1];
        atomic_fetch_sub(&order->queue->kept, 1);
        return true;
    }
    return false;
}
