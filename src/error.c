/* error - the library's error codes as text, and its version.  One list, PYPER_ERRORS in pyper.h,
 * gives all codes. */
#include "pyper.h"

const char *pyper_strerror(int code) {
    switch (code) {
#define TEXT(name, number, text)                                                                   \
    case number:                                                                                   \
        return text;
        PYPER_ERRORS(TEXT)
#undef TEXT
    default:
        return "unknown error";
    }
}

const char *pyper_err_name(int code) {
    switch (code) {
#define NAME(name, number, text)                                                                   \
    case number:                                                                                   \
        return "PYPER_" #name;
        PYPER_ERRORS(NAME)
#undef NAME
    default:
        return "PYPER_E?";
    }
}

const char *pyper_version(void) {
    return PYPER_VERSION_STRING;
}
