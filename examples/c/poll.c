/* An event loop of one's own, made of poll(): ten timers at once, on one thread.
 *
 * The asynchronous task `wait` starts a timer and returns; when the time has come, the loop
 * completes the operation with its output.  The numbers come from a synchronous task, which runs in
 * a thread of its own; the loop waits for both, the timers and the run's descriptor, in one call of
 * poll(). */
#include <pyper.h>

#include <poll.h>
#include <stdio.h>

#define TIMERS 10

/* A timer that runs belongs to one operation. */
static struct timer {
    pyper_worker *worker;
    intptr_t number;
    int64_t due_ns;
} timers[TIMERS];
static int running, most;

static int numbers(pyper_worker *w, void *n, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)n; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

/* Called inside pyper_drive(), while fewer than TIMERS operations are under way. */
static int wait(pyper_worker *w, void *number, void *bind) {
    int64_t delay_ns = (intptr_t)number % 7 * 1000000;
    timers[running++] = (struct timer){w, (intptr_t)number, pyper_now() + delay_ns};
    if (running > most) most = running;
    return PYPER_PENDING;
}

/* Complete the operations whose time has come; returns how many milliseconds the next one has. */
static int fire(void) {
    int64_t now = pyper_now(), next = PYPER_FOREVER;
    for (int i = 0; i < running;) {
        struct timer timer = timers[i];
        if (timer.due_ns > now) {
            if (timer.due_ns < next) next = timer.due_ns;
            i++;
            continue;
        }
        timers[i] = timers[--running];
        pyper_emit(timer.worker, (void *)(timer.number * timer.number));
        pyper_done(timer.worker, 0);
    }
    return next == PYPER_FOREVER ? -1 : (int)((next - now) / 1000000) + 1;
}

int main(void) {
    pyper_pipeline *pipeline =
        pyper_pipe(pyper_task(numbers, .branch = true, .throttle = 100),
                   pyper_task(wait, .async = true, .workers = TIMERS, .ordered = true));
    pyper_run *run = pyper_start(pipeline, (void *)200, .loop = true);

    intptr_t sum = 0, first = -1, last = -1;
    for (;;) {
        void *out;
        int rc;
        while ((rc = pyper_try_next(run, &out)) > 0) {
            sum += (intptr_t)out;
            if (first < 0) first = (intptr_t)out;
            last = (intptr_t)out;
        }
        if (rc != PYPER_EAGAIN) break; /* the end, or a failure */
        int timeout_ms = fire();
        struct pollfd watched = {.fd = pyper_fd(run), .events = POLLIN};
        if (poll(&watched, 1, timeout_ms) > 0) pyper_drive(run);
    }
    printf("sum of squares: %ld\n", (long)sum);
    //> sum of squares: 2646700
    printf("in order: %ld ... %ld\n", (long)first, (long)last);
    //> in order: 0 ... 39601
    printf("timers at once, at most: %d\n", most);
    //> timers at once, at most: 10

    int failed = pyper_failed(run);
    if (failed) fprintf(stderr, "%s\n", pyper_error_message(run));
    pyper_close(run);
    pyper_unref(pipeline);
    return failed ? 1 : 0;
}
