/* text - names and messages are UTF-8, by convention, and are cut where they do not fit: never
 * inside a character, since a host may decode them strictly. */
#ifndef PYPER_TEXT_H
#define PYPER_TEXT_H

#include <string.h>

/* How much of a name is shown in a message. */
#define PYPER__NAME_SHOWN 64

/* How many bytes of `text` to keep so that it is `most` at most and does not end inside a
 * character. Bytes that are no UTF-8 are kept as they are. */
static inline int pyper__text_fit(const char *text, size_t most) {
    size_t length = 0;
    while (length < most && text[length]) length++;
    for (size_t back = 1; back <= 4 && back <= length; back++) {
        unsigned char byte = (unsigned char)text[length - back];
        if ((byte & 0xC0) == 0x80) continue; /* not the first one of a character */
        size_t bytes = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
        return (int)(bytes > back ? length - back : length);
    }
    return (int)length;
}

/* For "%.*s". */
#define PYPER__SHOWN(name) pyper__text_fit(name, PYPER__NAME_SHOWN), name

/* Copy as much of `text` as fits into `size` bytes. */
static inline void pyper__text_copy(char *ret_text, size_t size, const char *text) {
    size_t length = (size_t)pyper__text_fit(text, size - 1);
    memcpy(ret_text, text, length);
    ret_text[length] = '\0';
}

/* Drop what a snprintf() into a full buffer may have left of a character at its end. */
static inline void pyper__text_end(char *text) {
    text[pyper__text_fit(text, strlen(text))] = '\0';
}

#endif
