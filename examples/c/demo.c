/* Count the identifiers of a folder of Python sources with a pipeline of four tasks.
 *
 *     list_files (branch) -> read (8 workers) -> analyse (a worker per core) -> total (join)
 *
 *     demo [--json] PATH
 *
 * PATH is a folder, searched with its subfolders for *.py, or a single file.  --json prints the
 * answer for machines.  examples/python/demo.py is the same program in Python and gives the same
 * answer.
 *
 * Files are user input.  They are read as bytes, whatever their encoding; an identifier is a match
 * of [A-Za-z_][A-Za-z0-9_]*.  What cannot be read is skipped and counted by kind: missing (the
 * target of a dangling link, say), folder (one that is called something.py), special (a FIFO, a
 * socket, a device: never waited for), unreadable (permissions, input errors, loops of links).
 * Links to folders are not followed; folders called site-packages, which hold what was installed
 * and not the library, are passed over.
 *
 * Exit status: 0, or 1 if the answer could not be computed, or if something was skipped and no file
 * could be read, or 2 for wrong usage. */
#define _POSIX_C_SOURCE 200809L

#include <pyper.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { GOOD, MISSING, FOLDER, SPECIAL, UNREADABLE, KINDS };

static const char *const kind_names[KINDS] = {
    [MISSING] = "missing", [FOLDER] = "folder", [SPECIAL] = "special", [UNREADABLE] = "unreadable"};

/* Say in one of our words why something could not be read. */
static enum kind kind_of(int error) {
    if (error == ENOENT || error == ENOTDIR) return MISSING;
    return error == ENXIO ? SPECIAL : UNREADABLE;
}

/* ------------------------------------------------------- A file on its way to the analysis */

struct source {
    char *data; /* size bytes, once it is read */
    size_t size;
    enum kind kind;
    char path[];
};

static void source_free(void *item) {
    struct source *source = item;
    free(source->data);
    free(source);
}

static const pyper_item_type source_type = {.size = sizeof source_type, .destroy = source_free};

/* Make the path folder/name, or just the folder if name is NULL; NULL without memory. */
static struct source *source_new(const char *folder, const char *name, enum kind kind) {
    size_t length = strlen(folder);
    const char *between = length && folder[length - 1] == '/' ? "" : "/";
    size_t size = length + (name ? strlen(name) + 1 : 0) + 1;
    struct source *source = malloc(sizeof *source + size);
    if (!source) return NULL;
    *source = (struct source){.kind = kind};
    snprintf(source->path, size, "%s%s%s", folder, name ? between : "", name ? name : "");
    return source;
}

/* -------------------------------------------------------------- Words and how often they came */

struct word {
    char *text; /* NULL: a free slot */
    int64_t count;
    uint64_t hash;
};

/* A hash table with open addressing.  At most half of its slots are used; their number is zero or
 * a power of two. */
struct words {
    struct word *slots;
    size_t capacity, used;
};

static void words_fini(struct words *words) {
    for (size_t i = 0; i < words->capacity; i++) free(words->slots[i].text);
    free(words->slots);
}

static uint64_t hash_of(const char *text, size_t length) { /* FNV-1a */
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    return hash;
}

/* Find the slot of a word, or the free one where it belongs.  There is always a free one. */
static struct word *words_find(const struct words *words, const char *text, size_t length,
                               uint64_t hash) {
    for (size_t i = hash;; i++) {
        struct word *word = &words->slots[i & (words->capacity - 1)];
        if (!word->text) return word;
        if (word->hash == hash && strncmp(word->text, text, length) == 0 && !word->text[length])
            return word;
    }
}

static bool words_grow(struct words *words) {
    struct words larger = {.capacity = words->capacity ? words->capacity * 2 : 64};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots) return false;
    for (size_t i = 0; i < words->capacity; i++) {
        struct word *word = &words->slots[i];
        if (word->text) *words_find(&larger, word->text, strlen(word->text), word->hash) = *word;
    }
    larger.used = words->used;
    free(words->slots);
    *words = larger;
    return true;
}

/* Count a word `count` times more.  Copies the text; false without memory. */
static bool words_add(struct words *words, const char *text, size_t length, int64_t count) {
    if (words->used >= words->capacity / 2 && !words_grow(words)) return false;
    uint64_t hash = hash_of(text, length);
    struct word *word = words_find(words, text, length, hash);
    if (!word->text) {
        char *copy = malloc(length + 1);
        if (!copy) return false;
        memcpy(copy, text, length);
        copy[length] = '\0';
        *word = (struct word){.text = copy, .hash = hash};
        words->used++;
    }
    word->count += count;
    return true;
}

/* ----------------------------------------------- What is known about one file, or about many */

struct report {
    int64_t files, bytes, lines, identifiers;
    int64_t skipped[KINDS];
    struct words words;
};

static void report_free(void *item) {
    struct report *report = item;
    words_fini(&report->words);
    free(report);
}

static const pyper_item_type report_type = {.size = sizeof report_type, .destroy = report_free};

/* Add another report to this one; false without memory. */
static bool report_add(struct report *report, const struct report *other) {
    report->files += other->files;
    report->bytes += other->bytes;
    report->lines += other->lines;
    report->identifiers += other->identifiers;
    for (int kind = 0; kind < KINDS; kind++) report->skipped[kind] += other->skipped[kind];
    for (size_t i = 0; i < other->words.capacity; i++) {
        const struct word *word = &other->words.slots[i];
        if (word->text && !words_add(&report->words, word->text, strlen(word->text), word->count))
            return false;
    }
    return true;
}

/* ------------------------------------------------------------------------------ The four tasks */

static int out_of_memory(pyper_worker *w) {
    return pyper_fail(w, PYPER_ENOMEM, "%s: out of memory", pyper_worker_name(w));
}

struct folder { /* one that is still to be searched */
    struct folder *next;
    char path[];
};

static int push_folder(struct folder **stack, const char *path) {
    size_t size = strlen(path) + 1;
    struct folder *folder = malloc(sizeof *folder + size);
    if (!folder) return PYPER_ENOMEM;
    folder->next = *stack;
    memcpy(folder->path, path, size);
    *stack = folder;
    return 0;
}

static int emit_source(pyper_worker *w, const char *folder, const char *name, enum kind kind) {
    struct source *source = source_new(folder, name, kind);
    return source ? pyper_emit(w, source) : PYPER_ENOMEM;
}

/* One entry of a folder: emit it if it is called *.py, remember it if it is a folder. */
static int list_entry(pyper_worker *w, DIR *listing, const char *folder, const char *name,
                      struct folder **stack) {
    size_t length = strlen(name);
    struct stat status;
    int rc = 0;

    if (length >= 3 && strcmp(name + length - 3, ".py") == 0)
        rc = emit_source(w, folder, name, GOOD);
    if (rc == 0 && strcmp(name, "site-packages") != 0 &&
        fstatat(dirfd(listing), name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISDIR(status.st_mode)) {
        struct source *joined = source_new(folder, name, GOOD);
        rc = joined ? push_folder(stack, joined->path) : PYPER_ENOMEM;
        if (joined) source_free(joined);
    }
    return rc;
}

static int list_folder(pyper_worker *w, const char *folder, struct folder **stack) {
    DIR *listing = opendir(folder);
    if (!listing) return emit_source(w, folder, NULL, kind_of(errno));

    int rc = 0;
    while (rc == 0) {
        errno = 0;
        struct dirent *entry = readdir(listing);
        if (!entry) {
            if (errno) rc = emit_source(w, folder, NULL, kind_of(errno));
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            rc = list_entry(w, listing, folder, entry->d_name, stack);
    }
    closedir(listing);
    return rc;
}

/* Walk through a folder and emit what is called *.py; emit a single file as it is. */
static int list_files(pyper_worker *w, void *root, void *bind) {
    struct stat status;
    if (stat(root, &status) != 0 || !S_ISDIR(status.st_mode)) {
        int rc = emit_source(w, root, NULL, GOOD);
        return rc == PYPER_ENOMEM ? out_of_memory(w) : rc;
    }

    struct folder *stack = NULL;
    int rc = push_folder(&stack, root);
    while (stack) {
        struct folder *folder = stack;
        stack = folder->next;
        if (rc == 0) rc = list_folder(w, folder->path, &stack);
        free(folder);
    }
    return rc == PYPER_ENOMEM ? out_of_memory(w) : rc;
}

/* Read until the end: 0 or what went wrong, an errno. */
static int read_all(struct source *source, int descriptor, size_t expected) {
    size_t capacity = 0;
    for (;;) {
        if (source->size == capacity) {
            capacity = capacity ? capacity * 2 : expected + 1;
            char *larger = realloc(source->data, capacity);
            if (!larger) return ENOMEM;
            source->data = larger;
        }
        ssize_t got = read(descriptor, source->data + source->size, capacity - source->size);
        if (got == 0) return 0;
        if (got > 0)
            source->size += (size_t)got;
        else if (errno != EINTR)
            return errno;
    }
}

/* Read the file, or find out why not.  Never waits for the other end of a FIFO. */
static int read_file(pyper_worker *w, void *item, void *bind) {
    struct source *source = item;
    if (source->kind != GOOD) return pyper_emit(w, source);

    struct stat status;
    int descriptor = open(source->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int error = descriptor >= 0 && fstat(descriptor, &status) == 0 ? 0 : errno;
    if (error == 0) {
        if (S_ISREG(status.st_mode))
            error = read_all(source, descriptor, (size_t)status.st_size);
        else
            source->kind = S_ISDIR(status.st_mode) ? FOLDER : SPECIAL;
    }
    if (descriptor >= 0) close(descriptor);

    if (error == ENOMEM) {
        source_free(source);
        return out_of_memory(w);
    }
    if (error) source->kind = kind_of(error);
    return pyper_emit(w, source);
}

static bool starts_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool in_word(char c) {
    return starts_word(c) || (c >= '0' && c <= '9');
}

/* Count what is in `text`; false without memory. */
static bool count_text(struct report *report, const char *text, size_t size) {
    report->files = 1;
    report->bytes = (int64_t)size;
    for (size_t i = 0; i < size;) {
        size_t start = i;
        if (!starts_word(text[i])) {
            report->lines += text[i++] == '\n';
            continue;
        }
        while (i < size && in_word(text[i])) i++;
        report->identifiers++;
        if (!words_add(&report->words, text + start, i - start, 1)) return false;
    }
    return true;
}

/* Count the bytes, lines and identifiers of one file. */
static int analyse(pyper_worker *w, void *item, void *bind) {
    struct source *source = item;
    struct report *report = calloc(1, sizeof *report);
    bool counted = report != NULL;

    if (report && source->kind != GOOD)
        report->skipped[source->kind] = 1;
    else if (report)
        counted = count_text(report, source->data, source->size);
    source_free(source);
    if (counted) return pyper_emit(w, report);
    if (report) report_free(report);
    return out_of_memory(w);
}

/* Add up all reports. */
static int total(pyper_worker *w, void *unused, void *bind) {
    struct report *answer = calloc(1, sizeof *answer);
    int rc = answer ? 0 : PYPER_ENOMEM;

    for (void *item; rc == 0 && (rc = pyper_pull(w, &item)) > 0;) {
        rc = report_add(answer, item) ? 0 : PYPER_ENOMEM;
        report_free(item);
    }
    if (rc == 0) return pyper_emit(w, answer);
    if (answer) report_free(answer);
    return rc == PYPER_ENOMEM ? out_of_memory(w) : rc;
}

/* ---------------------------------------------------------------------------------- Printing */

static int by_rank(const void *a, const void *b) { /* frequent ones first, then by their bytes */
    const struct word *x = *(const struct word *const *)a, *y = *(const struct word *const *)b;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return strcmp(x->text, y->text);
}

/* Find the ten most frequent words: how many were found, or -1 without memory. */
static int find_top(const struct words *words, const struct word *ret_top[10]) {
    const struct word **ranked = calloc(words->used + 1, sizeof(struct word *));
    if (!ranked) return -1;
    size_t count = 0;
    for (size_t i = 0; i < words->capacity; i++)
        if (words->slots[i].text) ranked[count++] = &words->slots[i];
    qsort(ranked, count, sizeof *ranked, by_rank);
    if (count > 10) count = 10;
    memcpy(ret_top, ranked, count * sizeof *ranked);
    free(ranked);
    return (int)count;
}

static void print_json(const struct report *answer, const struct word *const *top, int count) {
    printf("{\"files\": %" PRId64 ", \"bytes\": %" PRId64 ", \"lines\": %" PRId64
           ", \"identifiers\": %" PRId64 ", \"distinct\": %zu, \"top\": [",
           answer->files, answer->bytes, answer->lines, answer->identifiers, answer->words.used);
    for (int i = 0; i < count; i++)
        printf("%s[\"%s\", %" PRId64 "]", i ? ", " : "", top[i]->text, top[i]->count);
    printf("], \"skipped\": {");
    for (int kind = MISSING; kind < KINDS; kind++)
        printf("%s\"%s\": %" PRId64, kind > MISSING ? ", " : "", kind_names[kind],
               answer->skipped[kind]);
    printf("}}\n");
}

static void print_table(const struct report *answer, const struct word *const *top, int count) {
    printf("%-12s %12" PRId64 "\n", "files", answer->files);
    printf("%-12s %12" PRId64 "\n", "bytes", answer->bytes);
    printf("%-12s %12" PRId64 "\n", "lines", answer->lines);
    printf("%-12s %12" PRId64 "\n", "identifiers", answer->identifiers);
    printf("%-12s %12zu\n", "distinct", answer->words.used);
    printf("skipped:");
    const char *before = " ";
    for (int kind = MISSING; kind < KINDS; kind++)
        if (answer->skipped[kind]) {
            printf("%s%" PRId64 " %s", before, answer->skipped[kind], kind_names[kind]);
            before = ", ";
        }
    printf("%s\n\n", strcmp(before, " ") == 0 ? " nothing" : "");
    for (int i = 0; i < count; i++) printf("%-24.24s %12" PRId64 "\n", top[i]->text, top[i]->count);
}

static void print_run(const struct report *answer, double seconds, pyper_run *run) {
    double rate = seconds > 0 ? 1 / seconds : 0;
    printf("\n%.2f s: %.0f files/s, %.0f identifiers/s\n", seconds, (double)answer->files * rate,
           (double)answer->identifiers * rate);

    pyper_task_stats stats[4];
    size_t count = pyper_stats(run, stats, 4);
    printf("\ntask         workers       in      out    busy s starved s blocked s\n");
    for (size_t i = 0; i < count; i++)
        printf("%-12s %7" PRId64 " %8" PRId64 " %8" PRId64 " %9.2f %9.2f %9.2f\n", stats[i].name,
               stats[i].workers, stats[i].items_in, stats[i].items_out,
               (double)stats[i].busy_ns / 1e9, (double)stats[i].starved_ns / 1e9,
               (double)stats[i].blocked_ns / 1e9);
}

/* ----------------------------------------------------------------------------------- Running */

static int usage(const char *program) {
    fprintf(stderr, "usage: %s [--json] PATH\n", program);
    return 2;
}

int main(int argc, char **argv) {
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    if (argc != (json ? 3 : 2) || (!json && argv[1][0] == '-')) return usage(argv[0]);

    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    pyper_pipeline *pipeline = pyper_pipe(
        pyper_task(list_files, .name = "list_files", .branch = true, .throttle = 256,
                   .type = &source_type),
        pyper_task(read_file, .name = "read", .workers = 8, .throttle = 64, .type = &source_type),
        pyper_task(analyse, .name = "analyse", .workers = cores > 0 ? cores : 1,
                   .type = &report_type),
        pyper_task(total, .name = "total", .join = true, .type = &report_type));

    int64_t started = pyper_now();
    pyper_run *run = pyper_start(pipeline, argv[argc - 1]);
    void *item = NULL;
    int rc = pyper_next(run, &item);
    double seconds = (double)(pyper_now() - started) / 1e9;
    int status = 1;

    if (rc > 0) {
        struct report *answer = item;
        const struct word *top[10];
        int count = find_top(&answer->words, top);
        pyper_wait_until(run, PYPER_FOREVER); /* the counters are final now */
        if (count < 0) {
            fprintf(stderr, "demo: out of memory\n");
        } else {
            if (json)
                print_json(answer, top, count);
            else {
                print_table(answer, top, count);
                print_run(answer, seconds, run);
            }
            int64_t skipped = 0;
            for (int kind = MISSING; kind < KINDS; kind++) skipped += answer->skipped[kind];
            status = skipped > 0 && answer->files == 0 ? 1 : 0;
        }
        report_free(answer);
    } else {
        fprintf(stderr, "demo: %s\n",
                pyper_failed(run) ? pyper_error_message(run) : pyper_strerror(rc));
    }
    pyper_close(run);
    pyper_unref(pipeline);
    return status;
}
