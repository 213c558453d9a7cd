/* explorer - runs small programs made of the engine's own code in every order there is.
 *
 * A scenario starts a few threads that push, pop, wait and wake.  They are no threads of the system
 * but coroutines, and what they run is compiled from src/ with the compiler's instrumentation of
 * memory accesses (-fsanitize=thread), whose calls come here instead of going to a sanitizer.  So
 * before each atomic access, each sleep and each lock the explorer has the choice who goes on.
 *
 * Every state is reached once: a state is all memory that the threads can see, their stacks and
 * registers, and what they wait for.  From each, every choice is tried:
 *
 *   run        a thread takes its next step: one access of shared memory and all it does by itself
 *              until the next one
 *   flush      with --tso: the oldest store in a thread's store buffer reaches memory
 *   timeout, interrupt   a sleep ends by itself
 *   die        a thread (a process, that is) ends where it stands, holding whatever it holds
 *   fail       an allocation finds no memory
 *
 * Wrong are: a state where nobody can go on and somebody has not finished (a wake-up was lost), a
 * MODEL_CHECK or an assertion that does not hold, a crash, and memory that is left.  Then the way
 * there is printed, step by step.
 *
 * Memory is sequentially consistent, or, with --tso, that of x86: a store waits in its thread's
 * buffer unless it is seq_cst; read-modify-write, seq_cst fences, locks and sleeps drain the
 * buffer.  Weaker orders are left to ThreadSanitizer.
 *
 * With --preemptions N only those orders are tried in which, at most N times, a thread has to stop
 * where it could have gone on; where it sleeps, waits for a lock, ends or dies anybody may follow,
 * and a store may reach memory at any time.  It is for scenarios with too many orders, or endless
 * ones. run.py says which these are, and prints the bound with the number of states.
 *
 * With --random SEED one scenario is run with random choices instead, which is for programs too
 * large to be run in every order.  The same seed gives the same run. */
#ifndef EXPLORER_H
#define EXPLORER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct scenario {
    const char *name;
    void (*begin)(void);              /* makes the state and starts the threads */
    void (*check)(void);              /* what holds in every state; may be NULL */
    void (*end)(void);                /* when all threads have finished: checks, and frees */
    int interrupts, deaths, failures; /* how many of them there may be */
} scenario;

extern const scenario scenarios[];  /* the last one has no name */
extern const bool model_whole_runs; /* scenarios are to be run with --random */

/* All that a scenario changes, itself and through the engine, must lie in this memory, or in
 * memory that it has allocated, or on its threads' stacks. */
extern void *const model_state;
extern const size_t model_state_size;

enum { MODEL_MORTAL = 1 };

/* Start a thread; MODEL_MORTAL: it may die at any step.  Returns its number, from 0 on. */
int model_thread(const char *name, void (*entry)(void *arg), void *arg, unsigned flags);

bool model_has_died(int thread);
int model_mutex_deaths(const pthread_mutex_t *lock); /* how many have died with it */
void model_await_end_of(int thread);

/* How many interruptions, and refused allocations, there may be from now on. */
void model_interrupt(int times);
void model_fail_allocations(int times);

/* A random number below n, of the run's seed (--random only). */
uint64_t model_random(uint64_t n);

/* Accesses here are no steps: nobody else looks at it, or what he sees does not matter. */
void model_private(const void *memory, size_t size);

/* Relaxed loads here are no steps: they are made only by who alone may write it, or holds the lock
 * that it takes to do so. */
void model_own(const void *memory, size_t size);

/* What to call this memory when a run is printed. */
void model_name(const void *memory, size_t size, const char *name);

/* A thread-local variable: each thread of the model has its own. */
void model_thread_local(void *variable, size_t size);

_Noreturn void model_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define MODEL_CHECK(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) model_fail(__FILE__, __LINE__, "not true: %s", #condition);              \
    } while (0)

/* Blocks allocated and not freed. */
long model_blocks(void);

/* For the model of the system (os_model.c). */
enum model_op {
    MODEL_LOAD,
    MODEL_STORE,
    MODEL_CHANGE, /* read, modify, write */
    MODEL_FENCE,
    MODEL_SLEEP,
    MODEL_WAKE,
    MODEL_LOCK,
    MODEL_UNLOCK,
    MODEL_WRITE, /* not atomic: of interest only if the thread may die */
    MODEL_JOIN,
    MODEL_YIELD,
    MODEL_ALLOC,
};
int model_sleep(_Atomic uint32_t *word, uint32_t expected, bool timed);
void model_wake(_Atomic uint32_t *word, int count);
void model_yield(void);
void model_lock(void *lock);
void model_unlock(void *lock);
void *model_alloc(size_t size);
void model_free(void *memory);
void model_drain_everywhere(void);
void model_switch(int number); /* by os_model.c: thread `number` goes on, or, -1, the explorer */

#endif
