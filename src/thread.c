/* thread - see thread.h. */
#include "thread.h"

int pyper__carrier_start(pyper_run *run, const char *name, void (*entry)(void *arg), void *arg,
                         void **ret_thread) {
    const pyper_host *host = run->host;
    return host && host->start_thread
               ? host->start_thread(run->host_data, name, entry, arg, ret_thread)
               : pyper__thread_start(name, entry, arg, ret_thread);
}

int pyper__carrier_await(pyper_run *run, void *thread) {
    const pyper_host *host = run->host;
    if (host && host->start_thread) return host->join_thread(run->host_data, thread);
    pyper__thread_join(thread);
    return 0;
}

void pyper__carrier_forget(pyper_run *run, void *thread) {
    const pyper_host *host = run->host;
    if (host && host->start_thread)
        host->drop_thread(run->host_data, thread);
    else
        pyper__thread_drop(thread);
}

int pyper__thread_carry(pyper_worker *worker) {
    char name[128];
    pyper__worker_title(worker, name, sizeof name);
    pyper_run *run = worker->run;
    pyper__seat_is_coming(run->host);
    int rc = pyper__carrier_start(run, name, pyper__worker_main, worker, &worker->thread);
    if (rc < 0) {
        pyper__seat_has_come(run->host);
        return rc == PYPER_ENOMEM ? rc : PYPER_ETHREAD; /* whatever a host calls it */
    }
    worker->has_thread = true;
    return 0;
}

int pyper__thread_await(pyper_worker *worker) {
    if (!worker->has_thread) return 0;
    int rc = pyper__carrier_await(worker->run, worker->thread);
    if (rc == 0) worker->has_thread = false;
    return rc;
}

void pyper__thread_forget(pyper_worker *worker) {
    if (!worker->has_thread) return;
    pyper__carrier_forget(worker->run, worker->thread);
    worker->has_thread = false;
}
