/* Whatever a peer leaves in the shared memory of a channel, its records lie in that memory or are
 * refused.
 *
 * An input is a channel's shape and then what happens, a byte each with what it needs: records are
 * pushed and popped, and bytes are overwritten (of the blocks behind the channel; where the
 * consuming end of a lane stands; of a hand).  What says who is there is believed (see channel.h),
 * so it is left alone. */
#define _GNU_SOURCE
/* With what it keeps to itself. */
#include "channel.c"

#include <stdlib.h>

enum { DOORS = 2, EVENTS = 200, LARGEST = 3000 };

static struct { const uint8_t *at, *end; } input;

static uint64_t take(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes && input.at < input.end; i++)
        value |= (uint64_t)*input.at++ << (8 * i);
    return value;
}

static pyper__shm *shm;
static pyper__channel doors[DOORS];
static bool broken_off;

static void require(bool condition) {
    if (!condition) abort();
}

static void push(uint64_t size) {
    pyper__record record;
    pyper__channel_wait wait;
    if (pyper__record_reserve(&doors[0], 0, &record, size) < 0) return;
    memset(record.data, (int)size, size);
    if (pyper__channel_try_push(&doors[0], 0, &record, 0, &wait) != 0)
        pyper__record_drop(&doors[0], &record);
}

static void pop(pyper__channel *door) {
    pyper__record record;
    int64_t ticket;
    int rc = pyper__channel_try_pop(door, &record, &ticket);
    if (rc == PYPER__BROKEN) broken_off = true; /* the run has failed */
    if (rc != 1) return;
    const char *data = (const char *)record.data, *base = shm->base;
    bool own = record.data == record.bytes && record.size <= sizeof record.bytes;
    require(own || (data >= base && record.size <= (uint64_t)(base + shm->size - data)));
    volatile char touched = 0;
    if (record.size > 0) touched = data[0], touched = data[record.size - 1];
    (void)touched;
    pyper__channel_release(door, &record);
}

static void overwrite(void *memory, uint64_t size) {
    uint64_t value = take(8);
    uint64_t offset = take(2) % (size - sizeof value + 1);
    /* Most are small numbers, or offsets of blocks. */
    if (value & 1) value = shm->blocks + (value >> 1) % 65536;
    memcpy((char *)memory + offset, &value, take(1) % 8 + 1);
}

static void happen(void) {
    struct pyper__channel_shared *shared = doors[0].shared;
    struct pyper__lane *lane = &shared->lane[0];
    switch (take(1) % 8) {
    case 0:
    case 1:
        push(take(1));
        break;
    case 2:
        push(take(2) % LARGEST);
        break;
    case 3:
    case 4:
        pop(&doors[take(1) % DOORS]);
        break;
    case 5:
        overwrite(pyper__shm_at(shm, shm->blocks), 16384);
        break;
    case 6:
        overwrite(lane->stands, sizeof lane->stands);
        break;
    case 7:
        if (shared->hands > 0)
            overwrite(hand_of(&doors[0], (int64_t)take(1) % shared->hands), sizeof(struct hand));
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input.at = data;
    input.end = data + size;
    uint64_t kind = take(1);
    pyper__channel_shape shape = {
        .throttle = kind & 1 ? 3 : 0,
        .producers = 1,
        .consumers = kind & 2 ? DOORS : 1,
        .apart = kind & 4,
        .order_window = kind & 8 ? 4 : 0,
    };
    if (pyper__shm_create(pyper__channel_size(&shape), &shm) < 0) return 0;
    require(pyper__channel_init(&doors[0], shm, PYPER__SHM_FIRST, &shape) == 0);
    for (int i = 0; i < DOORS; i++)
        pyper__channel_attach(&doors[i], shm, PYPER__SHM_FIRST, NULL, i);
    broken_off = false;
    for (int i = 0; i < EVENTS && input.at < input.end && !broken_off; i++) happen();
    pyper__shm_unref(shm);
    return 0;
}
