// in_extern_c - the public header where a C header is expected.  Compiled, not run.
extern "C" {
#include <pyper.h>
}

pyper_pipeline *in_extern_c(pyper_fn fn);

pyper_pipeline *in_extern_c(pyper_fn fn) {
    return pyper_pipe(pyper_task(fn), pyper_task(fn));
}
