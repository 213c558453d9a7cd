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

/* The same for what is no worker: a thread called `name` that calls entry(arg) with the token. */
int pyper__carrier_start(pyper_run *run, const char *name, void (*entry)(void *arg), void *arg,
                         void **ret_thread);
int pyper__carrier_await(pyper_run *run, void *thread);
void pyper__carrier_forget(pyper_run *run, void *thread);

#endif
