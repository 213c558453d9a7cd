/* lane - see lane.h. */
#include "lane.h"

#if PYPER__PROCESSES

/* The first chunk of a lane is small, because a lane may not see many items. */
#define CHUNK_FIRST ((uint64_t)4096)
#define CHUNK ((uint64_t)65536)

static uint64_t new_chunk(pyper__shm *shm, uint64_t size) {
    uint64_t chunk = pyper__shm_alloc(shm, size);
    if (chunk) memcpy(pyper__shm_at(shm, chunk), &size, sizeof size);
    return chunk;
}

int pyper__lane_init(struct pyper__lane *lane, pyper__shm *shm) {
    lane->chunk = lane->stands[0].chunk = new_chunk(shm, CHUNK_FIRST);
    lane->at = lane->stands[0].at = sizeof(uint64_t);
    lane->end = CHUNK_FIRST;
    return lane->chunk ? 0 : PYPER_ENOMEM;
}

int pyper__lane_add_chunk(struct pyper__lane *lane, pyper__shm *shm) {
    uint64_t chunk = new_chunk(shm, CHUNK);
    if (!chunk) return PYPER_ENOMEM;
    const struct pyper__word link = {.kind = PYPER__LINK};
    unsigned char *place = pyper__lane_at(shm, lane->chunk, lane->at);
    memcpy(place, &link, sizeof link);
    memcpy(place + sizeof link, &chunk, sizeof chunk);
    lane->chunk = chunk;
    lane->at = sizeof(uint64_t);
    lane->end = CHUNK;
    return 0;
}

int pyper__lane_append(struct pyper__lane *lane, pyper__shm *shm, uint32_t kind, const void *bytes,
                       uint32_t size) {
    unsigned char *place = pyper__lane_place(lane, shm, size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place + sizeof(struct pyper__word), bytes, size);
    pyper__lane_publish(lane, shm, place, kind, size);
    return 0;
}

int pyper__lane_append_elsewhere(struct pyper__lane *lane, pyper__shm *shm,
                                 const pyper__record *record) {
    struct pyper__extent extent = {.size = record->size, .offset = record->extent};
    if (record->extent) return pyper__lane_append(lane, shm, PYPER__EXTENT, &extent, sizeof extent);
    return pyper__lane_append(lane, shm, PYPER__INSIDE, record->data, (uint32_t)record->size);
}

bool pyper__lane_next_chunk(struct pyper__lane *lane, pyper__shm *shm) {
    struct pyper__stand stand = pyper__lane_stand(lane);
    uint64_t size, used_up = stand.chunk;
    memcpy(&stand.chunk, pyper__lane_at(shm, used_up, stand.at + sizeof(struct pyper__word)),
           sizeof stand.chunk);
    stand.at = sizeof(uint64_t);
    if (!pyper__shm_holds(shm, stand.chunk, 0) || !pyper__shm_has(shm, used_up)) return false;
    pyper__lane_move(lane, stand);
    memcpy(&size, pyper__lane_at(shm, used_up, 0), sizeof size);
    if (pyper__shm_holds(shm, used_up, size)) pyper__shm_free(shm, used_up, size);
    return true;
}

#endif
