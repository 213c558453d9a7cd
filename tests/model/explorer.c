/* explorer - see explorer.h.
 *
 *     model [--tso] [--preemptions N] [--random SEED [--runs N] [--trace]] [--list] [scenario]
 *
 * Exit status: 0 all is well, 3 something is wrong and the way there has been printed, 2 usage. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "explorer.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "pyper.h"

enum { THREADS = 32, BUFFER = 6, RANGES = 64, NAMES = 64, LOCALS = 4 };
enum { STACK = 32 << 10, BIG_STACK = 256 << 10, ARENA = 64 << 10 };
enum { LEFT_BELOW = 1536 };
enum { UNUSED, READY, ASLEEP, FINISHED, DEAD };
enum { RUN, FLUSH, TIMEOUT, INTERRUPT, DIE, FAIL };
enum { RELAXED = 0, SEQ_CST = 5 }; /* memory orders, as the compiler passes them */

/* A store that has not reached memory. */
typedef struct store {
    uintptr_t address;
    uint64_t value, size;
} store;

typedef struct thread {
    int status;
    enum model_op op; /* the next step */
    unsigned flags;
    bool timed;     /* the sleep may time out */
    int64_t result; /* of a sleep, or of an allocation */
    uintptr_t address;
    uint64_t argument;
    uint64_t size;
    char *low; /* where its stack ends at the moment */
    jmp_buf context;
    int stores;
    store buffer[BUFFER];
} thread;

/* A robust mutex, in the memory of a pthread_mutex_t. */
typedef struct mutex {
    int owner;  /* 1 + the thread, 0: free */
    int broken; /* 1: its owner has died; 2: and it was given back without having been mended */
    int deaths; /* with it, noticed by the next owner */
} mutex;

/* What a state consists of, besides the stacks, the arena and the scenario's own. */
static struct {
    int count, current;
    int interrupts, deaths, failures; /* left */
    int last, preemptions;            /* who took the last step; left, see `bound` */
    size_t top;                       /* of the arena */
    long blocks;
    thread threads[THREADS];
} model;

static _Alignas(4096) char arena[ARENA];
static _Alignas(4096) char stacks[THREADS][BIG_STACK];
static size_t stack_size = STACK;

/* What never changes after a scenario has begun, or belongs to the explorer alone. */
static struct range {
    uintptr_t begin, end;
    char name[48];
} ranges[RANGES], owned[RANGES], names[NAMES];
static int range_count, owned_count, name_count;
static struct local {
    void *variable;
    size_t size;
    char values[THREADS + 1][16];
} locals[LOCALS];
static int local_count;
static char thread_names[THREADS][32];
static void (*entries[THREADS])(void *);
static void *arguments[THREADS];
static jmp_buf explorer;
static ucontext_t explorer_context;
static const scenario *current;
static bool tso, at_random, printing, tracing, running, crashing;
static int bound = -1; /* how many pre-emptions there may be; -1: any number */
static uint64_t seed;

/* ----------------------------------------------------------------------------------- violations */

static void print_way(void);

/* Whoever finds something wrong may stand on a stack that is about to be restored: the explorer
 * prints. */
static char complaint[400];

static _Noreturn void report(void) {
    running = false;
    if (printing) _exit(3); /* the way has been printed up to here */
    printf("violation in %s (%s%s): %s\n", current->name, tso ? "store buffers" : "one order",
           at_random ? ", at random" : "", complaint);
    print_way();
    fflush(stdout);
    _exit(3);
}

static _Noreturn void wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!complaint[0]) vsnprintf(complaint, sizeof complaint, format, args);
    va_end(args);
    if (model.current >= 0 && !crashing) _longjmp(explorer, 2);
    report();
}

void model_fail(const char *file, int line, const char *format, ...) {
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *base = strrchr(file, '/');
    wrong("%s:%d: %s", base ? base + 1 : file, line, text);
}

/* The engine's assertions. */
void __assert_fail(const char *text, const char *file, unsigned line, const char *function) {
    (void)function;
    model_fail(file, (int)line, "assertion: %s", text);
}

static void crashed(int signal) {
    crashing = true; /* and on a stack of its own */
    wrong("crash: %s", strsignal(signal));
}

/* --------------------------------------------------------------------------------------- random */

static uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += UINT64_C(0x9e3779b97f4a7c15));
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t below(uint64_t n) {
    return next_random(&seed) % n;
}

uint64_t model_random(uint64_t n) {
    return below(n);
}

/* ----------------------------------------------------------------------------------- coroutines */

static bool in_range(const struct range *list, int count, uintptr_t address) {
    for (int i = 0; i < count; i++)
        if (address >= list[i].begin && address < list[i].end) return true;
    return false;
}

static void add_range(struct range *list, int *count, int most, const void *memory, size_t size,
                      const char *name) {
    if (*count == most) return; /* only names, of which there may be too many in a large run */
    struct range *range = &list[(*count)++];
    range->begin = (uintptr_t)memory;
    range->end = range->begin + size;
    snprintf(range->name, sizeof range->name, "%s", name);
}

void model_private(const void *memory, size_t size) {
    if (range_count == RANGES) wrong("too many private ranges");
    add_range(ranges, &range_count, RANGES, memory, size, "");
}

void model_own(const void *memory, size_t size) {
    if (owned_count == RANGES) wrong("too many ranges that belong to somebody");
    add_range(owned, &owned_count, RANGES, memory, size, "");
}

void model_name(const void *memory, size_t size, const char *name) {
    add_range(names, &name_count, NAMES, memory, size, name);
}

void model_thread_local(void *variable, size_t size) {
    struct local *local = &locals[local_count++];
    local->variable = variable;
    local->size = size;
    memset(local->values, 0, sizeof local->values);
}

static void swap_locals(int from, int to) {
    model_switch(to < THREADS ? to : -1);
    for (int i = 0; i < local_count; i++) {
        memcpy(locals[i].values[from], locals[i].variable, locals[i].size);
        memcpy(locals[i].variable, locals[i].values[to], locals[i].size);
    }
}

/* Back to the explorer, until it resumes this thread. */
static __attribute__((noinline)) void suspend(thread *self) {
#if defined(__x86_64__)
    __asm__ volatile("mov %%rsp, %0" : "=r"(self->low));
#elif defined(__aarch64__)
    __asm__ volatile("mov %0, sp" : "=r"(self->low));
#else
    self->low = (char *)__builtin_frame_address(0) - 256;
#endif
    if (_setjmp(self->context) == 0) _longjmp(explorer, 1);
}

static void first_step(void) {
    int number = model.current;
    suspend(&model.threads[number]);
    entries[number](arguments[number]);
    thread *self = &model.threads[number];
    self->status = FINISHED;
    self->op = 0;
    self->address = 0;
    suspend(self);
}

/* Let a thread go on until its next step. */
static void resume(int number) {
    model.current = number;
    swap_locals(THREADS, number);
    int back = _setjmp(explorer);
    if (back == 0) _longjmp(model.threads[number].context, 1);
    if (back == 2) report();
    swap_locals(number, THREADS);
    model.current = -1;
    /* What is left below its stack would be found again as the garbage of new variables, and make
     * states different that are not. */
    if (!at_random) memset(model.threads[number].low - LEFT_BELOW, 0, LEFT_BELOW);
}

int model_thread(const char *name, void (*entry)(void *arg), void *arg, unsigned flags) {
    static ucontext_t context;
    int number = model.count, before = model.current;
    if (number == THREADS) wrong("too many threads");
    model.count++;
    snprintf(thread_names[number], sizeof thread_names[number], "%s", name);
    entries[number] = entry;
    arguments[number] = arg;
    thread *self = &model.threads[number];
    memset(self, 0, sizeof *self);
    self->status = READY;
    self->op = MODEL_YIELD;
    self->flags = flags;
    memset(stacks[number], 0, stack_size);
    getcontext(&context);
    context.uc_stack.ss_sp = stacks[number];
    context.uc_stack.ss_size = stack_size;
    context.uc_link = NULL;
    makecontext(&context, first_step, 0);
    jmp_buf saved;
    memcpy(&saved, &explorer, sizeof saved);
    swap_locals(before < 0 ? THREADS : before, number);
    model.current = number;
    if (_setjmp(explorer) == 0) swapcontext(&explorer_context, &context);
    /* first_step() has come to its first step. */
    model.current = before;
    swap_locals(number, before < 0 ? THREADS : before);
    memcpy(&explorer, &saved, sizeof saved);
    return number;
}

void model_interrupt(int times) {
    model.interrupts = times;
}

void model_fail_allocations(int times) {
    model.failures = times;
}

bool model_has_died(int number) {
    return model.threads[number].status == DEAD;
}

/* ---------------------------------------------------------------------------------------- steps */

/* Stop before a step; the explorer decides when it is taken. */
static thread *step(enum model_op op, const volatile void *address, uint64_t argument,
                    uint64_t size) {
    if (model.current < 0) return NULL;
    thread *self = &model.threads[model.current];
    self->op = op;
    self->address = (uintptr_t)address;
    self->argument = argument;
    self->size = size;
    suspend(self);
    return self;
}

/* Does anybody else see this memory? */
static bool is_private(const volatile void *address) {
    if (!running || model.current < 0) return true;
    uintptr_t place = (uintptr_t)address, stack = (uintptr_t)stacks[model.current];
    return (place >= stack && place < stack + stack_size) || in_range(ranges, range_count, place);
}

static uint64_t load(uintptr_t address, uint64_t size) {
    uint64_t value = 0;
    memcpy(&value, (const void *)address, size);
    return value;
}

static void put(uintptr_t address, uint64_t value, uint64_t size) {
    memcpy((void *)address, &value, size);
}

static void flush(thread *self) {
    put(self->buffer[0].address, self->buffer[0].value, self->buffer[0].size);
    self->stores--;
    memmove(self->buffer, self->buffer + 1, (BUFFER - 1) * sizeof(store));
    memset(&self->buffer[BUFFER - 1], 0, sizeof(store));
}

static void drain(thread *self) {
    while (self && self->stores > 0) flush(self);
}

static uint64_t atomic_read(const volatile void *address, uint64_t size, int order) {
    uintptr_t place = (uintptr_t)address;
    if (is_private(address)) return load(place, size);
    bool own = order == RELAXED && !at_random && in_range(owned, owned_count, place);
    thread *self = own ? &model.threads[model.current] : step(MODEL_LOAD, address, 0, size);
    for (int i = self->stores; i > 0; i--) {
        store *s = &self->buffer[i - 1];
        if (s->address == place && s->size == size) return s->value;
        if (s->address < place + size && place < s->address + s->size) {
            drain(self); /* parts of it only: rare, and this order is one of those that may be */
            break;
        }
    }
    return load(place, size);
}

static void atomic_write(volatile void *address, uint64_t value, uint64_t size, int order) {
    if (is_private(address)) {
        put((uintptr_t)address, value, size);
        return;
    }
    thread *self = step(MODEL_STORE, address, value, size);
    if (!tso || order >= SEQ_CST) {
        drain(self);
        put((uintptr_t)address, value, size);
        return;
    }
    if (self->stores == BUFFER) flush(self);
    self->buffer[self->stores++] = (store){(uintptr_t)address, value, size};
}

static uint64_t begin_change(volatile void *address, uint64_t size) {
    if (!is_private(address)) drain(step(MODEL_CHANGE, address, 0, size));
    return load((uintptr_t)address, size);
}

static void fence(void) {
    if (running && model.current >= 0) drain(step(MODEL_FENCE, NULL, 0, 0));
}

/* One after the other, as the processors get to it. */
void model_drain_everywhere(void) {
    fence();
    for (int i = 0; i < model.count; i++)
        if (i != model.current && model.threads[i].stores > 0) {
            step(MODEL_FENCE, NULL, 0, 0);
            drain(&model.threads[i]);
        }
}

int model_sleep(_Atomic uint32_t *word, uint32_t expected, bool timed) {
    thread *self = step(MODEL_SLEEP, word, expected, sizeof *word);
    if (!self) wrong("somebody sleeps before the scenario has begun");
    drain(self);
    if (load((uintptr_t)word, sizeof *word) != expected) return 0;
    self->status = ASLEEP;
    self->timed = timed;
    self->result = 0;
    suspend(self);
    return (int)self->result;
}

/* `argument` says how many sleepers are passed over before the first one that is woken: the system
 * promises no order. */
void model_wake(_Atomic uint32_t *word, int count) {
    thread *self = step(MODEL_WAKE, word, (uint64_t)count, sizeof *word);
    if (!self) return;
    drain(self);
    int sleepers = 0, first = (int)self->argument;
    for (int i = 0; i < model.count; i++)
        sleepers +=
            model.threads[i].status == ASLEEP && model.threads[i].address == (uintptr_t)word;
    if (count >= sleepers) first = 0;
    for (int i = 0; count > 0 && sleepers > 0; i = (i + 1) % model.count) {
        thread *other = &model.threads[i];
        if (other->status != ASLEEP || other->address != (uintptr_t)word) continue;
        if (first-- > 0) continue;
        other->status = READY;
        sleepers--;
        count--;
    }
}

void model_yield(void) {
    if (at_random) step(MODEL_YIELD, NULL, 0, 0);
}

void model_await_end_of(int number) {
    if (model.current < 0) wrong("somebody waits before the scenario has begun");
    drain(step(MODEL_JOIN, NULL, (uint64_t)number, 0));
}

/* --------------------------------------------------------------------------------------- memory */

long model_blocks(void) {
    return model.blocks;
}

static bool allocation_fails(size_t size) {
    if (model.failures == 0 || model.current < 0) return false;
    thread *self = step(MODEL_ALLOC, NULL, size, 0);
    return self->result < 0;
}

/* In blocks with their size before them, so that a snapshot is short and no address is random. */
void *model_alloc(size_t size) {
    if (allocation_fails(size)) return NULL;
    model.blocks++;
    if (at_random) return size < 64 ? malloc(size) : aligned_alloc(64, (size + 63) / 64 * 64);
    size_t whole = 64 + (size + 63) / 64 * 64;
    for (size_t at = 0; at < model.top; at += *(size_t *)(void *)(arena + at) & ~(size_t)1) {
        size_t *head = (size_t *)(void *)(arena + at);
        if (*head != (whole | 1)) continue;
        *head = whole;
        return arena + at + 64;
    }
    if (model.top + whole > ARENA) wrong("the arena is full");
    size_t at = model.top;
    *(size_t *)(void *)(arena + at) = whole;
    model.top += whole;
    return arena + at + 64;
}

void model_free(void *memory) {
    if (!memory) return;
    model.blocks--;
    if (at_random) {
        free(memory);
        return;
    }
    char *block = (char *)memory - 64;
    size_t *head = (size_t *)(void *)block;
    if (block < arena || block >= arena + model.top || *head & 1)
        wrong("freed twice, or never had");
    memset(memory, 0, *head - 64);
    *head |= 1;
}

/* ------------------------------------------------------------------------------------ the mutex */

static mutex *mutex_of(pthread_mutex_t *lock) {
    return (mutex *)(void *)lock;
}

int model_mutex_init(pthread_mutex_t *lock, const pthread_mutexattr_t *attr) {
    (void)attr;
    memset(lock, 0, sizeof *lock);
    return 0;
}

static bool has_died(const mutex *m) {
    return m->owner && model.threads[m->owner - 1].status == DEAD;
}

/* Of a mutex that is free, or whose owner has died. */
static int own(mutex *m) {
    bool died = has_died(m);
    if (m->broken == 2) return ENOTRECOVERABLE;
    m->owner = model.current + 1;
    if (died) m->broken = 1, m->deaths++;
    return died ? EOWNERDEAD : 0;
}

int model_mutex_lock(pthread_mutex_t *lock) {
    if (!running || model.current < 0) return 0;
    drain(step(MODEL_LOCK, lock, 0, sizeof(mutex)));
    return own(mutex_of(lock));
}

int model_mutex_trylock(pthread_mutex_t *lock) {
    if (!running || model.current < 0) return 0;
    mutex *m = mutex_of(lock);
    drain(step(MODEL_CHANGE, &m->owner, 0, sizeof m->owner));
    return m->owner && !has_died(m) ? EBUSY : own(m);
}

int model_mutex_deaths(const pthread_mutex_t *lock) {
    return ((const mutex *)(const void *)lock)->deaths;
}

int model_mutex_consistent(pthread_mutex_t *lock) {
    mutex_of(lock)->broken = 0;
    return 0;
}

int model_mutex_unlock(pthread_mutex_t *lock) {
    if (model.current < 0) return 0;
    drain(step(MODEL_UNLOCK, lock, 0, sizeof(mutex)));
    mutex *m = mutex_of(lock);
    if (m->owner != model.current + 1) wrong("somebody gives a lock back that he does not have");
    m->owner = 0;
    if (m->broken) m->broken = 2;
    return 0;
}

/* The engine's own lock, where a scenario is not about it. */
void model_lock(void *lock) {
    if (!running || model.current < 0) return;
    drain(step(MODEL_LOCK, lock, 0, sizeof(int)));
    *(int *)lock = model.current + 1;
}

void model_unlock(void *lock) {
    if (!running || model.current < 0) return;
    drain(step(MODEL_UNLOCK, lock, 0, sizeof(int)));
    *(int *)lock = 0;
}

/* ------------------------------------------------------------------------- the compiler's calls */

/* A plain access is a step only where its thread may die: then it matters how far it has come. */
static void plain_write(const void *address) {
    if (!running || model.current < 0 || model.deaths == 0) return;
    if (!(model.threads[model.current].flags & MODEL_MORTAL) || is_private(address)) return;
    step(MODEL_WRITE, address, 0, 0);
}

#define PLAIN(size)                                                                                \
    void __tsan_read##size(void *a);                                                               \
    void __tsan_write##size(void *a);                                                              \
    void __tsan_unaligned_read##size(void *a);                                                     \
    void __tsan_unaligned_write##size(void *a);                                                    \
    void __tsan_read_write##size(void *a);                                                         \
    void __tsan_unaligned_read_write##size(void *a);                                               \
    void __tsan_read##size(void *a) {                                                              \
        (void)a;                                                                                   \
    }                                                                                              \
    void __tsan_unaligned_read##size(void *a) {                                                    \
        (void)a;                                                                                   \
    }                                                                                              \
    void __tsan_write##size(void *a) {                                                             \
        plain_write(a);                                                                            \
    }                                                                                              \
    void __tsan_unaligned_write##size(void *a) {                                                   \
        plain_write(a);                                                                            \
    }                                                                                              \
    void __tsan_read_write##size(void *a) {                                                        \
        plain_write(a);                                                                            \
    }                                                                                              \
    void __tsan_unaligned_read_write##size(void *a) {                                              \
        plain_write(a);                                                                            \
    }
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

void __tsan_init(void);
void __tsan_func_entry(void *a);
void __tsan_func_exit(void);
void __tsan_read_range(void *a, size_t size);
void __tsan_write_range(void *a, size_t size);
void *__tsan_memcpy(void *to, const void *from, size_t size);
void *__tsan_memmove(void *to, const void *from, size_t size);
void *__tsan_memset(void *to, int value, size_t size);
void __tsan_atomic_thread_fence(int order);
void __tsan_atomic_signal_fence(int order);

/* With them the engine tells ThreadSanitizer what only the crossing of processes orders. */
void __tsan_acquire(void *a);
void __tsan_release(void *a);
void __tsan_acquire(void *a) {
    (void)a;
}
void __tsan_release(void *a) {
    (void)a;
}

void __tsan_init(void) {}
void __tsan_func_entry(void *a) {
    (void)a;
}
void __tsan_func_exit(void) {}
void __tsan_read_range(void *a, size_t size) {
    (void)a, (void)size;
}
void __tsan_write_range(void *a, size_t size) {
    (void)size, plain_write(a);
}
void *__tsan_memcpy(void *to, const void *from, size_t size) {
    plain_write(to);
    return memcpy(to, from, size);
}
void *__tsan_memmove(void *to, const void *from, size_t size) {
    plain_write(to);
    return memmove(to, from, size);
}
void *__tsan_memset(void *to, int value, size_t size) {
    plain_write(to);
    return memset(to, value, size);
}
void __tsan_atomic_thread_fence(int order) {
    if (order >= SEQ_CST) fence();
}
void __tsan_atomic_signal_fence(int order) {
    (void)order;
}

#define CHANGE(bits, name, expression)                                                             \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile void *a, uint##bits##_t v, int order);    \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile void *a, uint##bits##_t v, int order) {   \
        (void)order;                                                                               \
        uint##bits##_t old = (uint##bits##_t)begin_change(a, sizeof v);                            \
        put((uintptr_t)a, (uint##bits##_t)(expression), sizeof v);                                 \
        return old;                                                                                \
    }

#define COMPARE(bits, name)                                                                        \
    int __tsan_atomic##bits##_##name(volatile void *a, uint##bits##_t *expected, uint##bits##_t v, \
                                     int order, int failure);                                      \
    int __tsan_atomic##bits##_##name(volatile void *a, uint##bits##_t *expected, uint##bits##_t v, \
                                     int order, int failure) {                                     \
        (void)order, (void)failure;                                                                \
        uint##bits##_t old = (uint##bits##_t)begin_change(a, sizeof v);                            \
        bool same = old == *expected;                                                              \
        if (same)                                                                                  \
            put((uintptr_t)a, v, sizeof v);                                                        \
        else                                                                                       \
            *expected = old;                                                                       \
        return same;                                                                               \
    }

#define ATOMIC(bits)                                                                               \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile void *a, int order);                  \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile void *a, int order) {                 \
        return (uint##bits##_t)atomic_read(a, bits / 8, order);                                    \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile void *a, uint##bits##_t v, int order);               \
    void __tsan_atomic##bits##_store(volatile void *a, uint##bits##_t v, int order) {              \
        atomic_write(a, v, bits / 8, order);                                                       \
    }                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(                                     \
        volatile void *a, uint##bits##_t expected, uint##bits##_t v, int order, int failure);      \
    uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(                                     \
        volatile void *a, uint##bits##_t expected, uint##bits##_t v, int order, int failure) {     \
        (void)order, (void)failure;                                                                \
        uint##bits##_t old = (uint##bits##_t)begin_change(a, sizeof v);                            \
        if (old == expected) put((uintptr_t)a, v, sizeof v);                                       \
        return old;                                                                                \
    }                                                                                              \
    COMPARE(bits, compare_exchange_strong)                                                         \
    COMPARE(bits, compare_exchange_weak)                                                           \
    CHANGE(bits, exchange, v)                                                                      \
    CHANGE(bits, fetch_add, old + v)                                                               \
    CHANGE(bits, fetch_sub, old - v)                                                               \
    CHANGE(bits, fetch_and, old &v)                                                                \
    CHANGE(bits, fetch_or, old | v)                                                                \
    CHANGE(bits, fetch_xor, old ^ v)
ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)

/* -------------------------------------------------------------------------------------- choices */

typedef struct choice {
    uint8_t kind, thread;
    uint16_t argument; /* of a wake-up: see model_wake() */
} choice;

typedef struct choices {
    int count;
    choice list[THREADS * 4];
} choices;

static void offer(choices *all, int kind, int number, int argument) {
    all->list[all->count++] =
        (choice){.kind = (uint8_t)kind, .thread = (uint8_t)number, .argument = (uint16_t)argument};
}

static bool can_run(const thread *self) {
    if (self->status != READY) return false;
    if (self->op == MODEL_JOIN) {
        int status = model.threads[self->argument].status;
        return status == FINISHED || status == DEAD;
    }
    if (self->op == MODEL_LOCK) {
        int owner = *(const int *)self->address;
        return !owner || model.threads[owner - 1].status == DEAD;
    }
    return true;
}

static int sleepers_on(uintptr_t word) {
    int count = 0;
    for (int i = 0; i < model.count; i++)
        count += model.threads[i].status == ASLEEP && model.threads[i].address == word;
    return count;
}

static void offer_all_of(choices *all, int i) {
    thread *self = &model.threads[i];
    if (self->status == ASLEEP) {
        if (self->timed) offer(all, TIMEOUT, i, 0);
        if (model.interrupts > 0) offer(all, INTERRUPT, i, 0);
    }
    if (can_run(self)) {
        int ways = 1;
        if (self->op == MODEL_WAKE) {
            int sleepers = sleepers_on(self->address);
            if ((int)self->argument < sleepers) ways = sleepers;
        }
        for (int way = 0; way < ways; way++) offer(all, RUN, i, way);
        if (self->op == MODEL_ALLOC && model.failures > 0) offer(all, FAIL, i, 0);
    }
    if (self->stores > 0) offer(all, FLUSH, i, 0);
    if (model.deaths > 0 && self->flags & MODEL_MORTAL &&
        (self->status == READY || self->status == ASLEEP))
        offer(all, DIE, i, 0);
}

/* With a bound: somebody else goes on although who took the last step could.  Neither a store that
 * reaches memory, nor the end of a sleep, nor a death counts. */
static bool preempts(const choice *c) {
    if (bound < 0 || model.last < 0 || (c->kind != RUN && c->kind != FAIL)) return false;
    return c->thread != model.last && can_run(&model.threads[model.last]);
}

static void drop_what_is_out_of_bounds(choices *all) {
    int count = 0;
    for (int i = 0; i < all->count; i++)
        if (model.preemptions > 0 || !preempts(&all->list[i])) all->list[count++] = all->list[i];
    all->count = count;
}

/* Nobody else can tell whether a plain write has happened, unless its thread dies: while one of
 * those is the next step of somebody, only he is looked at. */
static void find_choices(choices *all) {
    all->count = 0;
    for (int i = 0; i < model.count && !at_random; i++) {
        if (model.threads[i].status != READY || model.threads[i].op != MODEL_WRITE) continue;
        offer_all_of(all, i);
        return;
    }
    for (int i = 0; i < model.count; i++) offer_all_of(all, i);
    drop_what_is_out_of_bounds(all);
}

static void print_step(const choice *c);

static void take(const choice *c) {
    if (printing || tracing) print_step(c);
    thread *self = &model.threads[c->thread];
    if (bound >= 0 && (c->kind == RUN || c->kind == FAIL) && self->op != MODEL_WRITE) {
        model.preemptions -= preempts(c);
        model.last = c->thread;
    }
    switch (c->kind) {
    case FLUSH:
        flush(self);
        return;
    case DIE:
        drain(self);
        self->status = DEAD;
        model.deaths--;
        return;
    case TIMEOUT:
        self->result = PYPER_ETIMEDOUT;
        break;
    case INTERRUPT:
        self->result = PYPER_EINTR;
        model.interrupts--;
        break;
    case FAIL:
        self->result = -1;
        model.failures--;
        break;
    case RUN:
        if (self->op == MODEL_ALLOC) self->result = 0;
        if (self->op == MODEL_WAKE) self->argument = c->argument;
        break;
    }
    self->status = READY;
    resume(c->thread);
}

static void look(void) {
    if (current->check) current->check();
}

/* Nobody can do anything: have all finished? */
static void check_end(void) {
    for (int i = 0; i < model.count; i++) {
        int status = model.threads[i].status;
        if (status != FINISHED && status != DEAD)
            wrong("nobody can go on, and %s %s", thread_names[i],
                  status == ASLEEP ? "sleeps for ever" : "waits for ever");
    }
    running = false;
    current->end();
    if (model.blocks) wrong("%ld blocks of memory are left", model.blocks);
    running = true;
}

static void begin(void) {
    memset(&model, 0, sizeof model);
    if (!at_random) memset(arena, 0, sizeof arena);
    memset(model_state, 0, model_state_size);
    range_count = owned_count = name_count = local_count = 0;
    model.current = -1;
    model.interrupts = current->interrupts;
    model.deaths = current->deaths;
    model.failures = current->failures;
    model.last = -1;
    model.preemptions = bound < 0 ? 0 : bound;
    running = false;
    current->begin();
    running = true;
}

/* ------------------------------------------------------------------------------------ snapshots */

/* The parts of a state, as memory. */
typedef struct part {
    void *memory;
    size_t size;
} part;

static int find_parts(part *parts) {
    int count = 0;
    parts[count++] =
        (part){&model, offsetof(__typeof__(model), threads) + (size_t)model.count * sizeof(thread)};
    parts[count++] = (part){model_state, model_state_size};
    parts[count++] = (part){arena, model.top};
    for (int i = 0; i < model.count; i++) {
        thread *self = &model.threads[i];
        if (self->status != READY && self->status != ASLEEP) continue;
        parts[count++] = (part){self->low, (size_t)(stacks[i] + stack_size - self->low)};
    }
    return count;
}

typedef struct hash {
    uint64_t a, b;
} hash;

static void mix(uint64_t *sum, uint64_t word) {
    *sum = (*sum ^ word) * UINT64_C(0x9fb21c651e98df25);
    *sum ^= *sum >> 32;
}

/* Each eighth word goes to the same sum: one multiplication need not wait for the last. */
static void mix_all(uint64_t sums[8], const void *memory, size_t size) {
    const char *bytes = memory;
    uint64_t words[8];
    for (; size >= sizeof words; bytes += sizeof words, size -= sizeof words) {
        memcpy(words, bytes, sizeof words);
        mix(&sums[0], words[0]); /* unrolled by hand, as -O2 does not */
        mix(&sums[1], words[1]);
        mix(&sums[2], words[2]);
        mix(&sums[3], words[3]);
        mix(&sums[4], words[4]);
        mix(&sums[5], words[5]);
        mix(&sums[6], words[6]);
        mix(&sums[7], words[7]);
    }
    memset(words, 0, sizeof words);
    memcpy(words, bytes, size);
    for (int i = 0; i < 8; i++) mix(&sums[i], words[i]);
}

/* Of all but the pre-emptions that are left, which come last; never 0. */
enum { LEFT = 15 };

static hash hash_of_state(void) {
    part parts[THREADS + 3];
    int left = model.preemptions;
    model.preemptions = 0;
    int count = find_parts(parts);
    uint64_t sums[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    for (int i = 0; i < count; i++) mix_all(sums, parts[i].memory, parts[i].size);
    model.preemptions = left;
    hash h = {1, 2};
    for (int i = 0; i < 8; i++) {
        mix(&h.a, sums[i]);
        mix(&h.b, sums[7 - i]);
    }
    h.a = (h.a | (LEFT + 1)) & ~(uint64_t)LEFT;
    h.a |= (uint64_t)left;
    return h;
}

static char *save(void) {
    part parts[THREADS + 3];
    int count = find_parts(parts);
    size_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].size;
    char *snapshot = malloc(size), *at = snapshot;
    if (!snapshot) abort();
    for (int i = 0; i < count; i++) {
        memcpy(at, parts[i].memory, parts[i].size);
        at += parts[i].size;
    }
    return snapshot;
}

/* The first part says how large the others are. */
static void restore(const char *snapshot) {
    part parts[THREADS + 3];
    int threads_saved;
    memcpy(&threads_saved, snapshot + offsetof(__typeof__(model), count), sizeof threads_saved);
    size_t first = offsetof(__typeof__(model), threads) + (size_t)threads_saved * sizeof(thread);
    memcpy(&model, snapshot, first);
    snapshot += first;
    int count = find_parts(parts);
    for (int i = 1; i < count; i++) {
        memcpy(parts[i].memory, snapshot, parts[i].size);
        snapshot += parts[i].size;
    }
}

/* ---------------------------------------------------------------------------------- every order */

static struct {
    hash *slots;
    size_t capacity, count;
} seen;

/* True: it was not there, or with fewer pre-emptions left. */
static bool insert(hash h) {
    if (seen.count * 2 >= seen.capacity) {
        size_t capacity = seen.capacity ? seen.capacity * 2 : 1 << 16;
        hash *slots = calloc(capacity, sizeof *slots);
        if (!slots) abort();
        for (size_t i = 0; i < seen.capacity; i++) {
            if (!seen.slots[i].a) continue;
            size_t at = seen.slots[i].b & (capacity - 1);
            while (slots[at].a) at = (at + 1) & (capacity - 1);
            slots[at] = seen.slots[i];
        }
        free(seen.slots);
        seen.slots = slots;
        seen.capacity = capacity;
    }
    size_t at = h.b & (seen.capacity - 1);
    for (; seen.slots[at].a; at = (at + 1) & (seen.capacity - 1)) {
        hash *there = &seen.slots[at];
        if ((there->a & ~(uint64_t)LEFT) != (h.a & ~(uint64_t)LEFT) || there->b != h.b) continue;
        if (there->a >= h.a) return false;
        *there = h;
        return true;
    }
    seen.slots[at] = h;
    seen.count++;
    return true;
}

/* A state on the way to the present one: its choices, and which is being tried. */
typedef struct place {
    char *snapshot;
    int next, count;
    choice *choices;
} place;

static struct {
    place *places;
    size_t depth, capacity;
} way;

static void enter(void) {
    if (way.depth == way.capacity) {
        way.capacity = way.capacity ? way.capacity * 2 : 1024;
        way.places = realloc(way.places, way.capacity * sizeof *way.places);
        if (!way.places) abort();
    }
    choices all;
    find_choices(&all);
    if (all.count == 0) check_end();
    place *here = &way.places[way.depth++];
    here->snapshot = save();
    here->next = 0;
    here->count = all.count;
    here->choices = malloc((size_t)all.count * sizeof(choice) + 1);
    if (!here->choices) abort();
    memcpy(here->choices, all.list, (size_t)all.count * sizeof(choice));
}

static void explore(void) {
    uint64_t steps = 0;
    begin();
    look();
    insert(hash_of_state());
    enter();
    while (way.depth > 0) {
        place *here = &way.places[way.depth - 1];
        if (here->next == here->count) {
            free(here->snapshot);
            free(here->choices);
            way.depth--;
            continue;
        }
        restore(here->snapshot);
        take(&here->choices[here->next++]);
        steps++;
        look();
        if (insert(hash_of_state())) enter();
    }
    printf("%-44s %9zu states, %" PRIu64 " steps, ", current->name, seen.count, steps);
    if (bound < 0)
        printf("every order\n");
    else
        printf("at most %d pre-emptions\n", bound);
    free(seen.slots);
    memset(&seen, 0, sizeof seen);
}

/* ------------------------------------------------------------------------------------ at random */

enum { STEPS_MAX = 4000000 };

static uint64_t step_count;

static uint64_t run_seed;

/* How eager the run is to change threads, to hold stores back, and to let sleeps end, is random
 * too. */
static void run_at_random(void) {
    begin();
    uint64_t stay = below(3) == 0 ? 0 : below(30), hold = below(20);
    int last = -1;
    step_count = 0;
    for (;;) {
        choices all;
        find_choices(&all);
        if (all.count == 0) break;
        choice c = all.list[below((uint64_t)all.count)];
        for (int tries = 0; tries < 8; tries++) {
            bool other = c.kind == RUN && c.thread != last && last >= 0 && below(stay + 1) > 0;
            bool soon = c.kind != RUN && below((c.kind == FAIL ? 40 : hold) + 1) > 0;
            if (!other && !soon) break;
            c = all.list[below((uint64_t)all.count)];
        }
        if (c.kind == RUN) last = c.thread;
        if (++step_count == STEPS_MAX) wrong("it does not end");
        take(&c);
        look();
    }
    check_end();
}

/* ------------------------------------------------------------------------------------- printing */

static const char *name_of(uintptr_t address) {
    static char text[64];
    for (int i = 0; i < name_count; i++)
        if (address >= names[i].begin && address < names[i].end) return names[i].name;
    snprintf(text, sizeof text, "%#" PRIxPTR, address);
    return text;
}

static void print_step(const choice *c) {
    static const char *const ops[] = {
        "reads",  "stores",   "changes", "fence",  "sleeps on",
        "wakes",  "locks",    "unlocks", "writes", "waits for the end of",
        "yields", "allocates"};
    const thread *self = &model.threads[c->thread];
    printf("  %-12s ", thread_names[c->thread]);
    switch (c->kind) {
    case FLUSH:
        printf("store of %" PRIu64 " to %s reaches memory\n", self->buffer[0].value,
               name_of(self->buffer[0].address));
        return;
    case DIE:
        printf("DIES\n");
        return;
    case TIMEOUT:
        printf("sleep times out\n");
        return;
    case INTERRUPT:
        printf("sleep is interrupted\n");
        return;
    case FAIL:
        printf("is refused memory\n");
        return;
    default:
        break;
    }
    printf("%s", ops[self->op]);
    if (self->op == MODEL_JOIN) printf(" %s", thread_names[self->argument]);
    if (self->address) printf(" %s", name_of(self->address));
    if (self->op == MODEL_STORE) printf(" := %" PRId64, (int64_t)self->argument);
    if (self->op == MODEL_SLEEP) printf(" while %" PRIu64, self->argument);
    if (self->address && self->size > 0 && self->size <= sizeof(uint64_t) &&
        self->op != MODEL_LOCK && self->op != MODEL_UNLOCK)
        printf("   (it is %" PRIu64 ")", load(self->address, self->size));
    printf("\n");
}

static void print_way(void) {
    if (at_random) {
        printf("see it with %s--random %" PRIu64 " --trace\n", tso ? "--tso " : "", run_seed);
        return;
    }
    size_t depth = way.depth;
    printing = true;
    if (depth > 0) restore(way.places[0].snapshot);
    running = true;
    for (size_t i = 0; i < depth; i++) {
        place *here = &way.places[i];
        if (here->next == 0) break;
        restore(here->snapshot);
        take(&here->choices[here->next - 1]);
    }
}

/* ----------------------------------------------------------------------------------------- main */

static void catch_crashes(void) {
    static char memory[64 << 10];
    stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = crashed, .sa_flags = SA_ONSTACK | SA_NODEFER};
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, NULL);
}

static _Noreturn void usage(void) {
    fprintf(stderr,
            "usage: model [--tso] [--preemptions N] [--random SEED [--runs N] [--trace]] [--list] "
            "[scenario]\n");
    exit(2);
}

int main(int argc, char **argv) {
    uint64_t first_seed = 0, runs = 1;
    const char *only = NULL;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--tso")) {
            tso = true;
        } else if (!strcmp(argv[i], "--list")) {
            for (const scenario *s = scenarios; s->name; s++) printf("%s\n", s->name);
            return 0;
        } else if (!strcmp(argv[i], "--random") && i + 1 < argc) {
            at_random = true;
            first_seed = strtoull(argv[++i], NULL, 0);
        } else if (!strcmp(argv[i], "--preemptions") && i + 1 < argc) {
            bound = atoi(argv[++i]);
            if (bound < 0 || bound > LEFT) usage();
        } else if (!strcmp(argv[i], "--trace")) {
            tracing = true;
        } else if (!strcmp(argv[i], "--runs") && i + 1 < argc) {
            runs = strtoull(argv[++i], NULL, 0);
        } else if (argv[i][0] != '-' && !only) {
            only = argv[i];
        } else {
            usage();
        }
    }
    if (model_whole_runs && !at_random) usage();
    if (at_random) bound = -1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    catch_crashes();
    if (at_random) stack_size = BIG_STACK;
    bool any = false;
    for (current = scenarios; current->name; current++) {
        if (only && strcmp(only, current->name)) continue;
        any = true;
        if (!at_random) {
            explore();
            continue;
        }
        uint64_t steps = 0;
        for (uint64_t i = 0; i < runs; i++) {
            run_seed = seed = first_seed + i;
            run_at_random();
            steps += step_count;
        }
        printf("%-44s %9" PRIu64 " runs from seed %" PRIu64 ", %" PRIu64 " steps\n", current->name,
               runs, first_seed, steps);
    }
    if (!any) usage();
    return 0;
}
