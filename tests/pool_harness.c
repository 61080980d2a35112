/* What test_pool.py hands to the pool as work: it counts what happened, and does not decide what is right. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* ---- the pool, with its threads under our control ---------------------------------------------------------------- */

enum { AS_USUAL, NO_THREADS, LATE_THREADS };
static atomic_int creation = AS_USUAL, late_begin, late_begun;

void harness_threads(int how) { creation = how; }
void harness_let_late_begin(void) { late_begin = 1; }
int harness_late_begun(void) { return late_begun; }

static void pause_ms(double ms) {
    struct timespec time = {(time_t)(ms / 1000), (long)(ms * 1e6) % 1000000000};
    nanosleep(&time, NULL);
}

static void *(*late_start)(void *);

static void *begin_late(void *argument) {
    while (!late_begin) pause_ms(1);
    late_begun++;
    return late_start(argument);
}

static int create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    if (creation == NO_THREADS) return EAGAIN;
    late_start = start;
    return pthread_create(thread, attributes, creation == LATE_THREADS ? begin_late : start, argument);
}

#define pthread_create create
#include "pool.c"
#undef pthread_create

/* ---- work -------------------------------------------------------------------------------------------------------- */

enum { MOST_SEEN = 128 };

typedef struct {
    int32_t *runs;          /* of each index */
    double ms;              /* how long an index lasts */
    int64_t meeting;        /* each index waits until so many have begun; 0: it does not */
    int64_t inner;          /* each index runs the pool for so many more */
    _Atomic int64_t begun, ended, inner_ran, inner_elsewhere, missed;
    _Atomic int64_t seen;   /* threads */
    _Atomic(uintptr_t) threads[MOST_SEEN];
    atomic_int open;        /* indices of harness_wait end then */
    uintptr_t impatient;    /* the thread whose end when so many as are to meet have begun */
} Log;

static uintptr_t me(void) { return (uintptr_t)pthread_self(); }

static void see(Log *log) {
    for (int i = 0; i < MOST_SEEN; i++) {
        uintptr_t nobody = 0;
        if (log->threads[i] == me()) return;
        if (log->threads[i] == 0 && atomic_compare_exchange_strong(&log->threads[i], &nobody, me())) {
            log->seen++;
            return;
        }
    }
}

typedef struct {
    Log *log;
    uintptr_t thread;
} Inner;

static void inner_work(void *context, int64_t index) {
    const Inner *inner = context;
    (void)index;
    inner->log->inner_ran++;
    inner->log->inner_elsewhere += inner->thread != me();
}

void harness_work(void *context, int64_t index) {
    Log *log = context;
    log->begun++;
    see(log);
    for (int wait = 0; log->begun < log->meeting; wait++) {
        if (wait == 5000) {
            log->missed++;
            break;
        }
        pause_ms(1);
    }
    if (log->ms) pause_ms(log->ms);
    if (log->inner) {
        Inner inner = {log, me()};
        pool_run(log->inner, 4, inner_work, &inner, NULL);
    }
    log->runs[index]++;
    log->ended++;
}

void harness_wait(void *context, int64_t index) {
    Log *log = context;
    log->begun++;
    while (!log->open && !(me() == log->impatient && log->begun == log->meeting)) pause_ms(1);
    log->runs[index]++;
    log->ended++;
}

static void no_work(void *context, int64_t index) {
    (void)context;
    (void)index;
}

void harness_hammer(const Log *log) {
    while (!log->open) pool_run(2, 2, no_work, NULL, NULL);
}

/* ---- stops ------------------------------------------------------------------------------------------------------- */

static _Thread_local struct {
    int asked, yes_after;
} here; /* so a stop that is asked on another thread is not counted */

static int stop(void) { return ++here.asked > here.yes_after; }

static int stop_by_exit(void) { pthread_exit(NULL); }

static pid_t child;

static int stop_by_fork(void) {
    if (!here.asked++) child = fork();
    return 0;
}

/* Returns what pool_run does; *asked: how often `stop` was, before it said yes the time after `yes_after`. */
int harness_run(int64_t count, int64_t threads, Log *log, int yes_after, int *asked) {
    here.asked = 0;
    here.yes_after = yes_after;
    int stopped = pool_run(count, threads, harness_work, log, stop);
    *asked = here.asked;
    return stopped;
}

typedef struct {
    int64_t count, threads;
    Log *log;
} Run;

static void *run_and_exit(void *argument) {
    Run *run = argument;
    pool_run(run->count, run->threads, harness_work, run->log, stop_by_exit);
    return argument;
}

/* 0 where the thread that ran the pool ended inside `stop`. */
int harness_run_and_exit(int64_t count, int64_t threads, Log *log) {
    Run run = {count, threads, log};
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, run_and_exit, &run)) return -1;
    pthread_join(thread, &result);
    return result != NULL;
}

/* Returns twice; *is_child says where. */
int harness_run_and_fork(int64_t count, int64_t threads, Log *log, int64_t *pid) {
    here.asked = 0;
    int stopped = pool_run(count, threads, harness_work, log, stop_by_fork);
    *pid = child;
    return stopped;
}
