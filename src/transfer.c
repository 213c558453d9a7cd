/* transfer - see transfer.h, and pyper.h for what encode and decode may call. */
#include "transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------- item types */

static int encode_int(void *item, pyper_transfer *to) {
    int64_t number = (intptr_t)item;
    void *place = pyper_transfer_reserve(to, sizeof number);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, &number, sizeof number);
    return 0;
}

static int decode_int(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    int64_t number;
    if (size != sizeof number) return PYPER_EINVAL;
    memcpy(&number, data, sizeof number);
    *ret_item = (void *)(intptr_t)number;
    return 0;
}

const pyper_item_type pyper_type_int = {
    .size = sizeof(pyper_item_type), .encode = encode_int, .decode = decode_int};

static int encode_blob(void *item, pyper_transfer *to) {
    const pyper_blob *blob = item;
    void *place = pyper_transfer_reserve(to, blob->size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, blob->data, blob->size);
    return 0;
}

static int decode_blob(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    pyper_blob *blob = malloc(sizeof *blob + size);
    if (!blob) return PYPER_ENOMEM;
    blob->size = size;
    memcpy(blob->data, data, size);
    *ret_item = blob;
    return 0;
}

const pyper_item_type pyper_type_blob = {
    .size = sizeof(pyper_item_type), .destroy = free, .encode = encode_blob, .decode = decode_blob};

#if PYPER__PROCESSES

struct pyper_transfer {
    pyper_run *run;
    const pyper__stage *stage;
    pyper__channel *channel;
    int64_t lane;
    pyper__record record;
    bool failed; /* and said so */
};

void *pyper_transfer_reserve(pyper_transfer *to, size_t size) {
    pyper__record_drop(to->channel, &to->record);
    if (pyper__record_reserve(to->channel, to->lane, &to->record, size) < 0) return NULL;
    return to->record.data;
}

int pyper_transfer_fail(pyper_transfer *transfer, int code, const char *message, const void *data,
                        size_t size) {
    transfer->failed = true;
    pyper__run_fail_bytes(transfer->run, PYPER_EFAILED, transfer->stage, code, message, data, size);
    return PYPER_EFAILED;
}

void *pyper_transfer_host_data(const pyper_transfer *transfer) {
    return transfer->run->host_data;
}

const char *pyper_transfer_name(const pyper_transfer *transfer) {
    return transfer->stage->task->name;
}

struct pyper_kept {
    pyper__shm_kept block;
};

pyper_kept *pyper_transfer_keep(pyper_transfer *from, void **ret_data) {
    pyper__record *record = &from->record;
    if (!record->extent || record->size < PYPER__SHM_KEEP_MIN) return NULL;
    pyper_kept *kept = pyper__alloc(sizeof *kept);
    if (!kept) return NULL;
    pyper__shm_keep(from->channel->shm, record->extent, record->size, &kept->block);
    record->extent = 0; /* the record does not own it any more */
    *ret_data = record->data;
    return kept;
}

void pyper_kept_release(pyper_kept *kept) {
    if (!kept) return;
    pyper__shm_unkeep(&kept->block);
    pyper__free(kept);
}

/* encode or decode has returned a negative code. */
static int failed(pyper_transfer *transfer, const char *what, int rc) {
    if (transfer->failed) return PYPER_EFAILED;
    char message[160];
    snprintf(message, sizeof message, "%s: %d (%s)", what, rc, pyper_strerror(rc));
    pyper__run_fail(transfer->run, rc == PYPER_ENOMEM ? rc : PYPER_EFAILED, transfer->stage, rc,
                    message, NULL, NULL);
    return PYPER_EFAILED;
}

static inline void begin(pyper_transfer *transfer, pyper_run *run, const pyper__stage *stage,
                         pyper__channel *channel, int64_t lane) {
    transfer->run = run;
    transfer->stage = stage;
    transfer->channel = channel;
    transfer->lane = lane;
    transfer->failed = false;
    transfer->record.size = 0;
    transfer->record.extent = 0;
}

/* Encode an item into the transfer's record: 0 or PYPER_EFAILED. */
static int encode(pyper_transfer *transfer, const pyper_item_type *type, void *item) {
    int rc = type->encode(item, transfer);
    if (pyper__unlikely(rc < 0)) {
        rc = failed(transfer, "an output could not be encoded for another process", rc);
        pyper__record_drop(transfer->channel, &transfer->record);
        return rc;
    }
    return 0;
}

/* The record has been pushed, or not: whose is the item?  Returns rc. */
static int pushed(pyper_transfer *transfer, const pyper_item_type *type, void *item, int rc) {
    if (pyper__unlikely(rc < 0))
        pyper__record_drop(transfer->channel, &transfer->record);
    else if (type->destroy)
        type->destroy(item);
    return rc;
}

int pyper__send(pyper_run *run, const pyper__stage *stage, pyper__queue *output, int64_t lane,
                void *item, int64_t ticket, pyper__seat *seat, pyper__queue *input) {
    pyper_transfer transfer;
    begin(&transfer, run, stage, output->channel, lane);
    int rc = encode(&transfer, output->type, item);
    if (rc < 0) return rc;
    for (;;) {
        pyper__channel_wait wait;
        rc = pyper__channel_try_push(output->channel, lane, &transfer.record, ticket, &wait);
        if (pyper__likely(rc != PYPER__AGAIN)) break;
        if (input) pyper__edge_settle(input);
        pyper__channel_await(&wait, seat);
    }
    return pushed(&transfer, output->type, item, rc);
}

int pyper__try_send(pyper_run *run, const pyper__stage *stage, pyper__queue *output, void *item,
                    int64_t ticket, pyper__channel_wait *ret_wait) {
    int rc = pyper__channel_try_push(output->channel, 0, NULL, ticket, ret_wait);
    if (rc < 0) return rc;
    pyper_transfer transfer;
    begin(&transfer, run, stage, output->channel, 0);
    rc = encode(&transfer, output->type, item);
    if (rc < 0) return rc;
    rc = pyper__channel_try_push(output->channel, 0, &transfer.record, ticket, ret_wait);
    return pushed(&transfer, output->type, item, rc);
}

int pyper__send_done(pyper__queue *output, int64_t ticket, pyper__seat *seat, pyper__queue *input) {
    for (;;) {
        pyper__channel_wait wait;
        int rc = pyper__channel_try_done(output->channel, ticket, &wait);
        if (rc != PYPER__AGAIN) return rc;
        if (input) pyper__edge_settle(input);
        pyper__channel_await(&wait, seat);
    }
}

/* What to return if nothing has been popped. */
static PYPER__COLD int not_popped(pyper_run *run, const pyper__stage *stage, int rc) {
    if (rc != PYPER__BROKEN) return rc;
    pyper__run_fail(run, PYPER_EFAILED, stage, PYPER_EINVAL,
                    "the memory that processes share has been overwritten: there is no item where "
                    "one should be",
                    NULL, NULL);
    return PYPER_EFAILED;
}

/* Decode what has been popped: 1 or PYPER_EFAILED. */
static int decode(pyper_transfer *transfer, const pyper_item_type *type, void **ret_item) {
    int rc = type->decode(transfer, transfer->record.data, transfer->record.size, ret_item);
    if (rc < 0) rc = failed(transfer, "an item from another process could not be decoded", rc);
    pyper__channel_release(transfer->channel, &transfer->record);
    return rc < 0 ? rc : 1;
}

int pyper__receive(pyper_run *run, const pyper__stage *stage, pyper__queue *input, void **ret_item,
                   int64_t *ret_ticket, pyper__seat *seat, int64_t deadline_ns,
                   bool interruptible) {
    pyper_transfer transfer;
    begin(&transfer, run, stage, input->channel, 0);
    int rc = pyper__channel_pop(input->channel, &transfer.record, ret_ticket, seat, deadline_ns,
                                interruptible);
    return rc <= 0 ? not_popped(run, stage, rc) : decode(&transfer, input->type, ret_item);
}

int pyper__try_receive(pyper_run *run, const pyper__stage *stage, pyper__queue *input,
                       void **ret_item, int64_t *ret_ticket) {
    pyper_transfer transfer;
    begin(&transfer, run, stage, input->channel, 0);
    int rc = pyper__channel_try_pop(input->channel, &transfer.record, ret_ticket);
    return rc <= 0 ? not_popped(run, stage, rc) : decode(&transfer, input->type, ret_item);
}

#else

/* Without process workers nothing is ever encoded. */
void *pyper_transfer_reserve(pyper_transfer *to, size_t size) {
    return NULL;
}

int pyper_transfer_fail(pyper_transfer *transfer, int code, const char *message, const void *data,
                        size_t size) {
    return PYPER_ENOTSUP;
}

pyper_kept *pyper_transfer_keep(pyper_transfer *from, void **ret_data) {
    return NULL;
}

void pyper_kept_release(pyper_kept *kept) {}

void *pyper_transfer_host_data(const pyper_transfer *transfer) {
    return NULL;
}

const char *pyper_transfer_name(const pyper_transfer *transfer) {
    return "";
}

#endif
