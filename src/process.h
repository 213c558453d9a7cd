/* process - what carries a worker: a process.
 *
 * A run with process workers has a *board* in shared memory: what all its processes must know of
 * each other (how far it has been told to stop, the first failure, the workers' clocks), and the
 * channels.  Four descriptors make a process part of a run: that memory, a *bell* (an eventfd that
 * wakes the supervisor), the caller's process (a pidfd), and the bell of the run's event loop, if
 * it has one: a process that has something for the loop wakes it directly, through a waker whose
 * state is on the board.
 *
 * In the caller's process a run with process workers has one more thread, the *supervisor*.  It
 * does on behalf of the processes what they cannot do from where they are: record their failure,
 * stop the stages before a joined task that has had enough, cancel; it sees them die, kills those
 * that overstay PYPER_GRACE_MS, and waits for all of them.  It alone counts as working
 * (run->alive), until the last process has gone.
 *
 * What happens in a worker's process is child.h's. */
#ifndef PYPER_PROCESS_H
#define PYPER_PROCESS_H

#include "worker.h"

#if PYPER__PROCESSES

/* Has the pipeline a task with process workers? */
bool pyper__processes_wanted(const pyper_pipeline *pipeline);

/* Make the board and the channels, nobody working yet; the queues have been made.
 * 0, PYPER_ENOMEM, PYPER_EMFILE or PYPER_ENOTSUP; pyper__processes_free() either way. */
int pyper__processes_create(pyper_run *run);

/* Start the processes and the supervisor: 0, or the code of the worker that could not be started
 * (*ret_worker; NULL if it was the supervisor).  Those that were started go on either way. */
int pyper__processes_start(pyper_run *run, pyper_worker **ret_worker);

/* The stage's processes that could not be started will not leave, either. */
void pyper__processes_count_unstarted_out(pyper_run *run, const pyper__stage *stage);

/* How many of the stage's processes have not left, as `alive` of a stage. */
int64_t pyper__processes_alive(const pyper_run *run, const pyper__stage *stage);

/* run->stopped is at least `upto`: see to it that the processes know. */
void pyper__processes_stop(pyper_run *run, size_t upto);

/* If a process has failed, record it; any thread between enter and leave. */
void pyper__processes_hear(pyper_run *run);

/* Wait until the supervisor's thread has ended: 0 or PYPER_EINTR (try again). */
int pyper__processes_join(pyper_run *run);

/* All have left, and nobody will take an output any more: give up the descriptors and the memory,
 * but for what statistics read.  May be called more than once, by several threads. */
void pyper__processes_retire(pyper_run *run);

/* Around whatever the caller's side does there that may go on when all have left: to take an
 * output, to wake and to drive the loop.  The memory stays that long. */
void pyper__processes_enter(pyper_run *run);
void pyper__processes_leave(pyper_run *run);

void pyper__processes_free(pyper_run *run);

/* For the run's event loop (loop.h), before a process is started: where the state of its waker is
 * to lie; and, this is the waker. */
_Atomic int *pyper__processes_waker_state(pyper_run *run);
void pyper__processes_set_waker(pyper_run *run, pyper__waker *waker);

/* Has the stage been told to stop, by anybody?  In the caller's process and in a worker's. */
bool pyper__processes_stopped(const pyper_run *run, size_t stage);

#endif

#endif
