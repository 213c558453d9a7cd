/* thread - what carries a worker: a thread of the host, or a plain one. */
#ifndef PYPER_THREAD_H
#define PYPER_THREAD_H

#include "worker.h"

/* Start the worker's thread: 0 or a PYPER_E... code. */
int pyper__thread_carry(pyper_worker *worker);

/* Wait until it has ended: 0 or PYPER_EINTR (try again). */
int pyper__thread_await(pyper_worker *worker);

/* Forget it. */
void pyper__thread_forget(pyper_worker *worker);

#endif
