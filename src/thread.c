/* thread - see thread.h. */
#include "thread.h"

#include <inttypes.h>
#include <stdio.h>

int pyper__thread_carry(pyper_worker *worker) {
    const pyper__task *task = worker->stage->task;
    const pyper_host *host = worker->run->host;
    char name[128];
    if (task->workers == 1)
        snprintf(name, sizeof name, "%s", task->name);
    else
        snprintf(name, sizeof name, "%.100s-%" PRId64, task->name, worker->index);
    int rc = host && host->start_thread
                 ? host->start_thread(worker->run->host_data, name, pyper__worker_main, worker,
                                      &worker->thread)
                 : pyper__thread_start(name, pyper__worker_main, worker, &worker->thread);
    /* Whatever a host calls it. */
    if (rc < 0) return rc == PYPER_ENOMEM ? rc : PYPER_ETHREAD;
    worker->has_thread = true;
    return 0;
}

int pyper__thread_await(pyper_worker *worker) {
    const pyper_host *host = worker->run->host;
    if (!worker->has_thread) return 0;
    if (host && host->start_thread) {
        int rc = host->join_thread(worker->run->host_data, worker->thread);
        if (rc < 0) return rc;
    } else {
        pyper__thread_join(worker->thread);
    }
    worker->has_thread = false;
    return 0;
}

void pyper__thread_forget(pyper_worker *worker) {
    const pyper_host *host = worker->run->host;
    if (!worker->has_thread) return;
    if (host && host->start_thread)
        host->drop_thread(worker->run->host_data, worker->thread);
    else
        pyper__thread_drop(worker->thread);
    worker->has_thread = false;
}
