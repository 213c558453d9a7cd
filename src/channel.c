/* channel - see channel.h. */
#include "channel.h"

#if PYPER__PROCESSES

/* With several lanes so many items are taken from one before the next has its turn. */
#define TURN 64

/* What a hand holds at most, and how long its owner should be busy with it: so long may an item lie
 * there behind others that are not older.  The exact number does not matter much. */
#define HAND_BYTES 4096
#define HAND_NS 100000

/* What a consumer among several processes has claimed: records, one behind the other.  `state` is
 * how many it has ever started, << 8, and how many of those in the hand are left. */
struct hand {
    _Alignas(PYPER__CACHE_LINE) _Atomic uint64_t state;
    uint64_t origin;  /* how many had been started when it was filled */
    uint64_t noticed; /* how many had been started when somebody looked last */
    int64_t ticket;   /* of the first record */
    uint16_t at[PYPER__HAND_ITEMS + 1];
    _Alignas(PYPER__CACHE_LINE) unsigned char bytes[HAND_BYTES];
};

/* An output that is kept for its turn: its record. */
struct kept {
    uint64_t next;
    struct pyper__word word;
    unsigned char bytes[];
};

/* What the ticket t with t % window == index has kept, for turn <= t < turn + window. */
struct ticket {
    uint64_t first, last;
    int64_t count;
    bool done;
    _Atomic bool blocked; /* its worker waits for room */
    pyper__event turn;    /* where its worker waits, and those of the tickets t + n * window */
};

struct order {
    int64_t window;
    _Atomic int64_t turn;
    _Atomic int64_t kept;
    _Atomic int64_t blocked; /* how many tickets are */
    _Atomic bool broken;     /* somebody has died with the lock, or what was kept could not join the
                              * channel for lack of memory (who has found that out says so) */
    struct ticket ring[];
};

/* Who the consumers are: one worker; several threads of one process; several processes. */
enum { ALONE, TOGETHER, APART };

struct pyper__channel_shared {
    int64_t limit, block; /* see queue.h */
    int64_t lanes, hands;
    int consumers;
    bool one_at_a_time;
    uint64_t hands_at, order; /* 0: none */
    _Atomic int state;
    _Alignas(PYPER__CACHE_LINE) pyper__event items;
    _Alignas(PYPER__CACHE_LINE) pyper__event places;
    int64_t pushed, line; /* if there are several lanes and a bound */
    _Atomic int64_t waiting;
    pyper__shared_lock push_lock;

    /* The consuming end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t given_back;
    _Atomic int64_t popped;
    _Atomic int64_t lost; /* of these, on the way into a hand */
    int64_t current;      /* lane */
    pyper__shared_lock pop_lock;

    struct pyper__lane lane[];
};

/* ------------------------------------------------------------------------------- life time */

/* An order has one lane, which its producers share. */
static int64_t lanes_of(const pyper__channel_shape *shape) {
    return shape->order_window > 0 ? 1 : shape->producers;
}

static int64_t hands_of(const pyper__channel_shape *shape) {
    return shape->apart && shape->consumers > 1 ? shape->consumers : 0;
}

static uint64_t size_of_order(const pyper__channel_shape *shape) {
    if (shape->order_window == 0) return 0;
    return pyper__shm_align(sizeof(struct order) +
                            (uint64_t)shape->order_window * sizeof(struct ticket));
}

static uint64_t size_of_lanes(const pyper__channel_shape *shape) {
    return sizeof(struct pyper__channel_shared) +
           (uint64_t)lanes_of(shape) * sizeof(struct pyper__lane);
}

uint64_t pyper__channel_size(const pyper__channel_shape *shape) {
    return size_of_lanes(shape) + size_of_order(shape) +
           (uint64_t)hands_of(shape) * sizeof(struct hand);
}

static struct order *order_of(const pyper__channel *channel) {
    uint64_t offset = channel->shared->order;
    return offset ? pyper__shm_at(channel->shm, offset) : NULL;
}

static struct hand *hand_of(const pyper__channel *channel, int64_t number) {
    return (struct hand *)pyper__shm_at(channel->shm, channel->shared->hands_at) + number;
}

static inline int64_t started(uint64_t state) {
    return (int64_t)(state >> 8);
}

static inline uint32_t left_of(uint64_t state) {
    return state & 255;
}

static struct pyper__lane *lane_of(const pyper__channel *channel, int64_t number) {
    struct pyper__channel_shared *shared = channel->shared;
    return &shared->lane[shared->lanes == 1 ? 0 : number];
}

static void init_order(pyper__channel *channel, uint64_t offset, int64_t window) {
    struct order *order = pyper__shm_at(channel->shm, offset);
    order->window = window;
    for (int64_t i = 0; i < window; i++) pyper__event_init_shared(&order->ring[i].turn);
    channel->shared->order = offset;
}

int pyper__channel_init(pyper__channel *channel, pyper__shm *shm, uint64_t offset,
                        const pyper__channel_shape *shape) {
    pyper__channel_attach(channel, shm, offset, NULL, 0);
    struct pyper__channel_shared *shared = channel->shared;
    bool bounded = shape->throttle > 0 && shape->throttle < PYPER__LIMIT_MAX;
    shared->limit = bounded ? shape->throttle : INT64_MAX;
    shared->block = bounded && shape->throttle >= 4 ? shape->throttle / 4 : 1;
    shared->lanes = lanes_of(shape);
    shared->hands = hands_of(shape);
    shared->consumers = shape->consumers == 1 ? ALONE : shape->apart ? APART : TOGETHER;
    shared->one_at_a_time = shape->one_at_a_time;
    offset += size_of_lanes(shape);
    if (shape->order_window > 0) init_order(channel, offset, shape->order_window);
    shared->hands_at = offset + size_of_order(shape);
    pyper__event_init_shared(&shared->items);
    pyper__event_init_shared(&shared->places);
    for (int64_t i = 0; i < shared->lanes; i++)
        if (pyper__lane_init(&shared->lane[i], shm) < 0) return PYPER_ENOMEM;
    if (pyper__shared_lock_init(&shared->push_lock) < 0 ||
        pyper__shared_lock_init(&shared->pop_lock) < 0)
        return PYPER_ENOMEM;
    return 0;
}

void pyper__channel_attach(pyper__channel *channel, pyper__shm *shm, uint64_t offset,
                           pyper__waker *waker, int64_t hand) {
    *channel = (pyper__channel){
        .shm = shm, .shared = pyper__shm_at(shm, offset), .waker = waker, .hand = hand};
    atomic_init(&channel->told, PYPER__OPEN);
    channel->claim = 1;
    pyper__owned_lock_init(&channel->pop_lock, false);
}

pyper__event *pyper__channel_items(const pyper__channel *channel) {
    return &channel->shared->items;
}

pyper__event *pyper__channel_places(const pyper__channel *channel) {
    return &channel->shared->places;
}

/* pyper__event_notify(), or pyper__event_notify_all(), for the events that a loop may wait for. */
static inline void notify(const pyper__channel *channel, pyper__event *event, uint32_t count) {
    if (pyper__likely(count != UINT32_MAX && !pyper__event_has_waiters(event))) return;
    pyper__event_notify_through(event, count, event->looped ? channel->waker : NULL);
}

/* ------------------------------------------------------------------------------------ state */

bool pyper__channel_is_ordered(const pyper__channel *channel) {
    return channel->shared->order != 0;
}

int pyper__channel_state(const pyper__channel *channel) {
    return atomic_load(&channel->shared->state);
}

void pyper__channel_set_state(pyper__channel *channel, int state) {
    struct pyper__channel_shared *shared = channel->shared;
    int before = atomic_load(&shared->state);
    while (before < state && !atomic_compare_exchange_weak(&shared->state, &before, state)) {
    }
    /* A process that had set it before may have died before it told anybody. */
    if (atomic_load(&channel->told) >= state) return;
    pyper__channel_rouse(channel);
    atomic_store(&channel->told, state);
}

static struct ticket *ticket_of(struct order *order, int64_t ticket) {
    return &order->ring[ticket % order->window];
}

static int64_t kept_in(const pyper__channel *channel) {
    struct order *order = order_of(channel);
    return order ? atomic_load(&order->kept) : 0;
}

/* How many records are in the lanes, those included that were taken. */
static int64_t published_in(const pyper__channel *channel) {
    const struct pyper__channel_shared *shared = channel->shared;
    int64_t sum = 0;
    for (int64_t i = 0; i < shared->lanes; i++) sum += atomic_load(&shared->lane[i].tail);
    return sum;
}

int64_t pyper__channel_pushed(const pyper__channel *channel) {
    /* Published before kept, as in pyper__queue_room(). */
    int64_t published = published_in(channel);
    return published + kept_in(channel);
}

int64_t pyper__channel_popped(const pyper__channel *channel) {
    const struct pyper__channel_shared *shared = channel->shared;
    if (shared->consumers != APART) return atomic_load(&shared->popped);
    int64_t sum = atomic_load(&shared->lost);
    for (int64_t i = 0; i < shared->hands; i++)
        sum += started(atomic_load(&hand_of(channel, i)->state));
    return sum;
}

int64_t pyper__channel_there(const pyper__channel *channel) {
    /* Popped before published, so that it is never negative. */
    int64_t popped = pyper__channel_popped(channel);
    return published_in(channel) - popped;
}

/* The places that are in use.  Of a bounded channel. */
static int64_t places_taken(const pyper__channel *channel) {
    return pyper__channel_pushed(channel) - atomic_load(&channel->shared->given_back);
}

int64_t pyper__channel_room(const pyper__channel *channel) {
    const struct pyper__channel_shared *shared = channel->shared;
    return shared->limit == INT64_MAX ? INT64_MAX : shared->limit - places_taken(channel);
}

void pyper__channel_rouse(const pyper__channel *channel) {
    notify(channel, &channel->shared->items, UINT32_MAX);
    notify(channel, &channel->shared->places, UINT32_MAX);
    struct order *order = order_of(channel);
    for (int64_t i = 0; order && i < order->window; i++)
        pyper__event_notify_all(&order->ring[i].turn);
}

/* ----------------------------------------------------------------------------------- places */

/* See queue.c.  Of a bounded channel. */
static void wake_producers(pyper__channel *channel, bool all) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t free_places = shared->limit - places_taken(channel);
    /* They are given back in blocks. */
    int64_t half = shared->limit / 2 / shared->block * shared->block;
    if (free_places <= 0 || (!all && free_places < half)) return;
    /* Of those in a line the first must be among the woken. */
    bool all_of_them = shared->lanes > 1 || free_places > INT32_MAX;
    notify(channel, &shared->places, all_of_them ? UINT32_MAX : (uint32_t)free_places);
    /* Those out of turn may have all places but the last. */
    struct order *order = order_of(channel);
    int64_t left = order ? atomic_load(&order->blocked) : 0;
    if (left > free_places - 1) left = free_places - 1;
    int64_t turn = left > 0 ? atomic_load(&order->turn) : 0;
    for (int64_t t = turn + 1; left > 0 && t < turn + order->window; t++) {
        if (!atomic_load(&ticket_of(order, t)->blocked)) continue;
        pyper__event_notify_all(&ticket_of(order, t)->turn);
        left--;
    }
}

/* Give the places back of what has been started, if they are `least` or more.  Of a bounded
 * channel. */
static bool give_back(pyper__channel *channel, int64_t least) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t started = pyper__channel_popped(channel);
    int64_t before = atomic_load(&shared->given_back);
    if (started - before < least) return false;
    if (shared->consumers != APART)
        atomic_store(&shared->given_back, started);
    else
        while (before < started &&
               !atomic_compare_exchange_weak(&shared->given_back, &before, started)) {
        }
    return true;
}

void pyper__channel_settle(pyper__channel *channel) {
    struct pyper__channel_shared *shared = channel->shared;
    if (shared->limit == INT64_MAX) return;
    bool together = shared->consumers == TOGETHER;
    bool as_owner = together && pyper__owned_lock_take(&channel->pop_lock);
    give_back(channel, 1);
    if (together) pyper__owned_lock_give(&channel->pop_lock, as_owner);
    wake_producers(channel, true);
}

static bool has_room(struct pyper__channel_shared *shared, struct pyper__lane *lane,
                     int64_t waiting_end) {
    if (pyper__likely(waiting_end < lane->room_until)) return true;
    int64_t given_back = atomic_load(&shared->given_back);
    lane->room_until = shared->limit == INT64_MAX ? INT64_MAX : given_back + shared->limit;
    return waiting_end < lane->room_until;
}

/* ---------------------------------------------------------------------------------- pushing */

int pyper__record_reserve(pyper__channel *channel, int64_t lane, pyper__record *record,
                          uint64_t size) {
    record->size = size;
    record->extent = 0;
    if (pyper__unlikely(size > PYPER__RECORD_BYTES)) {
        record->extent = pyper__shm_alloc(channel->shm, size);
        record->data = pyper__shm_at(channel->shm, record->extent);
        return record->extent ? 0 : PYPER_ENOMEM;
    }
    /* A producer has its lane to itself, unless there is an order. */
    record->data = record->bytes;
    if (channel->shared->order) return 0;
    unsigned char *place = pyper__lane_place(lane_of(channel, lane), channel->shm, (uint32_t)size);
    if (!place) return PYPER_ENOMEM;
    record->data = place + sizeof(struct pyper__word);
    return 0;
}

/* One more output for a ticket whose turn has not come.  With push_lock. */
static int keep_locked(pyper__channel *channel, struct order *order, struct ticket *ticket,
                       const pyper__record *record) {
    struct pyper__extent extent = {.size = record->size, .offset = record->extent};
    const void *bytes = record->extent ? (void *)&extent : record->data;
    uint32_t size = record->extent ? (uint32_t)sizeof extent : (uint32_t)record->size;
    uint64_t offset = pyper__shm_alloc(channel->shm, sizeof(struct kept) + size);
    if (!offset) return PYPER_ENOMEM;
    struct kept *kept = pyper__shm_at(channel->shm, offset);
    kept->next = 0;
    kept->word =
        (struct pyper__word){.kind = record->extent ? PYPER__EXTENT : PYPER__INSIDE, .size = size};
    memcpy(kept->bytes, bytes, size);
    if (ticket->count == 0)
        ticket->first = offset;
    else
        ((struct kept *)pyper__shm_at(channel->shm, ticket->last))->next = offset;
    ticket->last = offset;
    ticket->count++;
    atomic_fetch_add(&order->kept, 1);
    return 0;
}

static void set_blocked_locked(struct order *order, struct ticket *ticket, bool blocked) {
    if (atomic_load(&ticket->blocked) == blocked) return;
    atomic_store(&ticket->blocked, blocked);
    atomic_fetch_add(&order->blocked, blocked ? 1 : -1);
}

static int try_push_ordered_locked(pyper__channel *channel, struct order *order,
                                   const pyper__record *record, int64_t number,
                                   pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t turn = atomic_load(&order->turn);
    int64_t waiting = places_taken(channel);
    struct ticket *ticket = ticket_of(order, number);
    bool within = number < turn + order->window;
    if (within) set_blocked_locked(order, ticket, false);
    if (number == turn) {
        ret_wait->room = true;
        if (waiting >= shared->limit) return PYPER__AGAIN;
        return record ? pyper__lane_append_record(shared->lane, channel->shm, record) : 0;
    }
    ret_wait->event = &ticket->turn;
    ret_wait->turn = number;
    if (!within) {
        ret_wait->turn = number - order->window + 1;
        return PYPER__AGAIN;
    }
    if (shared->limit == INT64_MAX && ticket->count >= order->window) return PYPER__AGAIN;
    if (shared->limit != INT64_MAX && waiting >= shared->limit - 1) {
        ret_wait->or_room = true;
        set_blocked_locked(order, ticket, true);
        return PYPER__AGAIN;
    }
    return record ? keep_locked(channel, order, ticket, record) : 0;
}

/* Take push_lock.  False: the order is broken; wait until it is all over. */
static bool begin_push(pyper__channel *channel, struct order *order) {
    if (pyper__shared_lock_take(&channel->shared->push_lock)) atomic_store(&order->broken, true);
    return !atomic_load_explicit(&order->broken, memory_order_relaxed);
}

static void end_push(pyper__channel *channel) {
    pyper__shm_hand_over(channel->shm); /* what was kept for a later turn */
    pyper__shared_lock_give(&channel->shared->push_lock);
}

static PYPER__NOINLINE int try_push_ordered(pyper__channel *channel, struct order *order,
                                            const pyper__record *record, int64_t ticket,
                                            pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    int rc = PYPER__AGAIN;
    bool whole = begin_push(channel, order);
    int64_t before = atomic_load_explicit(&shared->lane->tail, memory_order_relaxed);
    *ret_wait = (pyper__channel_wait){.channel = channel, .event = &shared->places, .turn = -1};
    if (atomic_load(&shared->state) != PYPER__OPEN)
        rc = PYPER_ECANCELED;
    else if (whole)
        rc = try_push_ordered_locked(channel, order, record, ticket, ret_wait);
    bool published = atomic_load_explicit(&shared->lane->tail, memory_order_relaxed) != before;
    end_push(channel);
    if (published) notify(channel, &shared->items, 1);
    return rc;
}

/* How many other lanes have been waiting for a place for longer.  Of several that share a bound. */
static int64_t before_me(const struct pyper__channel_shared *shared, const struct pyper__lane *me) {
    int64_t mine = atomic_load(&me->in_line), count = 0;
    if (atomic_load(&shared->waiting) == 0) return 0;
    for (int64_t i = 0; i < shared->lanes; i++) {
        int64_t other = atomic_load(&shared->lane[i].in_line);
        count += other != 0 && (mine == 0 || other < mine);
    }
    return count;
}

static void stand_in_line(struct pyper__channel_shared *shared, struct pyper__lane *lane,
                          bool stands) {
    if ((atomic_load(&lane->in_line) != 0) == stands) return;
    atomic_store(&lane->in_line, stands ? ++shared->line : 0);
    atomic_fetch_add(&shared->waiting, stands ? 1 : -1);
}

/* Several lanes share a bound: whoever waits has a place kept for him, or one that others were
 * quick to take would leave him waiting for ever. */
static PYPER__NOINLINE int try_push_bounded(pyper__channel *channel, struct pyper__lane *lane,
                                            const pyper__record *record) {
    struct pyper__channel_shared *shared = channel->shared;
    if (pyper__shared_lock_take(&shared->push_lock)) shared->pushed = published_in(channel);
    int64_t taken = shared->pushed - atomic_load(&shared->given_back);
    int rc = PYPER__AGAIN;
    bool room = taken + before_me(shared, lane) < shared->limit;
    /* Out of the line before the record can be popped: when its place is given back, whoever is
     * told so must not find me in front of him any more, for nobody tells him when I leave. */
    stand_in_line(shared, lane, !room);
    if (room) {
        rc = record ? pyper__lane_append_record(lane, channel->shm, record) : 0;
        shared->pushed += rc == 0 && record;
    }
    pyper__shared_lock_give(&shared->push_lock);
    return rc;
}

void pyper__channel_bury(pyper__channel *channel, int64_t number) {
    struct pyper__channel_shared *shared = channel->shared;
    if (shared->order) return;
    if (pyper__shared_lock_take(&shared->push_lock)) shared->pushed = published_in(channel);
    stand_in_line(shared, lane_of(channel, number), false);
    pyper__shared_lock_give(&shared->push_lock);
    notify(channel, &shared->places, UINT32_MAX);
}

int pyper__channel_try_push(pyper__channel *channel, int64_t number, const pyper__record *record,
                            int64_t ticket, pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    struct pyper__lane *lane = lane_of(channel, number);
    struct order *order = order_of(channel);
    if (pyper__unlikely(order != NULL))
        return try_push_ordered(channel, order, record, ticket, ret_wait);
    if (pyper__unlikely(atomic_load_explicit(&shared->state, memory_order_acquire) != PYPER__OPEN))
        return PYPER_ECANCELED;
    int64_t tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);
    int rc;
    if (shared->lanes > 1 && shared->limit != INT64_MAX)
        rc = try_push_bounded(channel, lane, record);
    else if (pyper__likely(has_room(shared, lane, tail)))
        rc = record ? pyper__lane_append_record(lane, channel->shm, record) : 0;
    else
        rc = PYPER__AGAIN;
    if (pyper__unlikely(rc == PYPER__AGAIN))
        *ret_wait = (pyper__channel_wait){
            .channel = channel, .event = &shared->places, .turn = -1, .room = true, .lane = number};
    else if (pyper__likely(rc == 0 && record))
        notify(channel, &shared->items, 1);
    return rc;
}

/* What the ticket has kept joins the queue: it is counted there already, so there is room. */
static int publish_locked(pyper__channel *channel, struct order *order, struct ticket *ticket) {
    while (ticket->count > 0) {
        uint64_t offset = ticket->first;
        struct kept *kept = pyper__shm_at(channel->shm, offset);
        struct pyper__word word = kept->word;
        /* kept before tail: seen from outside an item is never counted twice. */
        atomic_fetch_sub(&order->kept, 1);
        int rc = pyper__lane_append(channel->shared->lane, channel->shm, word.kind, kept->bytes,
                                    word.size);
        if (rc < 0) {
            atomic_fetch_add(&order->kept, 1);
            return rc;
        }
        ticket->first = kept->next;
        ticket->count--;
        pyper__shm_free(channel->shm, offset, sizeof *kept + word.size);
    }
    return 0;
}

/* If it fails the order goes no further: later outputs must not pass those that are left. */
static int move_turn_locked(pyper__channel *channel, struct order *order) {
    int64_t turn = atomic_load(&order->turn);
    int rc = 0;
    while (rc == 0 && ticket_of(order, turn)->done) {
        ticket_of(order, turn)->done = false;
        atomic_store(&order->turn, ++turn);
        rc = publish_locked(channel, order, ticket_of(order, turn));
    }
    if (rc < 0) atomic_store(&order->broken, true);
    return rc;
}

int pyper__channel_try_done(pyper__channel *channel, int64_t number,
                            pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    struct order *order = order_of(channel);
    int rc = PYPER__AGAIN;
    bool whole = begin_push(channel, order);
    int64_t tail = atomic_load_explicit(&shared->lane->tail, memory_order_relaxed);
    int64_t before = atomic_load(&order->turn);
    *ret_wait = (pyper__channel_wait){.channel = channel, .event = &shared->places, .turn = -1};
    if (atomic_load(&shared->state) != PYPER__OPEN) {
        rc = PYPER_ECANCELED;
    } else if (whole && number >= before + order->window) {
        ret_wait->event = &ticket_of(order, number)->turn;
        ret_wait->turn = number - order->window + 1;
    } else if (whole) {
        ticket_of(order, number)->done = true;
        rc = number == before ? move_turn_locked(channel, order) : 0;
    }
    int64_t after = atomic_load(&order->turn);
    int64_t published = atomic_load_explicit(&shared->lane->tail, memory_order_relaxed) - tail;
    end_push(channel);
    if (published > 0) notify(channel, &shared->items, (uint32_t)published);
    /* Wake whoever waits for a place in the ring that is free now, and the one who has the turn. */
    for (int64_t t = before; after > before && t <= after; t++)
        pyper__event_notify_all(&ticket_of(order, t)->turn);
    return rc;
}

bool pyper__channel_may_try_again(const void *arg) {
    const pyper__channel_wait *wait = arg;
    const struct pyper__channel_shared *shared = wait->channel->shared;
    struct order *order = order_of(wait->channel);
    if (atomic_load(&shared->state) != PYPER__OPEN) return true;
    if (order && atomic_load(&order->broken)) return false;
    if (wait->turn >= 0 && atomic_load(&order->turn) >= wait->turn) return true;
    if (!wait->room && !wait->or_room) return false;
    int64_t before = shared->lanes > 1 ? before_me(shared, lane_of(wait->channel, wait->lane)) : 0;
    return places_taken(wait->channel) + before < shared->limit - (wait->or_room ? 1 : 0);
}

void pyper__channel_await(const pyper__channel_wait *wait, pyper__seat *seat) {
    pyper__await(seat, wait->event, pyper__channel_may_try_again, wait, PYPER_FOREVER,
                 PYPER__BLOCKED, false);
}

/* ---------------------------------------------------------------------------------- popping */

/* Go to the next lane with a record, in turn; false, and nothing is written: none has one. */
static bool go_to_next_lane(struct pyper__channel_shared *shared) {
    for (int64_t i = 1; i < shared->lanes; i++) {
        int64_t next = (shared->current + i) % shared->lanes;
        if (!pyper__lane_has_item(&shared->lane[next])) continue;
        shared->current = next;
        return true;
    }
    return false;
}

/* Find the lane to take from, in turn, and its first record: 1, 0 (none has one) or PYPER__BROKEN.
 * The consuming end only. */
static inline int find(pyper__channel *channel, struct pyper__lane **ret_lane,
                       unsigned char **ret_first) {
    struct pyper__channel_shared *shared = channel->shared;
    if (!pyper__lane_has_item(&shared->lane[shared->current]) && !go_to_next_lane(shared)) return 0;
    *ret_lane = &shared->lane[shared->current];
    *ret_first = pyper__lane_first(*ret_lane, channel->shm);
    return pyper__likely(*ret_first != NULL) ? 1 : PYPER__BROKEN;
}

/* The first record of the lane has been taken. */
static inline void step_over(pyper__channel *channel, struct pyper__lane *lane) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t head = pyper__lane_step_over(lane, channel->shm);
    if (shared->lanes > 1 && head % TURN == 0)
        shared->current = (shared->current + 1) % shared->lanes;
    int64_t popped = atomic_load_explicit(&shared->popped, memory_order_relaxed);
    atomic_store_explicit(&shared->popped, popped + 1, memory_order_release);
}

/* These all return 1, 0 (there is nothing) or PYPER__BROKEN.  A lone consumer looks at the record
 * where it lies; it steps over it when it is done with it. */
static inline int pop_alone(pyper__channel *channel, pyper__record *ret_record,
                            int64_t *ret_ticket) {
    struct pyper__lane *lane;
    unsigned char *first;
    int rc = find(channel, &lane, &first);
    if (pyper__unlikely(rc != 1)) return rc;
    if (pyper__unlikely(!pyper__record_show(channel->shm, first, ret_record))) return PYPER__BROKEN;
    *ret_ticket = atomic_load_explicit(&channel->shared->popped, memory_order_relaxed);
    return 1;
}

/* Several threads of one process: each takes a copy. */
static int pop_together(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket) {
    struct pyper__channel_shared *shared = channel->shared;
    struct pyper__lane *lane;
    unsigned char *first;
    bool as_owner = pyper__owned_lock_take(&channel->pop_lock);
    int rc = find(channel, &lane, &first);
    bool given_back = false;
    if (rc == 1 && !pyper__record_show(channel->shm, first, ret_record)) rc = PYPER__BROKEN;
    if (rc == 1) {
        if (!ret_record->extent) {
            memcpy(ret_record->bytes, ret_record->data, ret_record->size);
            ret_record->data = ret_record->bytes;
        }
        *ret_ticket = atomic_load_explicit(&shared->popped, memory_order_relaxed);
        step_over(channel, lane);
        given_back = shared->limit != INT64_MAX && give_back(channel, shared->block);
    }
    pyper__owned_lock_give(&channel->pop_lock, as_owner);
    if (given_back) wake_producers(channel, false);
    return rc;
}

/* ------------------------------------------------------------------------------------ hands */

/* How many records to claim, going by how long the last ones have taken: one at a time if they are
 * slow.  They were claimed when they were, so waiting counts as well. */
static int64_t size_of_claim(pyper__channel *channel) {
    int64_t now = pyper_now(), size = channel->claim;
    int64_t each = (now - channel->claimed_ns) / (channel->claimed > 0 ? channel->claimed : 1);
    if (each * size > HAND_NS)
        size = HAND_NS / each;
    else if (each * size * 2 <= HAND_NS)
        size *= 2;
    if (size < 1) size = 1;
    if (size > PYPER__HAND_ITEMS) size = PYPER__HAND_ITEMS;
    channel->claimed_ns = now;
    channel->claim = size;
    return size;
}

/* Fill my hand with as many of the first records of a lane as are my share: how many, or
 * PYPER__BROKEN.  With pop_lock. */
static int claim_locked(pyper__channel *channel, struct hand *hand, int64_t most) {
    struct pyper__channel_shared *shared = channel->shared;
    struct pyper__lane *lane;
    unsigned char *first;
    int rc = find(channel, &lane, &first);
    if (pyper__unlikely(rc != 1)) return rc;
    struct pyper__stand stand = pyper__lane_stand(lane);
    int64_t share = (lane->seen - stand.head) / shared->hands;
    if (share > most) share = most;
    if (share < 1 || shared->one_at_a_time) share = 1;
    uint32_t count = 0;
    uint64_t size = 0;
    do {
        struct pyper__word word = pyper__word_at(first + size);
        if (word.kind == PYPER__LINK || word.size > PYPER__RECORD_BYTES ||
            size + pyper__lane_step(word.size) > HAND_BYTES)
            break;
        hand->at[count++] = (uint16_t)size;
        size += pyper__lane_step(word.size);
    } while (count < share);
    if (pyper__unlikely(count == 0)) return PYPER__BROKEN; /* one always fits */
    hand->at[count] = (uint16_t)size;
    memcpy(hand->bytes, first, size);
    hand->ticket = atomic_load_explicit(&shared->popped, memory_order_relaxed);
    stand.at += size;
    stand.head += count;
    pyper__lane_move(lane, stand);
    atomic_store_explicit(&shared->popped, hand->ticket + count, memory_order_relaxed);
    shared->current = (shared->current + 1) % shared->lanes;
    return (int)count;
}

/* Take half of what another has claimed and not started, into my hand: how many, or PYPER__BROKEN.
 * With pop_lock. */
static int steal_from_locked(struct hand *hand, struct hand *other) {
    uint64_t before = atomic_load(&other->state);
    uint32_t count = (left_of(before) + 1) / 2;
    while (count > 0 && !atomic_compare_exchange_weak(&other->state, &before, before - count))
        count = (left_of(before) + 1) / 2;
    if (count == 0) return 0;
    uint32_t first = (uint32_t)(started(before) - (int64_t)other->origin) + left_of(before) - count;
    if (first > PYPER__HAND_ITEMS || count > PYPER__HAND_ITEMS - first) return PYPER__BROKEN;
    uint16_t from = other->at[first], upto = other->at[first + count];
    if (from > upto || upto > HAND_BYTES) return PYPER__BROKEN;
    for (uint32_t i = 0; i <= count; i++) hand->at[i] = (uint16_t)(other->at[first + i] - from);
    memcpy(hand->bytes, other->bytes + from, (size_t)(upto - from));
    hand->ticket = other->ticket + first;
    return (int)count;
}

/* The same, from whoever has something; or only from who is `stuck`: has started nothing since I
 * looked last, which is a hand ago. */
static int steal_locked(pyper__channel *channel, struct hand *hand, bool stuck) {
    struct pyper__channel_shared *shared = channel->shared;
    for (int64_t i = 0; i < shared->hands; i++) {
        struct hand *other = hand_of(channel, i);
        uint64_t state = atomic_load(&other->state);
        bool moves = state >> 8 != other->noticed;
        other->noticed = state >> 8;
        if (left_of(state) == 0 || (stuck && moves)) continue;
        int count = steal_from_locked(hand, other);
        if (count != 0) return count;
    }
    return 0;
}

/* Whoever has died with the lock has stopped somewhere between two stores: what has left a lane, or
 * a hand, and has not got into another one, is lost. */
static PYPER__COLD void mend_locked(pyper__channel *channel) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t popped = 0, known = 0;
    for (int64_t i = 0; i < shared->lanes; i++) {
        struct pyper__lane *lane = &shared->lane[i];
        atomic_store(&lane->head, pyper__lane_stand(lane).head);
        popped += pyper__lane_stand(lane).head;
    }
    for (int64_t i = 0; i < shared->hands; i++) {
        uint64_t state = atomic_load(&hand_of(channel, i)->state);
        known += started(state) + left_of(state);
    }
    atomic_store(&shared->popped, popped);
    atomic_store(&shared->lost, popped - known);
}

/* The record with this index in my hand is what has been popped: 1 or PYPER__BROKEN. */
static inline int show_in_hand(const pyper__channel *channel, struct hand *hand, uint64_t index,
                               pyper__record *ret_record, int64_t *ret_ticket) {
    uint16_t place = index < PYPER__HAND_ITEMS ? hand->at[index] : HAND_BYTES;
    *ret_ticket = hand->ticket + (int64_t)index;
    return pyper__likely(place < HAND_BYTES &&
                         pyper__record_show(channel->shm, hand->bytes + place, ret_record))
               ? 1
               : PYPER__BROKEN;
}

/* Fill my hand, which is empty, and start its first record. */
static PYPER__NOINLINE int refill(pyper__channel *channel, struct hand *hand,
                                  pyper__record *ret_record, int64_t *ret_ticket) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t most = size_of_claim(channel);
    if (pyper__shared_lock_take(&shared->pop_lock)) mend_locked(channel);
    int count = steal_locked(channel, hand, true), rc = 0;
    if (count == 0) count = claim_locked(channel, hand, most);
    if (count == 0) count = steal_locked(channel, hand, false);
    if (count > 0) {
        uint64_t before = atomic_load_explicit(&hand->state, memory_order_relaxed) >> 8;
        hand->origin = before;
        atomic_store(&hand->state, (before + 1) << 8 | (uint64_t)(count - 1));
        rc = show_in_hand(channel, hand, 0, ret_record, ret_ticket);
    }
    pyper__shared_lock_give(&shared->pop_lock);
    if (pyper__unlikely(count < 0)) return count;
    channel->claimed = count;
    /* Whoever found nothing while they went from there to here looks again. */
    if (count > 1) notify(channel, &shared->items, (uint32_t)(count - 1));
    return rc;
}

static int pop_apart(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket) {
    struct pyper__channel_shared *shared = channel->shared;
    struct hand *hand = hand_of(channel, channel->hand);
    uint64_t before = atomic_load_explicit(&hand->state, memory_order_relaxed);
    while (left_of(before) > 0 &&
           !atomic_compare_exchange_weak(&hand->state, &before, before + (1 << 8) - 1))
        continue;
    int rc = left_of(before) > 0
                 ? show_in_hand(channel, hand, (before >> 8) - hand->origin, ret_record, ret_ticket)
                 : refill(channel, hand, ret_record, ret_ticket);
    if (pyper__unlikely(rc != 1)) return rc;
    if (shared->limit != INT64_MAX && ++channel->ungiven * shared->hands >= shared->block) {
        channel->ungiven = 0;
        if (give_back(channel, 1)) wake_producers(channel, false);
    }
    return 1;
}

static inline int try_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket) {
    struct pyper__channel_shared *shared = channel->shared;
    /* Read before the lanes: if it says ended, there will be no more in them than now. */
    int state = atomic_load_explicit(&shared->state, memory_order_acquire);
    if (pyper__unlikely(state == PYPER__CANCELLED)) return PYPER_ECANCELED;
    int rc = shared->consumers == ALONE      ? pop_alone(channel, ret_record, ret_ticket)
             : shared->consumers == TOGETHER ? pop_together(channel, ret_record, ret_ticket)
                                             : pop_apart(channel, ret_record, ret_ticket);
    if (pyper__likely(rc != 0)) return rc;
    return state == PYPER__ENDED ? 0 : PYPER__AGAIN;
}

int pyper__channel_try_pop(pyper__channel *channel, pyper__record *ret_record,
                           int64_t *ret_ticket) {
    return try_pop(channel, ret_record, ret_ticket);
}

void pyper__channel_release(pyper__channel *channel, pyper__record *record) {
    struct pyper__channel_shared *shared = channel->shared;
    pyper__record_drop(channel, record);
    if (shared->consumers != ALONE) return;
    step_over(channel, &shared->lane[shared->current]);
    if (shared->limit != INT64_MAX && give_back(channel, shared->block))
        wake_producers(channel, false);
}

static bool items_or_over(const void *arg) {
    const pyper__channel *channel = arg;
    const struct pyper__channel_shared *shared = channel->shared;
    if (atomic_load(&shared->state) != PYPER__OPEN) return true;
    for (int64_t i = 0; i < shared->lanes; i++)
        if (atomic_load(&shared->lane[i].tail) != atomic_load(&shared->lane[i].head)) return true;
    for (int64_t i = 0; i < shared->hands; i++)
        if (left_of(atomic_load(&hand_of(channel, i)->state)) > 0) return true;
    return false;
}

int pyper__channel_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket,
                       pyper__seat *seat, int64_t deadline_ns, bool interruptible) {
    for (;;) {
        int rc = try_pop(channel, ret_record, ret_ticket);
        if (pyper__likely(rc != PYPER__AGAIN)) return rc;
        pyper__channel_settle(channel);
        rc = pyper__await(seat, &channel->shared->items, items_or_over, channel, deadline_ns,
                          PYPER__STARVED, interruptible);
        if (rc < 0) return rc;
    }
}

#endif
