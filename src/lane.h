/* lane - one producer's way through a channel (channel.h): a list of chunks, blocks of the shared
 * memory, that are filled with records.
 *
 * A chunk begins with its size; a record in it begins with a word that says how many bytes follow,
 * and whether these are the item itself, or its size and the offset of its *extent* (a block of its
 * own, which the producer has filled and the consumer gives back), or (behind the last record of a
 * chunk) the offset of the next chunk.
 *
 * A lane has two ends, each used by one thread at a time: the producing one writes records and
 * publishes them, the consuming one reads them where they lie and steps over them.
 *
 * How a death leaves a lane whole: its consuming end has two records of where it stands, and the
 * number of its steps says by its lowest bit which of the two counts.  A step writes the other one,
 * and commits with one store to that number.  A producing end needs no such thing: nobody goes on
 * where a dead producer stood.
 *
 * What a record says of itself is another process's word for it, and is looked at before it is
 * followed.
 *
 * What it does not do: it knows no bound and no order, and wakes nobody.  That is the channel's,
 * which keeps two fields here, in the cache line that its producer writes anyway.
 *
 * Synchronization (in the shared memory)
 *   tail      atomic; written by the producing end after the record (seq_cst; pairs with every read
 *             of it by the consuming end).
 *   chunk, at, end   the producing end's own; room_until, in_line   see channel.h.
 *   head      atomic; written by the consuming end, read by its own waiters.
 *   seen, steps, stands   the consuming end's own. */
#ifndef PYPER_LANE_H
#define PYPER_LANE_H

#include <string.h>

#include "shm.h"

/* An item of up to this many bytes lies in its record. */
#define PYPER__RECORD_BYTES 512

/* An item as bytes, on its way in or out. */
typedef struct pyper__record {
    uint64_t size;
    uint64_t extent;     /* where it lies in the shared memory; 0: in a record */
    unsigned char *data; /* where it lies for this process */
    _Alignas(8) unsigned char bytes[PYPER__RECORD_BYTES]; /* on the way, maybe */
} pyper__record;

/* The kinds of records: see above. */
enum { PYPER__INSIDE, PYPER__EXTENT, PYPER__LINK };

/* What a record begins with. */
struct pyper__word {
    uint32_t kind;
    uint32_t size; /* of the bytes that follow */
};

/* What follows if the item lies in an extent. */
struct pyper__extent {
    uint64_t size, offset;
};

/* Behind each record there is room for a link. */
#define PYPER__LINK_SIZE (sizeof(struct pyper__word) + sizeof(uint64_t))

/* Where the consuming end stands, and how many records it has taken. */
struct pyper__stand {
    uint64_t chunk, at;
    int64_t head;
};

struct pyper__lane {
    /* The producing end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t tail;
    int64_t room_until;
    _Atomic int64_t in_line; /* its number, while it waits for a place beside others; else 0 */
    uint64_t chunk, at, end;

    /* The consuming end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t head;
    int64_t seen;
    _Atomic uint64_t steps;
    struct pyper__stand stands[2];
};

/* In zeroed shared memory: 0 or PYPER_ENOMEM. */
int pyper__lane_init(struct pyper__lane *lane, pyper__shm *shm);

/* What a record with `size` bytes takes. */
static inline uint64_t pyper__lane_step(uint32_t size) {
    return sizeof(struct pyper__word) + (size + 7) / 8 * 8;
}

static inline unsigned char *pyper__lane_at(const pyper__shm *shm, uint64_t chunk,
                                            uint64_t offset) {
    return (unsigned char *)pyper__shm_at(shm, chunk) + offset;
}

static inline struct pyper__word pyper__word_at(const unsigned char *place) {
    struct pyper__word word;
    memcpy(&word, place, sizeof word);
    return word;
}

/* -------------------------------------------------------------------- the producing end only */

PYPER__COLD int pyper__lane_add_chunk(struct pyper__lane *lane, pyper__shm *shm);

/* Where the next record is to be written, with room for `size` bytes; NULL: there is no memory. */
static inline unsigned char *pyper__lane_place(struct pyper__lane *lane, pyper__shm *shm,
                                               uint32_t size) {
    if (pyper__unlikely(lane->at + pyper__lane_step(size) + PYPER__LINK_SIZE > lane->end) &&
        pyper__lane_add_chunk(lane, shm) < 0)
        return NULL;
    return pyper__lane_at(shm, lane->chunk, lane->at);
}

/* Publish the record whose `size` bytes have been written there. */
static inline void pyper__lane_publish(struct pyper__lane *lane, const pyper__shm *shm,
                                       unsigned char *place, uint32_t kind, uint32_t size) {
    const struct pyper__word word = {.kind = kind, .size = size};
    memcpy(place, &word, sizeof word);
    lane->at += pyper__lane_step(size);
    pyper__shm_hand_over(shm);
    int64_t tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);
    atomic_store(&lane->tail, tail + 1);
}

/* Write and publish: 0 or PYPER_ENOMEM. */
int pyper__lane_append(struct pyper__lane *lane, pyper__shm *shm, uint32_t kind, const void *bytes,
                       uint32_t size);

/* Append a record that was not written in its place.  The same. */
int pyper__lane_append_elsewhere(struct pyper__lane *lane, pyper__shm *shm,
                                 const pyper__record *record);

/* Append a record, most likely one that was written in its place (see pyper__record_reserve()).
 * The same. */
static inline int pyper__lane_append_record(struct pyper__lane *lane, pyper__shm *shm,
                                            const pyper__record *record) {
    unsigned char *place = pyper__lane_at(shm, lane->chunk, lane->at);
    if (pyper__unlikely(record->extent != 0 || record->data != place + sizeof(struct pyper__word)))
        return pyper__lane_append_elsewhere(lane, shm, record);
    pyper__lane_publish(lane, shm, place, PYPER__INSIDE, (uint32_t)record->size);
    return 0;
}

/* -------------------------------------------------------------------- the consuming end only */

/* Has the lane a record that was not taken?  Where all has been taken, `seen` says so already and
 * is left alone: then the memory may be being copied (see pyper__shm_retire). */
static inline bool pyper__lane_has_item(struct pyper__lane *lane) {
    int64_t head = atomic_load_explicit(&lane->head, memory_order_relaxed);
    if (pyper__likely(head < lane->seen)) return true;
    int64_t tail = atomic_load(&lane->tail);
    if (tail == lane->seen) return false;
    lane->seen = tail;
    return head < tail;
}

static inline struct pyper__stand pyper__lane_stand(const struct pyper__lane *lane) {
    return lane->stands[atomic_load_explicit(&lane->steps, memory_order_relaxed) & 1];
}

/* Commit where the end stands. */
static inline void pyper__lane_move(struct pyper__lane *lane, struct pyper__stand stand) {
    uint64_t steps = atomic_load_explicit(&lane->steps, memory_order_relaxed) + 1;
    lane->stands[steps & 1] = stand;
    atomic_store_explicit(&lane->steps, steps, memory_order_release);
    atomic_store_explicit(&lane->head, stand.head, memory_order_relaxed);
}

/* False: there is none. */
PYPER__COLD bool pyper__lane_next_chunk(struct pyper__lane *lane, pyper__shm *shm);

/* The first record of a lane that has one; NULL: that is none (PYPER__BROKEN). */
static inline unsigned char *pyper__lane_first(struct pyper__lane *lane, pyper__shm *shm) {
    pyper__shm_take_over(shm);
    struct pyper__stand stand = pyper__lane_stand(lane);
    if (!pyper__shm_has(shm, stand.chunk + stand.at)) return NULL;
    unsigned char *first = pyper__lane_at(shm, stand.chunk, stand.at);
    if (pyper__likely(pyper__word_at(first).kind != PYPER__LINK)) return first;
    if (!pyper__lane_next_chunk(lane, shm)) return NULL;
    stand = pyper__lane_stand(lane);
    if (!pyper__shm_has(shm, stand.chunk + stand.at)) return NULL;
    return pyper__lane_at(shm, stand.chunk, stand.at);
}

/* The record at `first`, there or copied from there, as somebody's who has popped it; false: it is
 * none. */
static inline bool pyper__record_show(const pyper__shm *shm, unsigned char *first,
                                      pyper__record *ret_record) {
    struct pyper__word word = pyper__word_at(first);
    ret_record->size = word.size;
    ret_record->extent = 0;
    ret_record->data = first + sizeof word;
    if (pyper__likely(word.kind == PYPER__INSIDE))
        return pyper__likely(word.size <= PYPER__RECORD_BYTES);
    struct pyper__extent extent;
    memcpy(&extent, first + sizeof word, sizeof extent);
    if (word.kind != PYPER__EXTENT || word.size != sizeof extent ||
        !pyper__shm_holds(shm, extent.offset, extent.size))
        return false;
    ret_record->size = extent.size;
    ret_record->extent = extent.offset;
    ret_record->data = pyper__shm_at(shm, extent.offset);
    return true;
}

/* The first record has been taken: how many have. */
static inline int64_t pyper__lane_step_over(struct pyper__lane *lane, const pyper__shm *shm) {
    struct pyper__stand stand = pyper__lane_stand(lane);
    stand.at += pyper__lane_step(pyper__word_at(pyper__lane_at(shm, stand.chunk, stand.at)).size);
    stand.head++;
    pyper__lane_move(lane, stand);
    return stand.head;
}

#endif
