/* signals - nobody is interrupted for a while: all signals of the calling thread wait.
 *
 * For what a handler of the program's must not run in the middle of, or in the wrong process.  Who
 * includes this has defined _GNU_SOURCE. */
#ifndef PYPER_SIGNALS_H
#define PYPER_SIGNALS_H

#include <signal.h>

/* What `hold` has stored goes back to `let`. */
static inline void pyper__hold_signals(sigset_t *ret_held) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, ret_held);
}

static inline void pyper__let_signals(const sigset_t *held) {
    pthread_sigmask(SIG_SETMASK, held, NULL);
}

#endif
