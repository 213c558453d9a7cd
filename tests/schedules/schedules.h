/* schedules - a chance for other threads before every atomic access.
 *
 * With -Dschedules=true this header is included at the head of each source of the library: every
 * atomic operation then first calls schedule_point(), which at random lets other threads run, once
 * or for up to 100 us.  So schedules happen that hardly ever do otherwise.  Without the option
 * nothing of it exists.
 *
 * PYPER_SCHEDULES is the seed (else it is chosen, and printed): each thread's decisions follow from
 * it and from the number of threads before it.  The system's own scheduling does not, so a seed
 * makes a failure likely again, not certain. */
#ifndef SCHEDULES_H
#define SCHEDULES_H

/* Before any header of the system, as its users do. */
#define _GNU_SOURCE

#include <stdatomic.h>

void schedule_point(void);

#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit
#undef atomic_exchange
#undef atomic_exchange_explicit
#undef atomic_fetch_add
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub
#undef atomic_fetch_sub_explicit
#undef atomic_compare_exchange_strong
#undef atomic_compare_exchange_strong_explicit
#undef atomic_compare_exchange_weak
#undef atomic_compare_exchange_weak_explicit
#undef atomic_thread_fence

#if defined(__clang__)
#define SCHEDULE(operation, ...) (schedule_point(), __c11_atomic_##operation(__VA_ARGS__))
#define SCHEDULE_LOAD(...) SCHEDULE(load, __VA_ARGS__)
#define SCHEDULE_STORE(...) SCHEDULE(store, __VA_ARGS__)
#define SCHEDULE_EXCHANGE(...) SCHEDULE(exchange, __VA_ARGS__)
#define SCHEDULE_STRONG(...) SCHEDULE(compare_exchange_strong, __VA_ARGS__)
#define SCHEDULE_WEAK(...) SCHEDULE(compare_exchange_weak, __VA_ARGS__)
#define atomic_thread_fence(order) SCHEDULE(thread_fence, order)
#else
#define SCHEDULE(operation, ...) (schedule_point(), __atomic_##operation(__VA_ARGS__))
#define SCHEDULE_LOAD(...) SCHEDULE(load_n, __VA_ARGS__)
#define SCHEDULE_STORE(...) SCHEDULE(store_n, __VA_ARGS__)
#define SCHEDULE_EXCHANGE(...) SCHEDULE(exchange_n, __VA_ARGS__)
#define SCHEDULE_STRONG(p, e, v, s, f) SCHEDULE(compare_exchange_n, p, e, v, 0, s, f)
#define SCHEDULE_WEAK(p, e, v, s, f) SCHEDULE(compare_exchange_n, p, e, v, 1, s, f)
#define atomic_thread_fence(order) SCHEDULE(thread_fence, order)
#endif

#define atomic_load_explicit(p, order) SCHEDULE_LOAD(p, order)
#define atomic_store_explicit(p, v, order) SCHEDULE_STORE(p, v, order)
#define atomic_exchange_explicit(p, v, order) SCHEDULE_EXCHANGE(p, v, order)
#define atomic_fetch_add_explicit(p, v, order) SCHEDULE(fetch_add, p, v, order)
#define atomic_fetch_sub_explicit(p, v, order) SCHEDULE(fetch_sub, p, v, order)
#define atomic_compare_exchange_strong_explicit(p, e, v, s, f) SCHEDULE_STRONG(p, e, v, s, f)
#define atomic_compare_exchange_weak_explicit(p, e, v, s, f) SCHEDULE_WEAK(p, e, v, s, f)

#define atomic_load(p) SCHEDULE_LOAD(p, __ATOMIC_SEQ_CST)
#define atomic_store(p, v) SCHEDULE_STORE(p, v, __ATOMIC_SEQ_CST)
#define atomic_exchange(p, v) SCHEDULE_EXCHANGE(p, v, __ATOMIC_SEQ_CST)
#define atomic_fetch_add(p, v) SCHEDULE(fetch_add, p, v, __ATOMIC_SEQ_CST)
#define atomic_fetch_sub(p, v) SCHEDULE(fetch_sub, p, v, __ATOMIC_SEQ_CST)
#define atomic_compare_exchange_strong(p, e, v)                                                    \
    SCHEDULE_STRONG(p, e, v, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
#define atomic_compare_exchange_weak(p, e, v)                                                      \
    SCHEDULE_WEAK(p, e, v, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

#endif
