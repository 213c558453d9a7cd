/* libuv drives a run: twenty connections at once to a server on loopback.
 *
 * The server and the clients live on the same loop.  The asynchronous task `fetch` opens a
 * connection, sends a number, and completes its operation with the reply.  A handle of libuv
 * watches the run's descriptor and calls pyper_drive() when it becomes readable. */
#include <pyper.h>

#include <uv.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uv_loop_t *loop;
static struct sockaddr_in address;

/* One end of a connection: what it has read so far, up to the end of a line. */
struct peer {
    uv_tcp_t tcp; /* first: a handle is its peer */
    uv_connect_t connect;
    uv_write_t write;
    char line[32], sent[32];
    size_t length;
    pyper_worker *worker; /* a client's operation */
    intptr_t number;
};

static void on_closed(uv_handle_t *handle) {
    free(handle);
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *ret_buffer) {
    struct peer *peer = (struct peer *)handle;
    *ret_buffer =
        uv_buf_init(peer->line + peer->length, (unsigned)(sizeof peer->line - 1 - peer->length));
}

static void send_number(struct peer *peer, long number, uv_write_cb done) {
    int length = snprintf(peer->sent, sizeof peer->sent, "%ld\n", number);
    uv_buf_t buffer = uv_buf_init(peer->sent, (unsigned)length);
    uv_write(&peer->write, (uv_stream_t *)&peer->tcp, &buffer, 1, done);
}

/* ------------------------------------------------------------------- the server: squares */

static void on_replied(uv_write_t *write, int status) {
    uv_close((uv_handle_t *)write->handle, on_closed);
}

static void on_request(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer) {
    struct peer *peer = (struct peer *)stream;
    if (count > 0) peer->length += (size_t)count;
    if (count >= 0 && !memchr(peer->line, '\n', peer->length)) return;
    uv_read_stop(stream);
    long number = strtol(peer->line, NULL, 10);
    send_number(peer, number * number, on_replied);
}

static void on_connection(uv_stream_t *server, int status) {
    struct peer *peer = calloc(1, sizeof *peer);
    if (status < 0 || !peer) abort();
    uv_tcp_init(loop, &peer->tcp);
    if (uv_accept(server, (uv_stream_t *)&peer->tcp) < 0) abort();
    uv_read_start((uv_stream_t *)&peer->tcp, on_alloc, on_request);
}

/* ------------------------------------------------------------------- the task: a request */

static int open_now, open_most;

/* The operation is done: with an output, or with the failure `status`. */
static void finish(struct peer *peer, int status, intptr_t reply) {
    open_now--;
    if (status < 0)
        pyper_done(peer->worker, pyper_fail(peer->worker, status, "%ld: %s", (long)peer->number,
                                            uv_strerror(status)));
    else {
        pyper_emit(peer->worker, (void *)reply);
        pyper_done(peer->worker, 0);
    }
    uv_close((uv_handle_t *)&peer->tcp, on_closed);
}

static void on_reply(uv_stream_t *stream, ssize_t count, const uv_buf_t *buffer) {
    struct peer *peer = (struct peer *)stream;
    if (count > 0) peer->length += (size_t)count;
    if (count >= 0 && !memchr(peer->line, '\n', peer->length)) return;
    finish(peer, count < 0 ? (int)count : 0, strtol(peer->line, NULL, 10));
}

static void on_connected(uv_connect_t *connect, int status) {
    struct peer *peer = (struct peer *)connect->handle;
    if (status < 0) {
        finish(peer, status, 0);
        return;
    }
    uv_read_start(connect->handle, on_alloc, on_reply);
    send_number(peer, (long)peer->number, NULL);
}

static int fetch(pyper_worker *w, void *number, void *bind) {
    struct peer *peer = calloc(1, sizeof *peer);
    if (!peer) return PYPER_ENOMEM;
    peer->worker = w;
    peer->number = (intptr_t)number;
    uv_tcp_init(loop, &peer->tcp);
    if (++open_now > open_most) open_most = open_now;
    int rc = uv_tcp_connect(&peer->connect, &peer->tcp, (struct sockaddr *)&address, on_connected);
    if (rc < 0) finish(peer, rc, 0);
    return PYPER_PENDING;
}

static int numbers(pyper_worker *w, void *n, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)n; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

/* ---------------------------------------------------------------------------- the caller */

static uv_tcp_t server;
static uv_poll_t watcher;
static intptr_t sum, count;

static void on_readable(uv_poll_t *poll, int status, int events) {
    pyper_run *run = poll->data;
    void *out;
    int rc;
    pyper_drive(run);
    while ((rc = pyper_try_next(run, &out)) > 0) {
        sum += (intptr_t)out;
        count++;
    }
    if (rc == PYPER_EAGAIN) return;
    uv_close((uv_handle_t *)poll, NULL); /* the end, or a failure: let the loop end */
    uv_close((uv_handle_t *)&server, NULL);
}

int main(void) {
    loop = uv_default_loop();
    int length = sizeof address;
    uv_ip4_addr("127.0.0.1", 0, &address);
    uv_tcp_init(loop, &server);
    if (uv_tcp_bind(&server, (struct sockaddr *)&address, 0) < 0 ||
        uv_listen((uv_stream_t *)&server, 128, on_connection) < 0 ||
        uv_tcp_getsockname(&server, (struct sockaddr *)&address, &length) < 0)
        return 1;

    pyper_pipeline *pipeline =
        pyper_pipe(pyper_task(numbers, .branch = true, .throttle = 50),
                   pyper_task(fetch, .async = true, .workers = 20, .name = "fetch"));
    pyper_run *run = pyper_start(pipeline, (void *)300, .loop = true);
    watcher.data = run;
    uv_poll_init(loop, &watcher, pyper_fd(run));
    uv_poll_start(&watcher, UV_READABLE, on_readable);
    uv_run(loop, UV_RUN_DEFAULT);

    printf("%ld replies, sum of squares: %ld\n", (long)count, (long)sum);
    //> 300 replies, sum of squares: 8955050
    printf("connections at once, at most: %d\n", open_most);
    //> connections at once, at most: 20

    int failed = pyper_failed(run);
    if (failed) fprintf(stderr, "%s\n", pyper_error_message(run));
    pyper_close(run);
    pyper_unref(pipeline);
    uv_loop_close(loop);
    return failed ? 1 : 0;
}
