/* board - what all processes of a run must know of each other, in their shared memory: how far it
 * has been told to stop, its first failure, how far each worker is.
 *
 *     block PYPER__SHM_FIRST of the memory:   board | stages | workers | channels
 *
 * The caller's process lays it out before it starts the others (process.h); they write on it what
 * they cannot do from where they are, and ring for the supervisor (child.h). */
#ifndef PYPER_BOARD_H
#define PYPER_BOARD_H

#include "park.h"
#include "shm.h"

#if PYPER__PROCESSES

enum { PYPER__NOT_FAILED, PYPER__BEING_WRITTEN, PYPER__WRITTEN };
enum { PYPER__UNBORN, PYPER__AT_WORK, PYPER__LEAVING, PYPER__LEFT };

/* Synchronization: state only grows; it is the process's until that has ended, or has turned out
 * not to be startable, and then the caller's side takes it to LEFT; read by everybody (seq_cst).
 * A worker is alive until LEAVING: as each has a word of its own for it, nobody counts one twice,
 * whenever it is killed.  clock see park.h. */
typedef struct pyper__board_worker {
    _Alignas(PYPER__CACHE_LINE) _Atomic int state;
    pyper__clock clock;
} pyper__board_worker;

/* Set before any process is started, never changes. */
typedef struct pyper__board_stage {
    char name[64];
    bool multiprocess, branch, join;
    uint64_t input, output; /* the channels */
    int64_t workers, first_worker;
} pyper__board_stage;

/* Synchronization
 *   count, workers, stages   set before any process is started, never change.
 *   stopped     atomic, only grows; stages below it have been told to stop.
 *   cancelled   atomic, only false -> true: a worker wants the run to be cancelled.
 *   loop_state  of the waker of the run's event loop, see park.h.
 *   failing     atomic; whoever takes it from NOT_FAILED to BEING_WRITTEN owns `failure` until he
 *               sets WRITTEN; then it does not change any more. */
typedef struct pyper__board {
    uint64_t count;   /* of stages */
    uint64_t workers; /* where they are in the memory: those of all process stages */
    _Atomic uint64_t stopped;
    _Atomic bool cancelled;
    _Atomic int loop_state;
    _Atomic int failing;
    struct {
        int answer, code;
        uint64_t stage;
        uint64_t data, size; /* a block of the shared memory, or 0 */
        char message[400];
    } failure;
    pyper__board_stage stages[];
} pyper__board;

static inline pyper__board *pyper__board_at(const pyper__shm *shm) {
    return pyper__shm_at(shm, PYPER__SHM_FIRST);
}

static inline pyper__board_worker *pyper__board_worker_at(const pyper__shm *shm, size_t stage,
                                                          int64_t worker) {
    const pyper__board *board = pyper__board_at(shm);
    return (pyper__board_worker *)pyper__shm_at(shm, board->workers) +
           board->stages[stage].first_worker + worker;
}

/* How many of the stage's workers have not left. */
static inline int64_t pyper__board_alive(const pyper__shm *shm, size_t stage) {
    int64_t alive = 0;
    for (int64_t k = 0; k < pyper__board_at(shm)->stages[stage].workers; k++)
        alive += atomic_load(&pyper__board_worker_at(shm, stage, k)->state) < PYPER__LEAVING;
    return alive;
}

/* Stages below `upto` are to stop.  Returns whether that is news: the supervisor is to be told. */
static inline bool pyper__board_stop(pyper__board *board, uint64_t upto) {
    uint64_t before = atomic_load(&board->stopped);
    while (before < upto && !atomic_compare_exchange_weak(&board->stopped, &before, upto)) continue;
    return before < upto;
}

#endif

#endif
