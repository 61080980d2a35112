/* The kernels' threads: a few helpers that sleep between jobs, and the caller, who always works too. Knows no Python.
 *
 * Any thread may call these at any time, several at once, and in the child of a fork: nothing waits but pool_run, and
 * that only for indices that a helper has begun.
 */
#ifndef NORMBALL_POOL_H
#define NORMBALL_POOL_H

#include <stdint.h>

/* Runs on any thread, in any order, in whatever floating-point mode that thread has; 1 MiB of stack; does not fork. */
typedef void pool_work(void *context, int64_t index);

/* Runs work(context, 0) .. work(context, count - 1), each once, on the calling thread and up to threads - 1 helpers; on
 * the calling thread alone while the pool has another job, such as the one whose work makes this call.
 *
 * Returns 0 when all ran; 1 where stop said so: what had begun is finished then, what had not is not begun. `stop` may
 * be NULL. It is asked on the calling thread, between indices, after each 10 ms: in short calls never. */
int pool_run(int64_t count, int64_t threads, pool_work *work, void *context, int (*stop)(void));

/* How many threads to use, 1 to 64, as pool_set_threads said. At first, and after pool_set_threads(0): the
 * environment's NORMBALL_NUM_THREADS, else its OMP_NUM_THREADS, else the number of CPUs this process may run on; read
 * once, at first use. */
int64_t pool_threads(void);
void pool_set_threads(int64_t threads);

#endif
