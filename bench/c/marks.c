/* marks - marks.h for programs in Python, as a shared library. */
#include "marks.h"

void begin(void) {
    mark_begin();
}

void end(const char *name) {
    mark_end(name);
}
