/* channel - see channel.h.
 *
 * A chunk is a block of the shared memory.  A record in it begins with a word that says how many
 * bytes follow, and whether these are the item itself, or its size and the offset of its extent, or
 * (of the last record of a chunk) the offset of the next chunk. */
#include "channel.h"

#if PYPER__PROCESSES

#include <string.h>

#define CHUNK ((uint32_t)65536)

/* The kinds of records. */
enum { INSIDE, EXTENT, LINK };

struct word {
    uint32_t kind;
    uint32_t size; /* INSIDE: of the item */
};

struct extent {
    uint64_t size, offset;
};

/* Behind each record there is room for a link. */
#define LINK_SIZE ((uint32_t)(sizeof(struct word) + sizeof(uint64_t)))

/* Where an end stands. */
struct position {
    uint64_t chunk;
    uint32_t at;
};

/* An output that is kept for its turn: its record, which is the item itself or its extent. */
struct kept {
    uint64_t next;
    struct word word;
    struct extent extent;
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

struct pyper__channel_shared {
    int64_t limit, block; /* see queue.h */
    bool many_producers, many_consumers;
    uint64_t order; /* 0: none */
    _Atomic int state;
    pyper__event items, places;

    /* The producing end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t tail;
    _Atomic int64_t room_until;
    struct position push[2];
    pyper__shared_lock push_lock;

    /* The consuming end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t head;
    _Atomic int64_t seen;
    struct position pop[2];
    pyper__shared_lock pop_lock;
    _Atomic int64_t given_back;
};

/* ------------------------------------------------------------------------------- life time */

uint64_t pyper__channel_size(int64_t order_window) {
    uint64_t order = sizeof(struct order) + (uint64_t)order_window * sizeof(struct ticket);
    uint64_t size = sizeof(struct pyper__channel_shared) + (order_window > 0 ? order : 0);
    return (size + PYPER__CACHE_LINE - 1) / PYPER__CACHE_LINE * PYPER__CACHE_LINE;
}

static struct order *order_of(const pyper__channel *channel) {
    uint64_t offset = channel->shared->order;
    return offset ? pyper__shm_at(channel->shm, offset) : NULL;
}

static void init_order(pyper__channel *channel, uint64_t offset, int64_t window) {
    struct order *order = pyper__shm_at(channel->shm, offset);
    order->window = window;
    for (int64_t i = 0; i < window; i++) pyper__event_init_shared(&order->ring[i].turn);
    channel->shared->order = offset;
}

int pyper__channel_init(pyper__channel *channel, pyper__shm *shm, uint64_t offset, int64_t throttle,
                        bool many_producers, bool many_consumers, int64_t order_window) {
    pyper__channel_attach(channel, shm, offset);
    struct pyper__channel_shared *shared = channel->shared;
    shared->limit = throttle > 0 ? throttle : INT64_MAX;
    shared->block = throttle >= 4 ? throttle / 4 : 1;
    shared->many_producers = many_producers || order_window > 0;
    shared->many_consumers = many_consumers;
    pyper__event_init_shared(&shared->items);
    pyper__event_init_shared(&shared->places);
    shared->push[0].chunk = shared->pop[0].chunk = pyper__shm_alloc(shm, CHUNK);
    if (!shared->push[0].chunk) return PYPER_ENOMEM;
    if (pyper__shared_lock_init(&shared->push_lock) < 0 ||
        pyper__shared_lock_init(&shared->pop_lock) < 0)
        return PYPER_ENOMEM;
    if (order_window > 0) init_order(channel, offset + sizeof *shared, order_window);
    return 0;
}

void pyper__channel_attach(pyper__channel *channel, pyper__shm *shm, uint64_t offset) {
    channel->shm = shm;
    channel->shared = pyper__shm_at(shm, offset);
    atomic_init(&channel->told, PYPER__OPEN);
}

/* ---------------------------------------------------------------------------------- records */

int pyper__record_reserve(const pyper__channel *channel, pyper__record *record, uint64_t size) {
    record->size = size;
    record->extent = 0;
    if (size <= PYPER__RECORD_BYTES) return 0;
    record->extent = pyper__shm_alloc(channel->shm, size);
    return record->extent ? 0 : PYPER_ENOMEM;
}

void pyper__record_drop(const pyper__channel *channel, pyper__record *record) {
    if (record->extent) pyper__shm_free(channel->shm, record->extent, record->size);
    record->extent = 0;
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
    pyper__event_notify_all(&shared->items);
    pyper__event_notify_all(&shared->places);
    struct order *order = order_of(channel);
    for (int64_t i = 0; order && i < order->window; i++)
        pyper__event_notify_all(&order->ring[i].turn);
    atomic_store(&channel->told, state);
}

static struct ticket *ticket_of(struct order *order, int64_t ticket) {
    return &order->ring[ticket % order->window];
}

static int64_t kept_in(const pyper__channel *channel) {
    struct order *order = order_of(channel);
    return order ? atomic_load(&order->kept) : 0;
}

int64_t pyper__channel_pushed(const pyper__channel *channel) {
    return atomic_load(&channel->shared->tail) + kept_in(channel);
}

int64_t pyper__channel_popped(const pyper__channel *channel) {
    return atomic_load(&channel->shared->head);
}

/* ----------------------------------------------------------------------------------- places */

/* See queue.c. */
static void wake_producers(pyper__channel *channel, int64_t given_back, bool all) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t waiting = atomic_load(&shared->tail) + kept_in(channel) - given_back;
    int64_t free_places = shared->limit - waiting;
    if (free_places <= 0 || (!all && free_places < shared->limit / 2)) return;
    pyper__event_notify(&shared->places,
                        free_places > INT32_MAX ? INT32_MAX : (uint32_t)free_places);
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

void pyper__channel_settle(pyper__channel *channel) {
    struct pyper__channel_shared *shared = channel->shared;
    if (shared->limit == INT64_MAX) return;
    if (shared->many_consumers) pyper__shared_lock_take(&shared->pop_lock);
    int64_t head = atomic_load_explicit(&shared->head, memory_order_relaxed);
    if (atomic_load_explicit(&shared->given_back, memory_order_relaxed) != head)
        atomic_store(&shared->given_back, head);
    if (shared->many_consumers) pyper__shared_lock_give(&shared->pop_lock);
    wake_producers(channel, head, true);
}

static bool has_room(struct pyper__channel_shared *shared, int64_t waiting_end) {
    if (pyper__likely(waiting_end <
                      atomic_load_explicit(&shared->room_until, memory_order_relaxed)))
        return true;
    int64_t given_back = atomic_load(&shared->given_back);
    int64_t until = shared->limit > INT64_MAX - given_back ? INT64_MAX : given_back + shared->limit;
    atomic_store_explicit(&shared->room_until, until, memory_order_relaxed);
    return waiting_end < until;
}

/* ---------------------------------------------------------------------------------- pushing */

static unsigned char *at(const pyper__channel *channel, const struct position *position) {
    return (unsigned char *)pyper__shm_at(channel->shm, position->chunk) + position->at;
}

/* Write a record behind the last one and publish it.  The producing end only: 0 or PYPER_ENOMEM. */
static int append(pyper__channel *channel, struct word word, const void *body, uint32_t size) {
    struct pyper__channel_shared *shared = channel->shared;
    int64_t tail = atomic_load_explicit(&shared->tail, memory_order_relaxed);
    struct position here = shared->push[tail & 1];
    uint32_t step = (uint32_t)sizeof word + (size + 7) / 8 * 8;
    if (pyper__unlikely(here.at + step + LINK_SIZE > CHUNK)) {
        struct position next = {.chunk = pyper__shm_alloc(channel->shm, CHUNK)};
        if (!next.chunk) return PYPER_ENOMEM;
        struct word link = {.kind = LINK};
        memcpy(at(channel, &here), &link, sizeof link);
        memcpy(at(channel, &here) + sizeof link, &next.chunk, sizeof next.chunk);
        here = next;
    }
    unsigned char *place = at(channel, &here);
    memcpy(place, &word, sizeof word);
    memcpy(place + sizeof word, body, size);
    here.at += step;
    shared->push[(tail + 1) & 1] = here;
    pyper__shm_hand_over(channel->shm);
    atomic_store(&shared->tail, tail + 1);
    return 0;
}

static int append_record(pyper__channel *channel, const pyper__record *record) {
    if (record->extent) {
        struct extent extent = {.size = record->size, .offset = record->extent};
        return append(channel, (struct word){.kind = EXTENT}, &extent, sizeof extent);
    }
    struct word word = {.kind = INSIDE, .size = (uint32_t)record->size};
    return append(channel, word, record->bytes, word.size);
}

/* One more output for a ticket whose turn has not come.  With push_lock. */
static int keep_locked(pyper__channel *channel, struct order *order, struct ticket *ticket,
                       const pyper__record *record) {
    uint64_t inside = record->extent ? 0 : record->size;
    uint64_t offset = pyper__shm_alloc(channel->shm, sizeof(struct kept) + inside);
    if (!offset) return PYPER_ENOMEM;
    struct kept *kept = pyper__shm_at(channel->shm, offset);
    kept->next = 0;
    kept->word = (struct word){.kind = record->extent ? EXTENT : INSIDE, .size = (uint32_t)inside};
    kept->extent = (struct extent){.size = record->size, .offset = record->extent};
    memcpy(kept->bytes, record->bytes, inside);
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
    int64_t waiting = atomic_load_explicit(&shared->tail, memory_order_relaxed) +
                      atomic_load(&order->kept) - atomic_load(&shared->given_back);
    struct ticket *ticket = ticket_of(order, number);
    bool within = number < turn + order->window;
    if (within) set_blocked_locked(order, ticket, false);
    if (number == turn) {
        ret_wait->room = true;
        return waiting >= shared->limit ? PYPER__AGAIN : append_record(channel, record);
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
    return keep_locked(channel, order, ticket, record);
}

/* Take push_lock, if this end is shared.  False: the order is broken; wait until it is all over. */
static bool begin_push(pyper__channel *channel, pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    *ret_wait = (pyper__channel_wait){.channel = channel, .event = &shared->places, .turn = -1};
    bool died = shared->many_producers && pyper__shared_lock_take(&shared->push_lock);
    struct order *order = order_of(channel);
    if (!order) return true;
    if (died) atomic_store(&order->broken, true);
    return !atomic_load_explicit(&order->broken, memory_order_relaxed);
}

static void end_push(pyper__channel *channel) {
    pyper__shm_hand_over(channel->shm); /* what was kept for a later turn */
    if (channel->shared->many_producers) pyper__shared_lock_give(&channel->shared->push_lock);
}

int pyper__channel_try_push(pyper__channel *channel, const pyper__record *record, int64_t ticket,
                            pyper__channel_wait *ret_wait) {
    struct pyper__channel_shared *shared = channel->shared;
    struct order *order = order_of(channel);
    int rc = PYPER__AGAIN;
    bool whole = begin_push(channel, ret_wait);
    int64_t before = atomic_load_explicit(&shared->tail, memory_order_relaxed);
    if (atomic_load_explicit(&shared->state, memory_order_acquire) != PYPER__OPEN) {
        rc = PYPER_ECANCELED;
    } else if (whole && order) {
        rc = try_push_ordered_locked(channel, order, record, ticket, ret_wait);
    } else if (whole) {
        ret_wait->room = true;
        if (has_room(shared, before)) rc = append_record(channel, record);
    }
    bool published = atomic_load_explicit(&shared->tail, memory_order_relaxed) != before;
    end_push(channel);
    if (published) pyper__event_notify(&shared->items, 1);
    return rc;
}

/* What the ticket has kept joins the queue: it is counted there already, so there is room. */
static int publish_locked(pyper__channel *channel, struct order *order, struct ticket *ticket) {
    while (ticket->count > 0) {
        uint64_t offset = ticket->first;
        struct kept *kept = pyper__shm_at(channel->shm, offset);
        const void *body = kept->word.kind == EXTENT ? (void *)&kept->extent : kept->bytes;
        uint32_t size = kept->word.kind == EXTENT ? (uint32_t)sizeof kept->extent : kept->word.size;
        /* kept before tail: seen from outside an item is never counted twice. */
        atomic_fetch_sub(&order->kept, 1);
        int rc = append(channel, kept->word, body, size);
        if (rc < 0) {
            atomic_fetch_add(&order->kept, 1);
            return rc;
        }
        ticket->first = kept->next;
        ticket->count--;
        pyper__shm_free(channel->shm, offset, sizeof *kept + kept->word.size);
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
    bool whole = begin_push(channel, ret_wait);
    int64_t tail = atomic_load_explicit(&shared->tail, memory_order_relaxed);
    int64_t before = atomic_load(&order->turn);
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
    int64_t published = atomic_load_explicit(&shared->tail, memory_order_relaxed) - tail;
    end_push(channel);
    if (published > 0) pyper__event_notify(&shared->items, (uint32_t)published);
    /* Wake whoever waits for a place in the ring that is free now, and the one who has the turn. */
    for (int64_t t = before; after > before && t <= after; t++)
        pyper__event_notify_all(&ticket_of(order, t)->turn);
    return rc;
}

static bool may_try_again(const void *arg) {
    const pyper__channel_wait *wait = arg;
    const struct pyper__channel_shared *shared = wait->channel->shared;
    struct order *order = order_of(wait->channel);
    if (atomic_load(&shared->state) != PYPER__OPEN) return true;
    if (order && atomic_load(&order->broken)) return false;
    if (wait->turn >= 0 && atomic_load(&order->turn) >= wait->turn) return true;
    if (!wait->room && !wait->or_room) return false;
    int64_t waiting =
        atomic_load(&shared->tail) + kept_in(wait->channel) - atomic_load(&shared->given_back);
    return waiting < shared->limit - (wait->or_room ? 1 : 0);
}

void pyper__channel_await(const pyper__channel_wait *wait, pyper__seat *seat) {
    pyper__await(seat, wait->event, may_try_again, wait, PYPER_FOREVER, PYPER__BLOCKED, false);
}

/* ---------------------------------------------------------------------------------- popping */

/* Take the first record: 1, 0 (end), PYPER_ECANCELED or PYPER__AGAIN (empty).  The consuming end
 * only.  *ret_chunk is a chunk that is used up now, or 0. */
static int take(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket,
                uint64_t *ret_chunk) {
    struct pyper__channel_shared *shared = channel->shared;
    int state = atomic_load_explicit(&shared->state, memory_order_acquire);
    if (pyper__unlikely(state == PYPER__CANCELLED)) return PYPER_ECANCELED;
    int64_t head = atomic_load_explicit(&shared->head, memory_order_relaxed);
    if (head >= atomic_load_explicit(&shared->seen, memory_order_relaxed)) {
        /* state was read before tail: if it said ended, this is the last tail. */
        int64_t tail = atomic_load(&shared->tail);
        if (head == tail) return state == PYPER__ENDED ? 0 : PYPER__AGAIN;
        /* Another producer's store to tail may be the one that was seen; all are seq_cst. */
        atomic_store_explicit(&shared->seen, tail, memory_order_relaxed);
    }
    pyper__shm_take_over(channel->shm);
    struct position here = shared->pop[head & 1];
    struct word word;
    memcpy(&word, at(channel, &here), sizeof word);
    if (pyper__unlikely(word.kind == LINK)) {
        *ret_chunk = here.chunk;
        struct position next = {.chunk = 0};
        memcpy(&next.chunk, at(channel, &here) + sizeof word, sizeof next.chunk);
        here = next;
        memcpy(&word, at(channel, &here), sizeof word);
    }
    const unsigned char *body = at(channel, &here) + sizeof word;
    uint32_t size = word.size;
    if (word.kind == EXTENT) {
        struct extent extent;
        size = sizeof extent;
        memcpy(&extent, body, sizeof extent);
        ret_record->size = extent.size;
        ret_record->extent = extent.offset;
    } else {
        ret_record->size = size;
        ret_record->extent = 0;
        memcpy(ret_record->bytes, body, size);
    }
    here.at += (uint32_t)sizeof word + (size + 7) / 8 * 8;
    shared->pop[(head + 1) & 1] = here;
    *ret_ticket = head;
    atomic_store(&shared->head, head + 1);
    return 1;
}

static int try_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket) {
    struct pyper__channel_shared *shared = channel->shared;
    uint64_t used_up = 0;
    int64_t given_back = -1;
    if (shared->many_consumers) pyper__shared_lock_take(&shared->pop_lock);
    int rc = take(channel, ret_record, ret_ticket, &used_up);
    if (rc > 0 && shared->limit != INT64_MAX &&
        *ret_ticket + 1 - atomic_load_explicit(&shared->given_back, memory_order_relaxed) >=
            shared->block) {
        given_back = *ret_ticket + 1;
        atomic_store(&shared->given_back, given_back);
    }
    if (shared->many_consumers) pyper__shared_lock_give(&shared->pop_lock);
    if (given_back >= 0) wake_producers(channel, given_back, false);
    if (used_up) pyper__shm_free(channel->shm, used_up, CHUNK);
    return rc;
}

static bool items_or_over(const void *arg) {
    const struct pyper__channel_shared *shared = arg;
    return atomic_load(&shared->state) != PYPER__OPEN ||
           atomic_load(&shared->tail) != atomic_load(&shared->head);
}

int pyper__channel_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket,
                       pyper__seat *seat, int64_t deadline_ns, bool interruptible) {
    for (;;) {
        int rc = try_pop(channel, ret_record, ret_ticket);
        if (rc != PYPER__AGAIN) return rc;
        pyper__channel_settle(channel);
        rc = pyper__await(seat, &channel->shared->items, items_or_over, channel->shared,
                          deadline_ns, PYPER__STARVED, interruptible);
        if (rc < 0) return rc;
    }
}

#endif
