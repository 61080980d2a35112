/* Faults at will, by LD_PRELOAD: the n-th call of a kind on paths under a folder fails, is cut short, or is the last.

   Tests arm it in a process of their own. It counts calls and bytes, and can log each call to a file descriptor. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, SYNC, RENAME, OPEN, TRUNCATE, UNLINK, MKDIR, CHMOD, READ, KINDS };
enum action { NONE, FAIL, SHORT, KILL_BEFORE, KILL_AFTER, KILL_WITHIN, SIGNAL };

static char folder[4096];
static enum kind armed_kind;
static enum action armed;
static int armed_n, armed_value, armed_lasting, logged = -1;
static atomic_int counts[KINDS];
static atomic_long written, budget = -1; /* bytes; what a disk has left, or -1 */

/* Watch `below`; at the n-th call of the kind act: value is an errno or a signal, lasting: at all later calls too. */
void faults_arm(const char *below, int kind, int n, int action, int value, int lasting)
{
    snprintf(folder, sizeof folder, "%s", below);
    armed_kind = kind, armed_n = n, armed = action, armed_value = value, armed_lasting = lasting;
    for (int k = 0; k < KINDS; k++)
        counts[k] = 0;
    written = 0;
}

void faults_budget(long bytes) { budget = bytes; }
void faults_log(int descriptor) { logged = descriptor; }
int faults_count(int kind) { return counts[kind]; }
long faults_written(void) { return written; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void log_call(const char *call, const char *path, const char *other)
{
    REAL(write);
    char line[9000];
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, path, other);
    if (logged >= 0 && real(logged, line, length) != length)
        raise(SIGABRT);
}

static int below(const char *path)
{
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static const char *named(int descriptor, char *buffer, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, size - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

/* What is to happen to this call. */
static enum action meet(enum kind kind, const char *call, const char *path, const char *other)
{
    if (!below(path) && !(*other && below(other)))
        return NONE;
    log_call(call, path, other);
    int n = ++counts[kind];
    if (!armed || kind != armed_kind || (armed_lasting ? n < armed_n : n != armed_n))
        return NONE;
    if (armed == KILL_BEFORE)
        kill(getpid(), SIGKILL);
    if (armed == SIGNAL)
        kill(getpid(), armed_value);
    if (armed == FAIL)
        errno = armed_value;
    return armed;
}

#define CALL(kind, result, name, path, other, ...)          \
    REAL(name);                                             \
    enum action action = meet(kind, #name, path, other);    \
    if (action == FAIL)                                     \
        return -1;                                          \
    result got = real(__VA_ARGS__);                         \
    if (action == KILL_AFTER)                               \
        kill(getpid(), SIGKILL);                            \
    return got;

/* Writes are also cut short, and use up the budget. */
#define WRITE_CALL(name, ...)                                                   \
    REAL(name);                                                                 \
    char path[4096];                                                            \
    if (descriptor == logged || !below(named(descriptor, path, sizeof path)))   \
        return real(descriptor, data, size __VA_ARGS__);                        \
    enum action action = meet(WRITE, "write", path, "");                        \
    if (action == FAIL)                                                         \
        return -1;                                                              \
    if ((action == SHORT || action == KILL_WITHIN) && size > 1)                 \
        size /= 2;                                                              \
    if (budget >= 0 && (long)size > budget)                                     \
        size = budget;                                                          \
    if (!size && budget == 0)                                                   \
        return errno = ENOSPC, -1;                                              \
    ssize_t got = real(descriptor, data, size __VA_ARGS__);                     \
    written += got > 0 ? got : 0;                                               \
    if (budget >= 0 && got > 0)                                                 \
        budget -= got;                                                          \
    if (action == KILL_AFTER || action == KILL_WITHIN)                          \
        kill(getpid(), SIGKILL);                                                \
    return got;

ssize_t write(int descriptor, const void *data, size_t size) { WRITE_CALL(write) }
ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) { WRITE_CALL(pwrite, , at) }
ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) { WRITE_CALL(pwrite64, , at) }

#define BY_DESCRIPTOR(kind, result, name, ...) \
    char path[4096];                           \
    named(descriptor, path, sizeof path);      \
    CALL(kind, result, name, path, "", descriptor __VA_ARGS__)

int fsync(int descriptor) { BY_DESCRIPTOR(SYNC, int, fsync) }
int fdatasync(int descriptor) { BY_DESCRIPTOR(SYNC, int, fdatasync) }
int ftruncate(int descriptor, off_t size) { BY_DESCRIPTOR(TRUNCATE, int, ftruncate, , size) }
int ftruncate64(int descriptor, off64_t size) { BY_DESCRIPTOR(TRUNCATE, int, ftruncate64, , size) }
int fchmod(int descriptor, mode_t mode) { BY_DESCRIPTOR(CHMOD, int, fchmod, , mode) }
ssize_t pread(int descriptor, void *data, size_t size, off_t at) { BY_DESCRIPTOR(READ, ssize_t, pread, , data, size, at) }
ssize_t pread64(int descriptor, void *data, size_t size, off64_t at) { BY_DESCRIPTOR(READ, ssize_t, pread64, , data, size, at) }
ssize_t preadv(int descriptor, const struct iovec *v, int n, off_t at) { BY_DESCRIPTOR(READ, ssize_t, preadv, , v, n, at) }
ssize_t preadv64(int descriptor, const struct iovec *v, int n, off64_t at) { BY_DESCRIPTOR(READ, ssize_t, preadv64, , v, n, at) }

int rename(const char *from, const char *to) { CALL(RENAME, int, rename, from, to, from, to) }
int renameat(int a, const char *from, int b, const char *to) { CALL(RENAME, int, renameat, from, to, a, from, b, to) }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    CALL(RENAME, int, renameat2, from, to, a, from, b, to, flags)
}
int unlink(const char *path) { CALL(UNLINK, int, unlink, path, "", path) }
int rmdir(const char *path) { CALL(UNLINK, int, rmdir, path, "", path) }
int mkdir(const char *path, mode_t mode) { CALL(MKDIR, int, mkdir, path, "", path, mode) }
int chmod(const char *path, mode_t mode) { CALL(CHMOD, int, chmod, path, "", path, mode) }

#define OPEN_CALL(name, ...)                \
    mode_t mode = 0;                        \
    if (flags & O_CREAT) {    \
        va_list rest;                       \
        va_start(rest, flags);              \
        mode = va_arg(rest, mode_t);        \
        va_end(rest);                       \
    }                                       \
    CALL(OPEN, int, name, path, "", __VA_ARGS__)

int open(const char *path, int flags, ...) { OPEN_CALL(open, path, flags, mode) }
int open64(const char *path, int flags, ...) { OPEN_CALL(open64, path, flags, mode) }
int openat(int at, const char *path, int flags, ...) { OPEN_CALL(openat, at, path, flags, mode) }
int openat64(int at, const char *path, int flags, ...) { OPEN_CALL(openat64, at, path, flags, mode) }
