/* See pool.h. A helper joins a job by taking its first index, under the lock: one that comes late finds none left, and
 * is nobody to wait for.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "pool.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- when to ask whether to stop --------------------------------------------------------------------------------- */

enum { PATIENCE = 10 * 1000 * 1000 }; /* nanoseconds */

typedef struct {
    int (*stop)(void);
    uint64_t since;
} Question;

static uint64_t nanoseconds(void) { /* the one clock of C11: Windows has it too */
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static Question question(int (*stop)(void)) { return (Question){stop, stop ? nanoseconds() : 0}; }

static int told_to_stop(Question *question) {
    if (!question->stop) return 0;
    if (nanoseconds() - question->since < PATIENCE) return 0; /* unsigned: a clock set back asks at once */
    int answer = question->stop();
    question->since = nanoseconds(); /* from now: the answer may have waited for the interpreter's lock */
    return answer;
}

static int run_alone(int64_t count, pool_work *work, void *context, int (*stop)(void)) {
    Question ask = question(count > 1 ? stop : NULL);
    for (int64_t i = 0; i < count; i++) {
        if (i && told_to_stop(&ask)) return 1;
        work(context, i);
    }
    return 0;
}

#if (defined(__unix__) || defined(__APPLE__)) && !defined(__STDC_NO_ATOMICS__)

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

enum {
    MOST_THREADS = 64,
    STACK = 1 << 20, /* the kernels use 400 KiB */
};

/* One thread at a time owns the pool: it alone sets the job and starts helpers. The lock guards seats and active; it is
 * held for a few instructions only. The job stands still from the time it is set until nobody is active. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t opened, left;
    atomic_int owned;
    int64_t helpers; /* started so far: they never end */
    int64_t seats;   /* how many more may join this job */
    int64_t active;  /* how many have joined and not left */
    pool_work *work;
    void *context;
    int64_t count;
    atomic_int_least64_t next; /* the first index that nobody has begun */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER, .left = PTHREAD_COND_INITIALIZER};

static int64_t take_index(void) { return atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed); }

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

/* Wakes two, each of whom wakes two more: no one thread pays for all the system calls, nor do all depend on one. */
static void wake(int64_t seats) {
    if (seats > 0) pthread_cond_signal(&pool.opened);
    if (seats > 1) pthread_cond_signal(&pool.opened);
}

static void *help(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        int64_t index;
        while (!pool.seats || (index = take_index()) >= pool.count) pthread_cond_wait(&pool.opened, &pool.lock);
        int64_t seats = --pool.seats;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        wake(seats);
        do pool.work(pool.context, index);
        while ((index = take_index()) < pool.count);
        pthread_mutex_lock(&pool.lock);
        if (!--pool.active) pthread_cond_signal(&pool.left);
    }
    return NULL;
}

/* Detached, since nobody ends them, and deaf to signals, which are for the threads of the host: Ctrl-C must not land
 * here. Where the system has no thread to give the job has fewer hands. */
static void start_helpers(int64_t wanted) {
    if (pool.helpers >= wanted) return;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (pool.helpers < wanted && !pthread_create(&thread, &attributes, help, NULL)) pool.helpers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* In the child of a fork. No helper lives here, nor does whoever held the lock or owned the pool at that moment: all of
 * it is as at the start. (The lock is not taken before the fork: then a fork would have to wait.) */
static void start_anew(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.opened, NULL);
    pthread_cond_init(&pool.left, NULL);
    pool.helpers = pool.seats = pool.active = pool.count = 0;
    atomic_store(&pool.owned, 0);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, start_anew); }

/* ---- jobs, by the pool's owner ----------------------------------------------------------------------------------- */

static void open_job(int64_t count, int64_t helpers, pool_work *work, void *context) {
    static pthread_once_t watching = PTHREAD_ONCE_INIT;
    pthread_once(&watching, watch_forks);
    pthread_mutex_lock(&pool.lock);
    pool.work = work;
    pool.context = context;
    pool.count = count;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.seats = helpers;
    pthread_mutex_unlock(&pool.lock);
    wake(helpers);
    start_helpers(helpers);
}

static int take_part(int64_t count, int (*stop)(void)) {
    Question ask = question(stop);
    for (int64_t index; (index = take_index()) < pool.count;) {
        pool.work(pool.context, index);
        if (atomic_load_explicit(&pool.next, memory_order_relaxed) < pool.count && told_to_stop(&ask)) return 1;
    }
    return pool.count != count; /* the child of a fork in `stop`: what helpers had begun is lost to it */
}

static void close_job(void *unused) {
    (void)unused;
    atomic_store_explicit(&pool.next, pool.count, memory_order_relaxed); /* nobody begins another */
    pthread_mutex_lock(&pool.lock);
    while (pool.active) pthread_cond_wait(&pool.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    atomic_store(&pool.owned, 0);
}

int pool_run(int64_t count, int64_t threads, pool_work *work, void *context, int (*stop)(void)) {
    if (threads > count) threads = count;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1 || atomic_exchange(&pool.owned, 1)) return run_alone(count, work, context, stop);
    int stopped;
    open_job(count, threads - 1, work, context);
    /* An interpreter that is shutting down may end this thread inside `stop`, and its stack with it: not while helpers
     * work on it. */
    pthread_cleanup_push(close_job, NULL);
    stopped = take_part(count, stop);
    pthread_cleanup_pop(1);
    return stopped;
}

/* ---- the setting ------------------------------------------------------------------------------------------------- */

static int64_t at_most(int64_t threads) { return threads < MOST_THREADS ? threads : MOST_THREADS; }

/* A positive integer up to the text's end or one of `ends`; else 0. */
static int64_t from_environment(const char *name, const char *ends) {
    const char *text = getenv(name);
    if (!text) return 0;
    char *end;
    long long threads = strtoll(text, &end, 10);
    end += strspn(end, " \t");
    return threads > 0 && (!*end || strchr(ends, *end)) ? at_most(threads) : 0;
}

static int64_t from_system(void) {
#ifdef __linux__
    cpu_set_t cpus;
    if (!sched_getaffinity(0, sizeof cpus, &cpus)) return at_most(CPU_COUNT(&cpus));
#endif
    long cpus_online = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus_online > 0 ? at_most(cpus_online) : 1;
}

static atomic_int_least64_t said, usual; /* 0: nothing said, not read */

int64_t pool_threads(void) {
    int64_t threads = atomic_load(&said);
    if (!threads) threads = atomic_load(&usual);
    if (threads) return threads;
    threads = from_environment("NORMBALL_NUM_THREADS", "");
    if (!threads) threads = from_environment("OMP_NUM_THREADS", ",");
    if (!threads) threads = from_system();
    atomic_store(&usual, threads);
    return threads;
}

void pool_set_threads(int64_t threads) { atomic_store(&said, threads > 0 ? at_most(threads) : 0); }

#else /* no POSIX threads or no C11 atomics: the caller works alone */

int pool_run(int64_t count, int64_t threads, pool_work *work, void *context, int (*stop)(void)) {
    (void)threads;
    return run_alone(count, work, context, stop);
}

int64_t pool_threads(void) { return 1; }

void pool_set_threads(int64_t threads) { (void)threads; }

#endif
