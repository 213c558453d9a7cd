/* marks.h - begin and end of what callgrind is to count, by name.  Without valgrind they do
 * nothing. */
#ifndef BENCH_MARKS_H
#define BENCH_MARKS_H

#include <valgrind/callgrind.h>

/* From here on. */
static inline void mark_begin(void) {
    CALLGRIND_ZERO_STATS;
}

/* Up to here, under this name. */
static inline void mark_end(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
}

#endif
