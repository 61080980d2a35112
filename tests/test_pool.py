"""The kernels' thread pool, driven through ctypes: each law runs in a process of its own, which must end in time.

`pool_harness.c` is compiled with the pool for it: work and stops written in C, since the pool knows no Python. A law
is a function here; the test calls this file as a script with the law's name.
"""

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "src" / "normball" / "kernels"
SECONDS = 60  # for a law that takes about one
NEVER = 2**31 - 1
AS_USUAL, NO_THREADS, LATE_THREADS = range(3)


# ---- the pool --------------------------------------------------------------------------------------------------------


class Log(ctypes.Structure):
    """What the harness's work reads and writes; see there."""

    _fields_ = (
        ("runs", ctypes.POINTER(ctypes.c_int32)),
        ("ms", ctypes.c_double),
        ("meeting", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("begun", ctypes.c_int64),
        ("ended", ctypes.c_int64),
        ("inner_ran", ctypes.c_int64),
        ("inner_elsewhere", ctypes.c_int64),
        ("missed", ctypes.c_int64),
        ("seen", ctypes.c_int64),
        ("threads", ctypes.c_void_p * 128),
        ("open", ctypes.c_int),
        ("impatient", ctypes.c_void_p),
    )

    def __init__(self, count, **settings):
        self.array = (ctypes.c_int32 * max(count, 1))()
        super().__init__(runs=self.array, **settings)

    def check(self, count):
        """Each index once."""
        assert list(self.array)[:count] == [1] * count, list(self.array)
        assert self.begun == self.ended == count, (self.begun, self.ended)
        assert self.missed == 0, f"{self.missed} waited in vain for helpers"


class Pool:
    """The compiled pool; nothing of it holds the GIL."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.pool_threads.restype = ctypes.c_int64

    def run(self, count, threads, log, work="harness_work"):
        address = ctypes.cast(getattr(self.library, work), ctypes.c_void_p)
        i64 = ctypes.c_int64
        return self.library.pool_run(i64(count), i64(threads), address, ctypes.byref(log), None)

    def run_asking(self, count, threads, log, yes_after=NEVER):
        """What pool_run returns, and how often it asked."""
        asked = ctypes.c_int()
        arguments = ctypes.c_int64(count), ctypes.c_int64(threads), ctypes.byref(log), yes_after, ctypes.byref(asked)
        return self.library.harness_run(*arguments), asked.value

    def check(self, count=40, threads=4):
        log = Log(count)
        assert self.run(count, threads, log) == 0
        log.check(count)

    def check_together(self, threads):
        """All of them are at work at one moment."""
        log = Log(threads, meeting=threads)
        assert self.run(threads, threads, log) == 0
        log.check(threads)
        assert log.seen == threads

    def threads(self):
        return self.library.pool_threads()

    def set_threads(self, threads):
        self.library.pool_set_threads(ctypes.c_int64(threads))


def in_threads(*functions):
    """Runs them side by side; the first error is raised here."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_child(function):
    """Forks; the child has ten seconds for `function`, and its failure is one here."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"the child of a fork: status {status}"
        return
    signal.alarm(10)
    try:
        function()
        os._exit(0)
    except BaseException as error:
        print(f"the child of a fork: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


def tasks():
    return set(os.listdir("/proc/self/task"))


def task_status(task):
    lines = Path(f"/proc/self/task/{task}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


# ---- the laws --------------------------------------------------------------------------------------------------------


def each_index_once(pool):
    for count, threads in itertools.product([0, 1, 2, 3, 7, 64, 65, 1000, 20011], [-1, 0, 1, 2, 3, 8, 64, 1000]):
        pool.check(count, threads)
    log = Log(0)
    assert pool.run(-1, 4, log) == 0
    log.check(0)


def all_threads_work_together(pool):
    for threads in [2, 4, 3, 16, 2, 64]:
        for _ in range(10):
            pool.check_together(threads)
        time.sleep(0.01)  # the next finds the helpers asleep
        pool.check_together(threads)


def no_more_threads_than_asked_for(pool):
    pool.check_together(16)
    for threads in [1, 2, 5]:
        log = Log(100, ms=0.2)
        assert pool.run(100, threads, log) == 0
        log.check(100)
        assert log.seen <= threads, log.seen
    log = Log(200, ms=1)
    assert pool.run(200, 1000, log) == 0
    assert log.seen <= 64, log.seen


def short_calls_start_no_helper(pool):
    before = tasks()
    pool.check(1000, 1)
    pool.check(1, 8)
    pool.check(0, 8)
    assert tasks() == before
    pool.check(2, 8)
    assert len(tasks() - before) == 1, "more helpers than indices to share"


def works_alone_without_threads(pool):
    pool.library.harness_threads(NO_THREADS)
    log = Log(50)
    assert pool.run(50, 8, log) == 0
    log.check(50)
    assert log.seen == 1
    pool.library.harness_threads(AS_USUAL)
    pool.check_together(8)


def a_late_helper_is_not_waited_for(pool):
    before = tasks()
    pool.library.harness_threads(LATE_THREADS)
    for _ in range(3):
        log = Log(50)
        assert pool.run(50, 4, log) == 0  # would hang: the helpers begin after it
        log.check(50)
    pool.library.harness_let_late_begin()
    wait_for(lambda: pool.library.harness_late_begun() == 3)
    assert len(tasks() - before) == 3
    log.check(50)
    pool.check_together(4)


def several_callers_at_once(pool):
    def caller(count, threads):
        def call():
            for _ in range(300):
                pool.check(count, threads)

        return call

    in_threads(*[caller(count, threads) for count in (2, 3, 50) for threads in (1, 2, 5)])


def a_busy_pool_is_not_waited_for(pool):
    log = Log(3)
    first = threading.Thread(target=lambda: pool.run(3, 3, log, "harness_wait"))
    first.start()
    wait_for(lambda: log.begun == 3)
    second = Log(100)
    assert pool.run(100, 4, second) == 0
    second.check(100)
    assert second.seen == 1
    log.open = 1
    first.join()
    log.check(3)
    pool.check_together(3)


def work_that_runs_the_pool(pool):
    for threads in [1, 2, 4]:
        log = Log(40, inner=5)
        assert pool.run(40, threads, log) == 0
        log.check(40)
        assert log.inner_ran == 40 * 5
        if threads > 1:
            assert log.inner_elsewhere == 0, "the pool was busy, with this very job"


def a_stop_finishes_what_had_begun(pool):
    for threads, yes_after in itertools.product([1, 2, 4], [0, 3]):
        log = Log(100_000, ms=1)
        stopped, asked = pool.run_asking(100_000, threads, log, yes_after)
        assert stopped == 1
        assert asked == yes_after + 1
        runs = list(log.array)
        assert log.begun == log.ended == sum(runs) < 100_000
        assert max(runs) == 1
        assert threads > 1 or runs[: log.ended] == [1] * log.ended
        time.sleep(0.02)
        assert list(log.array) == runs, "an index began after the call"
        pool.check_together(threads)


def stops_are_asked_every_ten_ms(pool):
    pool.check_together(4)
    # The thread that calls is alone asked: `asked` counts that thread's.
    for count, threads, ms in [(100, 1, 1), (100, 4, 4), (20, 3, 15), (2000, 2, 0.05), (3000, 1, 0)]:
        log = Log(count, ms=ms)
        start = time.perf_counter()
        stopped, asked = pool.run_asking(count, threads, log)
        passed = time.perf_counter() - start
        assert stopped == 0
        log.check(count)
        assert asked <= passed / 0.01, (asked, passed)
        if count * ms >= 100 * threads:  # each was to last long enough for several
            assert asked >= 1
    log = Log(1, ms=30)
    assert pool.run_asking(1, 4, log, 0) == (0, 0), "nothing is left to stop"


def a_thread_that_ends_inside_stop(pool):
    for threads in [1, 2, 4]:
        log = Log(100_000, ms=1)
        assert (
            pool.library.harness_run_and_exit(ctypes.c_int64(100_000), ctypes.c_int64(threads), ctypes.byref(log)) == 0
        )
        assert log.begun == log.ended < 100_000, "helpers work on, on the stack of a thread that is no more"
        pool.check_together(4)


def fork_while_helpers_sleep(pool):
    def child():
        assert len(tasks()) == 1
        for _ in range(5):
            pool.check()
            pool.check_together(4)
        in_child(lambda: pool.check_together(3))

    pool.check_together(4)
    for _ in range(10):
        in_child(child)
        pool.check_together(4)


def fork_while_helpers_work(pool):
    def child():
        for threads in (4, 2, 8):
            pool.check_together(threads)
        for _ in range(10):
            pool.check(3, 3)

    for caller_waits in (False, True):  # for its helpers, or works itself
        log = Log(4, meeting=4)

        def call(log=log, caller_waits=caller_waits):
            log.impatient = threading.get_ident() if caller_waits else None
            pool.run(4, 4, log, "harness_wait")

        first = threading.Thread(target=call)
        first.start()
        wait_for(lambda log=log: log.begun == 4)
        wait_for(lambda log=log, wanted=caller_waits: log.ended == wanted)
        time.sleep(0.01)
        in_child(child)
        in_threads(*[lambda: in_child(child)] * 4)  # from other threads than the first
        log.open = 1
        first.join()
        log.check(4)
        pool.check_together(4)


def fork_at_any_moment(pool):
    log = Log(0)

    def forks():
        try:
            for _ in range(80):
                in_child(lambda: [pool.check_together(threads) for threads in (3, 2)])
        finally:
            log.open = 1

    hammer = pool.library.harness_hammer
    in_threads(lambda: hammer(ctypes.byref(log)), lambda: hammer(ctypes.byref(log)), forks)


def fork_inside_stop(pool):
    log = Log(60, ms=2)
    pid = ctypes.c_int64()
    stopped = pool.library.harness_run_and_fork(
        ctypes.c_int64(60), ctypes.c_int64(3), ctypes.byref(log), ctypes.byref(pid)
    )
    if pid.value == 0:  # helpers' indices are lost to the child: it may not take them for done
        signal.alarm(10)
        try:
            assert stopped == 1
            pool.check_together(3)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid.value, 0)[1] == 0
    assert stopped == 0
    log.check(60)


def helpers_sleep_between_jobs(pool):
    def figures():
        found = {task: task_status(task) for task in helpers}
        assert all(status["State"].startswith("S") for status in found.values()), found
        switches = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
        return {
            task: ([status[name] for name in switches], Path(f"/proc/self/task/{task}/stat").read_text().split()[13:15])
            for task, status in found.items()
        }

    before = tasks()
    pool.check_together(4)
    helpers = tasks() - before
    assert len(helpers) == 3
    wait_for(lambda: all(task_status(task)["State"].startswith("S") for task in helpers))
    time.sleep(0.05)
    first = figures()
    time.sleep(0.2)
    assert figures() == first, "a helper ran, with nothing to do"


def helpers_hear_no_signal(pool):
    before = tasks()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pool.check_together(4)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask, "the caller's own mask changed"
    wanted = sum(1 << (number - 1) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    for task in tasks() - before:
        assert int(task_status(task)["SigBlk"], 16) & wanted == wanted


def the_process_ends_with_helpers_at_work(pool):
    log = Log(4)
    threading.Thread(target=lambda: pool.run(4, 4, log, "harness_wait"), daemon=True).start()
    wait_for(lambda: log.begun == 4)
    globals()["kept"] = log  # by the module: helpers read it until the end


def the_setting(pool):
    default = pool.threads()
    assert default == int(os.environ.get("EXPECTED_THREADS", min(len(os.sched_getaffinity(0)), 64)))
    for said, then in [(3, 3), (1, 1), (64, 64), (65, 64), (2**40, 64), (0, default), (5, 5), (-1, default)]:
        pool.set_threads(said)
        assert pool.threads() == then
    os.environ["NORMBALL_NUM_THREADS"] = "63"  # read once
    pool.set_threads(0)
    assert pool.threads() == default


def the_cpus_it_may_run_on(pool):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    assert pool.threads() == 1


LAWS = [
    each_index_once,
    all_threads_work_together,
    no_more_threads_than_asked_for,
    short_calls_start_no_helper,
    works_alone_without_threads,
    a_late_helper_is_not_waited_for,
    several_callers_at_once,
    a_busy_pool_is_not_waited_for,
    work_that_runs_the_pool,
    a_stop_finishes_what_had_begun,
    stops_are_asked_every_ten_ms,
    a_thread_that_ends_inside_stop,
    fork_while_helpers_sleep,
    fork_while_helpers_work,
    fork_at_any_moment,
    fork_inside_stop,
    helpers_sleep_between_jobs,
    helpers_hear_no_signal,
    the_process_ends_with_helpers_at_work,
    the_setting,
    the_cpus_it_may_run_on,
]


if __name__ == "__main__":  # as a script: one law
    {law.__name__: law for law in LAWS}[sys.argv[2]](Pool(sys.argv[1]))
    sys.exit()


# ---- the tests -------------------------------------------------------------------------------------------------------

import pytest  # noqa: E402 - the laws do without

ENVIRONMENTS = [
    ({"NORMBALL_NUM_THREADS": "3"}, 3),
    ({"NORMBALL_NUM_THREADS": " 5 ", "OMP_NUM_THREADS": "7"}, 5),
    ({"OMP_NUM_THREADS": "7"}, 7),
    ({"OMP_NUM_THREADS": "6,3,2"}, 6),
    ({"OMP_NUM_THREADS": "6 , 3"}, 6),
    ({"NORMBALL_NUM_THREADS": "0", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "-2", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "many", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "4,2", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "4.5", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "", "OMP_NUM_THREADS": "7"}, 7),
    ({"NORMBALL_NUM_THREADS": "1000"}, 64),
    ({"NORMBALL_NUM_THREADS": "99999999999999999999"}, 64),
    ({"NORMBALL_NUM_THREADS": "", "OMP_NUM_THREADS": ",2"}, None),
    ({"OMP_NUM_THREADS": "0"}, None),
    ({}, None),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("left out: the laws of the thread pool read Linux's /proc")
    compiler = next(
        filter(shutil.which, [*(sysconfig.get_config_var("CC") or "").split()[:1], "cc", "gcc", "clang"]), None
    )
    if compiler is None:
        pytest.skip("left out: the laws of the thread pool need a C compiler")
    path = tmp_path_factory.mktemp("pool") / "pool.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC", f"-I{KERNELS}"]
    subprocess.run([compiler, *flags, Path(__file__).with_name("pool_harness.c"), "-o", path], check=True)
    return path


def run_law(law, library, environment):
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, __file__, library, law.__name__],
        env=clean | environment,
        timeout=SECONDS,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"status {run.returncode}\n{run.stderr}"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_pool(law, library):
    run_law(law, library, {})


@pytest.mark.parametrize("environment, threads", ENVIRONMENTS)
def test_the_setting_at_first(environment, threads, library):
    run_law(the_setting, library, environment | ({"EXPECTED_THREADS": str(threads)} if threads else {}))


@pytest.mark.parametrize("flags", [["-std=c11"], ["-std=c11", "-U__unix__", "-U__APPLE__"]], ids=["threads", "alone"])
def test_compiles_without_a_warning(flags, library, tmp_path):
    compiler = next(filter(shutil.which, ["cc", "gcc", "clang"]))
    strict = ["-O3", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", KERNELS / "pool.c", "-o", tmp_path / "pool.o"]
    subprocess.run([compiler, *flags, *strict], check=True)
