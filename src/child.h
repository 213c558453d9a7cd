/* child - a worker's process: the run as it is seen from there, and what it tells the caller's.
 *
 * A process becomes a worker by pyper_attach() (or is forked to be one): it joins the shared memory
 * and makes a run of one stage, with `child` set.  A second thread waits for the death of the
 * caller's process, and ends this one then. */
#ifndef PYPER_CHILD_H
#define PYPER_CHILD_H

#include "board.h"
#include "worker.h"

#if PYPER__PROCESSES

/* Synchronization: set before the worker starts, never changes. */
struct pyper__child {
    pyper__shm *shm;
    int bell[2]; /* twice the same descriptor; it wakes the supervisor */
    size_t stage;
    pyper__waker waker;
};

/* Be a worker until it leaves: 0; or a code, and the run has been told why not.  Everything of
 * `options` is known to be sound.  fds[2] belongs to the second thread if there is one, and to the
 * caller after a failure. */
int pyper__child_work(const pyper_attach_options *options, pyper__shm *shm);

/* Tell the caller's process of a failure (true: it is the run's first), or that the run is to be
 * cancelled. */
bool pyper__child_fail(pyper_run *run, int answer, size_t stage, int code, const char *message,
                       const void *data, size_t size);
void pyper__child_cancel(pyper_run *run);

/* Has the process gone, and somebody has waited for it?  For where poll() cannot be asked. */
bool pyper__process_has_gone(int pidfd);

#endif

#endif
