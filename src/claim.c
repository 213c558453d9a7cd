/* claim - see claim.h. */
#include "claim.h"

/* What is claimed at once should take the calls about as long as this: twice as many when it took
 * less than the one, half as many when it took more than the other.  The exact numbers do not
 * matter much: a claim costs 50 ns, and somebody who wants to take it away several microseconds. */
#define SHORT_NS 32000
#define LONG_NS 128000
/* A call has been slow, or the worker had to wait: begin anew. */
#define MUCH_TOO_LONG_NS 512000
/* If all that may be claimed took less than this, several workers are in each other's way more than
 * they help: what one processor has written the other one needs next.  Who finds that somebody has
 * claimed since he did lets others run until nobody has, or for so long. */
#define TINY_NS 1500
#define STAND_BACK_NS 1000000
/* Whose calls take longer than this finds the cache lines of what is shared with others. */
#define SELDOM_NS 200
/* Where a worker may not claim this many he claims none: with 64 workers and a bound of 1 024,
 * where it would be 4, it costs more than it gains. */
#define LEAST 8
/* Nor where there are more workers than this: so many have calls that wait for something, and are
 * long; and who goes to sleep looks at what each of the others has claimed. */
#define WORKERS_MAX 32

int pyper__claims_create(pyper__queue *queue, int64_t workers, int64_t window) {
    int64_t most = pyper__least(PYPER__CLAIM_MAX, queue->limit / 4 / workers);
    if (window > 0) most = pyper__least(most, window / 4 / workers);
    if (most < LEAST || workers > WORKERS_MAX ||
        !pyper__event_let_notify_lightly(&queue->items, true))
        return 0;
    struct pyper__claims *claims =
        pyper__alloc(sizeof *claims + (size_t)workers * sizeof claims->claim[0]);
    if (!claims) return PYPER_ENOMEM;
    claims->count = workers;
    claims->most = most;
    while (workers > (int64_t)1 << claims->share) claims->share++;
    for (int64_t i = 0; i < workers; i++) claims->claim[i].pace = claims->claim[i].claimed = 1;
    queue->claims = claims;
    pyper__queue_expect_slack(queue, workers * (most - 1));
    return 0;
}

void pyper__claims_free(struct pyper__claims *claims) {
    pyper__free(claims);
}

int64_t pyper__claims_begun(const struct pyper__claims *claims) {
    int64_t begun = 0;
    for (int64_t i = 0; i < claims->count; i++)
        begun += atomic_load_explicit(&claims->claim[i].begun, memory_order_relaxed);
    return begun;
}

static bool has_more(const pyper__claim *claim) {
    return atomic_load(&claim->at) < atomic_load(&claim->end);
}

/* ------------------------------------------------------------------------------ under pop_lock */

static void count_locked(pyper__queue *queue, pyper__claim *claim) {
    int64_t begun = atomic_load_explicit(&claim->begun, memory_order_relaxed);
    queue->counted += begun - claim->noted;
    claim->noted = begun;
}

int64_t pyper__claims_count_locked(pyper__queue *queue) {
    for (int64_t i = 0; i < queue->claims->count; i++)
        count_locked(queue, &queue->claims->claim[i]);
    return queue->counted;
}

/* The owner begins what he has claimed.  Nobody takes it away meanwhile. */
static void begin_locked(pyper__claim *claim, void **ret_item, int64_t *ret_ticket) {
    int64_t at = atomic_load_explicit(&claim->at, memory_order_relaxed);
    *ret_item = claim->items[at % PYPER__CLAIM_MAX];
    *ret_ticket = claim->ticket + at;
    atomic_store_explicit(&claim->at, at + 1, memory_order_relaxed);
    atomic_store_explicit(&claim->begun, at + 1, memory_order_relaxed);
}

/* How many to claim besides the one he has: no more than his share of those that are known to wait
 * (or half of that, where their number is no power of two: a division takes too long under the
 * lock).  So there is something left for who looks while this goes on; and who sleeps has been
 * woken by the push of what is here.  If too few are known he looks for more, unless that is a look
 * at each place. */
static int64_t how_many_more_locked(pyper__queue *queue, const pyper__claim *claim) {
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    int64_t wanted = claim->pace - 1;
    int share = queue->claims->share;
    if ((queue->seen - head) >> share < wanted && !queue->ring)
        queue->seen = atomic_load(&queue->tail);
    return pyper__least((queue->seen - head) >> share, wanted);
}

/* The owner has nothing: 1, or as pyper__queue_try_pop(). */
static int claim_locked(pyper__queue *queue, pyper__claim *claim) {
    int64_t at = atomic_load_explicit(&claim->at, memory_order_relaxed), end = at + 1, ticket, next;
    int rc = pyper__queue_try_pop(queue, &claim->items[at % PYPER__CLAIM_MAX], &ticket);
    if (rc != 1) return rc;
    for (int64_t more = how_many_more_locked(queue, claim); more > 0; more--, end++)
        if (pyper__queue_try_pop(queue, &claim->items[end % PYPER__CLAIM_MAX], &next) != 1) break;
    claim->ticket = ticket - at;
    claim->claimed = end - at;
    atomic_store_explicit(&claim->end, end, memory_order_relaxed);
    return 1;
}

/* Take half of what another one has not begun; false: there is none, or he is just beginning it. */
static bool take_away_locked(pyper__claim *from, pyper__claim *claim) {
    int64_t at = atomic_load(&from->at), end = atomic_load(&from->end);
    if (at >= end) return false;
    int64_t first = at + (end - at) / 2;
    atomic_store(&from->end, first);
    if (!pyper__fence_others() || atomic_load(&from->at) > first) {
        atomic_store(&from->end, end);
        return false;
    }
    int64_t mine = atomic_load_explicit(&claim->at, memory_order_relaxed);
    for (int64_t i = 0; i < end - first; i++)
        claim->items[(mine + i) % PYPER__CLAIM_MAX] = from->items[(first + i) % PYPER__CLAIM_MAX];
    claim->ticket = from->ticket + first - mine;
    claim->claimed = end - first;
    atomic_store(&claim->end, mine + end - first);
    return true;
}

static bool take_from_any_locked(struct pyper__claims *claims, pyper__claim *claim) {
    for (int64_t i = 0; i < claims->count; i++)
        if (take_away_locked(&claims->claim[i], claim)) return true;
    return false;
}

/* ------------------------------------------------------------------------------------- popping */

/* Not while others wait for a token. */
static bool should_stand_back(const pyper__queue *queue, const pyper__claim *claim, int64_t took,
                              const pyper__seat *seat) {
    return took < TINY_NS && claim->claimed == queue->claims->most && !seat->shares_token;
}

/* Returns when it is over. */
static int64_t stand_back(const pyper__queue *queue, pyper__claim *claim, int64_t now) {
    for (int64_t until = now + STAND_BACK_NS; now < until; now = pyper_now()) {
        int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
        if (head == claim->head) break;
        claim->head = head;
        pyper__yield();
    }
    return now;
}

/* How long did the calls of the last ones take? */
static void measure(const pyper__queue *queue, pyper__claim *claim, const pyper__seat *seat) {
    const struct pyper__claims *claims = queue->claims;
    int64_t now = pyper_now(), took = now - claim->since_ns;
    if (should_stand_back(queue, claim, took, seat)) now = stand_back(queue, claim, now);
    if (took < SHORT_NS && claim->claimed == claim->pace)
        claim->pace = pyper__least(claim->pace * 2, claims->most);
    else if (took > MUCH_TOO_LONG_NS)
        claim->pace = 1;
    else if (took > LONG_NS)
        claim->pace = (claim->pace + 1) / 2;
    claim->seldom = took > claim->claimed * SELDOM_NS;
    claim->since_ns = now;
}

static bool any_has_more(const void *arg) {
    const struct pyper__claims *claims = ((const pyper__queue *)arg)->claims;
    for (int64_t i = 0; i < claims->count; i++)
        if (has_more(&claims->claim[i])) return true;
    return false;
}

/* As pyper__queue_try_pop().  `idle`: rather than sleep, take what others have claimed. */
static int try_pop_locked(pyper__queue *queue, pyper__claim *claim, void **ret_item,
                          int64_t *ret_ticket, bool idle) {
    struct pyper__claims *claims = queue->claims;
    bool has_some = has_more(claim);
    /* Whoever cancels says so first, and takes the licence to pop away after that. */
    if (has_some && pyper__queue_state(queue) == PYPER__CANCELLED) return PYPER_ECANCELED;
    int rc = has_some ? 1 : claim_locked(queue, claim);
    if ((rc == 0 || (rc == PYPER__AGAIN && idle)) && take_from_any_locked(claims, claim)) rc = 1;
    /* They are being begun, or will be his who comes again. */
    if (rc == 0 && any_has_more(queue)) rc = PYPER__AGAIN;
    if (rc != 1) return rc;
    begin_locked(claim, ret_item, ret_ticket);
    claim->head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    count_locked(queue, claim);
    if (pyper__unlikely(queue->counted >= queue->give_at))
        pyper__queue_give_back(queue, queue->counted);
    return 1;
}

int pyper__claim_pop(pyper__queue *queue, pyper__claim *claim, void **ret_item, int64_t *ret_ticket,
                     pyper__seat *seat) {
    measure(queue, claim, seat);
    for (bool idle = false;; idle = true) {
        pyper__lock_take(&queue->pop_lock.lock);
        int rc = try_pop_locked(queue, claim, ret_item, ret_ticket, idle);
        int64_t left = atomic_load_explicit(&claim->end, memory_order_relaxed) -
                       atomic_load_explicit(&claim->at, memory_order_relaxed);
        pyper__lock_give(&queue->pop_lock.lock);
        /* What was taken away was nowhere to be seen for a moment, and somebody may have gone to
         * sleep. */
        if (rc == 1 && left > 0 && pyper__event_has_waiters_light(&queue->items))
            pyper__event_notify_slow(&queue->items, (uint32_t)left);
        if (rc != PYPER__AGAIN) return rc;
        pyper__queue_settle(queue);
        pyper__await_rather(seat, &queue->items, pyper__queue_items_or_over, any_has_more, queue,
                            PYPER__STARVED);
    }
}

void pyper__claim_drop(pyper__queue *queue, pyper__claim *claim, pyper__seat *seat) {
    pyper__lock_take(&queue->pop_lock.lock);
    int64_t at = atomic_load(&claim->at), end = atomic_load(&claim->end);
    atomic_store(&claim->end, at);
    pyper__lock_give(&queue->pop_lock.lock);
    for (; at < end; at++)
        pyper__queue_destroy_item(queue, claim->items[at % PYPER__CLAIM_MAX], seat);
}
