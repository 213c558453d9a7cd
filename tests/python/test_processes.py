"""What happens to whole processes: the end of the interpreter, Ctrl-C, fork, subinterpreters.

Each test runs a program of its own and waits for it to end; a program that hangs fails the test.
"""

from __future__ import annotations

import signal
import sys

import pytest

from helpers import Program, run_program

BEGIN = """
import itertools, os, signal, sys, threading, time
import pyper
from pyper import task
counting = task(itertools.count, branch=True, throttle=100)
"""


def program(source: str) -> str:
    import textwrap

    return BEGIN + textwrap.dedent(source)


threads_at_the_end = pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] <= (3, 12, 1),
    reason="Python 3.12.0 and 3.12.1 start no thread once the main thread has ended",
)


# ------------------------------------------------------------------- the end of the interpreter


def test_a_thread_that_never_began_does_not_keep_the_program() -> None:
    """A handler has raised in its start(), and threading lists it for ever."""
    printed = run_program(
        program("""
        class Interrupt(BaseException):
            pass
        def interrupted(*args, **kwargs):
            raise Interrupt
        # (What starts a thread is called otherwise from Python 3.13 on.)
        thread = threading.Thread(target=print)
        names = ("_start_joinable_thread", "_start_new_thread")
        name = next(name for name in names if hasattr(threading, name))
        real = getattr(threading, name)
        setattr(threading, name, interrupted)
        try:
            thread.start()
        except Interrupt:
            pass
        setattr(threading, name, real)
        print(thread in threading.enumerate())
        outputs = task(itertools.count, branch=True, throttle=1)()
        print(next(outputs))
        """)
    )
    assert printed.splitlines() == ["True", "0"]


@pytest.mark.parametrize("throttle", [0, 1])
def test_a_run_left_in_a_global_lets_the_program_end(throttle: int) -> None:
    printed = run_program(
        program(f"""
        def paced():  # not so fast that it fills the memory
            for i in itertools.count():
                os.sched_yield()
                yield i
        outputs = (task(paced, branch=True, throttle={throttle}) | task(abs, workers=3))()
        print(next(outputs) in (0, 1, 2))
        """)
    )
    assert printed == "True"


def test_runs_left_behind_run_their_finally_blocks() -> None:
    printed = run_program(
        program("""
        def produce():
            try:
                yield from itertools.count()
            finally:
                print("closed")
        outputs = task(produce, branch=True, throttle=1)()
        next(outputs)
        """)
    )
    assert printed == "closed"


def test_many_runs_left_behind() -> None:
    printed = run_program(
        program("""
        left = [(counting | task(abs, throttle=5))() for _ in range(100)]
        print(sum(next(outputs) for outputs in left))
        """)
    )
    assert printed == "0"


def test_the_program_ends_while_workers_begin() -> None:
    printed = run_program(
        program("""
        left = [(counting | task(abs, workers=50))() for _ in range(4)]
        print(sum(next(outputs) >= 0 for outputs in left))
        """)
    )
    assert printed == "4"


def test_a_run_left_in_a_cycle() -> None:
    run_program(
        program("""
        class Owner:
            def __init__(self):
                self.outputs = (counting | task(self.work))()
                next(self.outputs)
            def work(self, x):
                return x
        Owner()
        """)
    )


def test_the_program_ends_by_an_exception() -> None:
    printed, errors, status = Program(
        program("""
        outputs = counting()
        next(outputs)
        raise ValueError("over")
        """)
    ).end()
    assert (printed, status) == ("", 1)
    assert errors.endswith("ValueError: over")


def test_the_program_ends_by_sys_exit_in_a_task() -> None:
    _, errors, status = Program(
        program("""
        for _ in (counting | task(lambda x: sys.exit(3)))():
            pass
        """)
    ).end()
    assert (errors, status) == ("", 3)


def test_the_program_ends_while_a_daemon_thread_waits_for_an_output() -> None:
    printed = run_program(
        program("""
        gate = threading.Event()
        def produce():
            yield 0
            gate.wait(0.5)
            yield from itertools.count()
        outputs = task(produce, branch=True)()
        ready = threading.Event()
        def ask():
            next(outputs)
            ready.set()
            try:
                for _ in outputs:
                    pass
            except pyper.Cancelled:
                pass
        threading.Thread(target=ask, daemon=True).start()
        ready.wait()
        print("end")
        """)
    )
    assert printed == "end"


def test_the_program_ends_while_a_daemon_thread_takes_outputs() -> None:
    printed = run_program(
        program("""
        def take():
            try:
                for _ in (counting | task(abs))():
                    ready.set()
            except pyper.Cancelled:
                pass
        ready = threading.Event()
        threading.Thread(target=take, daemon=True).start()
        ready.wait()
        print("end")
        """)
    )
    assert printed == "end"


def test_the_program_ends_while_daemon_threads_begin_runs_again_and_again() -> None:
    """No thread may come of it: the interpreter would wait for one after the other."""
    printed = run_program(
        program("""
        def insist():
            while True:
                try:
                    for _ in (counting | task(abs))():
                        ready.release()
                except BaseException:
                    if threading.active_count() > 100:
                        os._exit(1)  # before the machine has no threads left
        ready = threading.Semaphore(0)
        for _ in range(3):
            threading.Thread(target=insist, daemon=True).start()
        ready.acquire()
        print("end")
        """)
    )
    assert printed == "end"


@threads_at_the_end
def test_threads_of_the_program_finish_what_they_do() -> None:
    printed = run_program(
        program("""
        go_on = threading.Event()
        def use():
            total = 0
            for x in (task(range, branch=True, throttle=10) | task(abs))(2000):
                total += x
                if x == 1:
                    started.set()
                    go_on.wait(0.2)  # the main thread ends meanwhile
            print(total)
        started = threading.Event()
        threading.Thread(target=use).start()
        started.wait()
        """)
    )
    assert printed == str(sum(range(2000)))


@threads_at_the_end
def test_threads_of_the_program_may_start_runs_after_the_main_thread_has_ended() -> None:
    printed = run_program(
        program("""
        def use():
            threading.main_thread().join()
            print(sum((task(range, branch=True) | task(abs))(100)))
            global left
            left = counting()
            next(left)
        threading.Thread(target=use).start()
        """)
    )
    assert printed == "4950"


@threads_at_the_end
def test_a_thread_of_the_program_leaves_a_run_behind() -> None:
    run_program(
        program("""
        def leave():
            global outputs
            outputs = counting()
            next(outputs)
        thread = threading.Thread(target=leave)
        thread.start()
        """)
    )


def test_a_function_that_runs_pipelines_all_the_time_lets_the_program_end() -> None:
    run_program(
        program("""
        def busy(x):
            while True:
                for _ in (counting | task(abs))():
                    started.set()
        started = threading.Event()
        outputs = (counting | task(busy))()
        asker = threading.Thread(target=lambda: next(outputs, None), daemon=True)
        threading.excepthook = lambda args: None  # the daemon is told: Cancelled
        asker.start()
        started.wait()
        """)
    )


@threads_at_the_end
def test_an_executor_uses_a_pipeline_while_the_program_ends() -> None:
    printed = run_program(
        program("""
        from concurrent.futures import ThreadPoolExecutor
        executor = ThreadPoolExecutor(2)
        pipeline = task(range, branch=True, throttle=3) | task(abs, workers=2)
        for _ in range(4):
            executor.submit(lambda: sys.stdout.write(f"{sum(pipeline(1000))}\\n"))
        """)
    )
    assert printed.split() == [str(sum(range(1000)))] * 4


def test_runs_that_a_function_has_started_end_with_the_program() -> None:
    printed = run_program(
        program("""
        def nested(_):
            runs = [counting() for _ in range(100)]
            for run in runs:
                next(run)
            yield "started"
            for i in runs[-1]:
                time.sleep(0)
        outputs = (task(range, branch=True) | task(nested, branch=True))(1)
        print(next(outputs))
        """)
    )
    assert printed == "started"


def test_outputs_used_by_atexit() -> None:
    printed = run_program(
        program("""
        import atexit
        finished = task(range, branch=True)(3)
        list(finished)
        def leave():
            print(finished.stats()[0].items_out, list(finished))
            finished.close()
        atexit.register(leave)
        """)
    )
    assert printed == "3 []"


@threads_at_the_end
@pytest.mark.parametrize("place", ["a task", "a thread", "a forked child"])
def test_runs_that_atexit_begins_in_threads(place: str) -> None:
    printed = run_program(
        program(f"""
        import atexit
        numbers = task(range, branch=True) | task(abs, workers=2, ordered=True)
        @atexit.register
        def last():
            if "{place}" == "a task":
                print(list((numbers | task(numbers, branch=True))(4)))
                return
            child = "{place}" == "a forked child" and os.fork()
            if not child:
                thread = threading.Thread(target=lambda: print(list(numbers(4))))
                thread.start()
                thread.join()
                if child is not False:
                    sys.stdout.flush()
                    os._exit(0)
            else:
                os.waitpid(child, 0)
        outputs = counting()  # it is cancelled before that
        next(outputs)
        """)
    )
    assert printed == ("[0, 0, 1, 0, 1, 2]" if place == "a task" else "[0, 1, 2, 3]")


def test_outputs_in_objects_that_go_last() -> None:
    printed = run_program(
        program("""
        class Last:
            def __init__(self):
                self.outputs = counting()
                next(self.outputs)
            def __del__(self, write=os.write):  # the module may have gone before
                self.outputs.close()
                write(1, b"closed")
        last = Last()
        sys.last = last
        """)
    )
    assert printed == "closed"


def test_pyper_imported_while_the_interpreter_ends() -> None:
    printed = run_program("""
        import atexit
        @atexit.register
        def late():
            from pyper import task
            print(task(abs).tasks[0].name)
        """)
    assert printed == "abs"


# ------------------------------------------------------------------------------------- Ctrl-C


def interrupted(source: str) -> str:
    """Run a program, interrupt it once it has printed "ready"; what it prints after that."""
    running = Program(program(source))
    running.wait_for("ready")
    running.interrupt()
    printed, errors, status = running.end()
    assert (errors, status) == ("", 0)
    return printed


def test_ctrl_c_while_next_waits() -> None:
    printed = interrupted("""
        gate = threading.Event()
        def produce():
            yield "ready"
            gate.wait(20)
        outputs = task(produce, branch=True)()
        try:
            print(next(outputs), flush=True)
            next(outputs)
        except KeyboardInterrupt:
            print("interrupted", gate.is_set())
        gate.set()
        """)
    assert printed == "interrupted False"


@pytest.mark.parametrize(
    "interrupt", ["_thread.interrupt_main()", "os.kill(os.getpid(), signal.SIGINT)"]
)
def test_after_an_interrupt_in_next_comes_the_end(interrupt: str) -> None:
    printed = run_program(
        program(f"""
        import _thread
        gate = threading.Event()
        def produce():
            yield from range(100)
            {interrupt}
            gate.wait(20)
        outputs = task(produce, branch=True)()
        try:
            print(list(outputs))
        except KeyboardInterrupt:
            print("interrupted", list(outputs), gate.is_set())
        gate.set()
        """)
    )
    assert printed == "interrupted [] False"


@pytest.mark.parametrize("wait", ["next(outputs)", "outputs.close()"])
def test_no_ctrl_c_is_lost_as_a_wait_begins(wait: str) -> None:
    """A process sends it 200 times, at some moment of the 0.1 ms in which the wait begins."""
    printed = run_program(
        program(f"""
        import mmap, random
        board, caller, rounds = mmap.mmap(-1, 1), os.getpid(), 200
        if os.fork() == 0:
            for round in range(rounds):
                while board[0] != round + 1:
                    if os.getppid() != caller:
                        os._exit(1)
                end = time.perf_counter() + random.uniform(0, 1e-4)
                while time.perf_counter() < end:
                    pass
                os.kill(caller, signal.SIGINT)
            os._exit(0)
        late = []
        def produce(gate):
            yield "ready"
            if not gate.wait(20):
                late.append("the wait was over by itself")
        for round in range(rounds):
            gate = threading.Event()
            outputs = task(produce, branch=True)(gate)
            next(outputs)
            try:
                board[0] = round + 1
                {wait}
            except KeyboardInterrupt:
                pass
            else:
                print("no interrupt in round", round)
            gate.set()
            outputs.close()
        print(late, os.WEXITSTATUS(os.wait()[1]))
        """)
    )
    assert printed == "[] 0"


@pytest.mark.parametrize("taken_by", ["the main thread", "another one"])
def test_ctrl_c_when_next_has_waited_for_long(taken_by: str) -> None:
    printed = run_program(
        program(f"""
        gate = threading.Event()
        other = threading.Thread(target=gate.wait, args=(20,))
        other.start()
        if {taken_by == "another one"}:  # it alone does not block the signal
            signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGINT}})
        late = []
        def produce():
            time.sleep(1.6)
            os.kill(os.getpid(), signal.SIGINT)
            if not gate.wait(20):
                late.append("the wait was over by itself")
            yield
        try:
            next(task(produce, branch=True)())
        except KeyboardInterrupt:
            print("interrupted", late)
        gate.set()
        """)
    )
    assert printed == "interrupted []"


def test_a_long_wait_of_the_main_thread_is_a_sleep() -> None:
    printed = run_program(
        program("""
        import resource
        def sleeps():
            return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        def produce():
            yield sleeps
            time.sleep(2)
            yield
        outputs = task(produce, branch=True)()
        next(outputs)
        before = sleeps()
        next(outputs)
        print(sleeps() - before < 20)
        """)
    )
    assert printed == "True"


@pytest.mark.parametrize("kind", ["handler", "loop"])
def test_ctrl_c_while_a_thread_starts_is_heard_once(kind: str) -> None:
    printed = run_program(
        program(f"""
        import asyncio
        import pyper._threads
        start, heard, sent = pyper._threads.WorkerThread.start, [], []
        def start_and_interrupt(self):
            start(self)
            if not sent:
                sent.append(True)
                os.kill(os.getpid(), signal.SIGINT)
        pyper._threads.WorkerThread.start = start_and_interrupt
        numbers = task(range, branch=True)
        async def same(x):
            return x
        async def on_loop():
            told = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, lambda: (heard.append(1), told.set()))
            outputs = [x async for x in (numbers | task(same))(3)]
            await told.wait()
            for _ in range(5):  # once more it would be heard in here
                await asyncio.sleep(0)
            return outputs
        if {kind!r} == "loop":
            outputs = asyncio.run(on_loop())
        else:
            signal.signal(signal.SIGINT, lambda *arguments: heard.append(arguments[0]))
            outputs = list(numbers(3))
        print(outputs, len(sent), len(heard))
        """)
    )
    assert printed == "[0, 1, 2] 1 1"


def test_ctrl_c_while_list_takes_outputs_that_run_no_bytecode() -> None:
    printed = interrupted("""
        import collections
        outputs = (task(itertools.count, branch=True, throttle=10) | task(abs))()
        try:
            print("ready", flush=True)
            collections.deque(outputs, 0)
        except KeyboardInterrupt:
            print("interrupted")
        """)
    assert printed == "interrupted"


def test_ctrl_c_in_a_loop_over_outputs() -> None:
    printed = interrupted("""
        outputs = (task(itertools.count, branch=True, throttle=10) | task(abs))()
        def loop():
            for x in outputs:
                if x == 100:
                    print("ready", flush=True)
        try:
            loop()
        except KeyboardInterrupt:
            outputs.close()
            print("interrupted")
        """)
    assert printed == "interrupted"


INTERRUPT_WHILE_CLOSING = """
gate = threading.Event()
def produce():
    try:
        yield from itertools.count()
    finally:  # reached because the main thread closes
        os.kill(os.getpid(), signal.SIGINT)
        gate.wait(20)
outputs = task(produce, branch=True)()
"""


def test_ctrl_c_while_close_waits() -> None:
    printed = run_program(
        program(
            INTERRUPT_WHILE_CLOSING
            + """
next(outputs)
try:
    outputs.close()
except KeyboardInterrupt:
    print("interrupted", gate.is_set())
gate.set()
outputs.close()
print(threading.active_count())
"""
        )
    )
    assert printed.splitlines() == ["interrupted False", "1"]


@pytest.mark.parametrize("body", ["pass", "raise ValueError"])
def test_ctrl_c_while_leaving_a_with(body: str) -> None:
    printed = run_program(
        program(
            INTERRUPT_WHILE_CLOSING
            + f"""
try:
    with outputs:
        next(outputs)
        {body}
except KeyboardInterrupt as error:
    print("interrupted", gate.is_set(), repr(error.__context__))
gate.set()
"""
        )
    )
    context = {"pass": "None", "raise ValueError": "ValueError()"}[body]
    assert printed == f"interrupted False {context}"


def test_ctrl_c_ends_a_program_that_does_not_expect_it() -> None:
    running = Program(
        program("""
        for x in (counting | task(abs))():
            if x == 100:
                print("ready", flush=True)
        """)
    )
    running.wait_for("ready")
    running.interrupt()
    _, errors, status = running.end()
    assert errors.endswith("KeyboardInterrupt")
    assert status == -signal.SIGINT


def test_a_handler_that_raises_nothing_interrupts_nothing() -> None:
    printed = interrupted("""
        handled = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: handled.set())
        def produce():
            yield 1
            handled.wait(20)
            yield 2
        outputs = task(produce, branch=True)()
        next(outputs)
        print("ready", flush=True)
        print(list(outputs))
        """)
    assert printed == "[2]"


def test_a_handler_may_close_the_outputs() -> None:
    printed = interrupted("""
        signal.signal(signal.SIGINT, lambda *_: outputs.close())
        gate = threading.Event()
        def produce():
            yield 1
            while not outputs.stats()[0].alive == 0:
                yield 2
        outputs = task(produce, branch=True, throttle=1)()
        print("ready", flush=True)
        try:
            for _ in outputs:
                pass
            print("end")
        except pyper.Cancelled:
            print("cancelled")
        """)
    assert printed in ("end", "cancelled")


def test_ctrl_c_at_any_moment_of_a_call() -> None:
    # Runs begin and end all the time; the interrupt comes wherever it comes.
    for _ in range(5):
        printed = interrupted("""
            pipeline = task(range, branch=True) | task(abs, workers=4) | task(abs)
            try:
                print("ready", flush=True)
                while True:
                    assert sorted(pipeline(10)) == list(range(10))
            except KeyboardInterrupt:
                print("interrupted")
            """)
        assert printed == "interrupted"


# --------------------------------------------------------------------------------------- fork

FORK = """
def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            sys.stdout.flush()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    print("child", status)
"""

NO_FORK_WARNING = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"


def forked(source: str) -> list[str]:
    import textwrap

    return run_program(BEGIN + NO_FORK_WARNING + FORK + textwrap.dedent(source)).splitlines()


def test_an_inherited_run_is_dead_in_a_forked_child() -> None:
    printed = forked("""
        outputs = (counting | task(abs, workers=2))()
        next(outputs)
        def work():
            try:
                next(outputs)
            except RuntimeError as error:
                print(error)
            outputs.close()
            with outputs:
                pass
        in_child(work)
        print(next(outputs) >= 0)
        outputs.close()
        """)
    refusal = "these outputs belong to the parent of this forked process; "
    refusal += "call the pipeline again in this one"
    assert printed == [refusal, "child 0", "True"]


def test_deallocation_in_a_forked_child_does_nothing() -> None:
    printed = forked("""
        box = [(counting | task(abs))()]
        next(box[0])
        in_child(box.clear)
        print(next(box[0]))
        """)
    assert printed == ["child 0", "1"]


def test_a_forked_child_may_run_pipelines() -> None:
    printed = forked("""
        pipeline = task(range, branch=True) | task(abs, workers=3, ordered=True)
        unstarted = pipeline(3)
        outputs = counting()
        next(outputs)
        def work():
            print(list(pipeline(4)), list(unstarted))
        in_child(work)
        print(list(unstarted))
        """)
    assert printed == ["[0, 1, 2, 3] [0, 1, 2]", "child 0", "[0, 1, 2]"]


def test_a_forked_child_ends_like_any_program() -> None:
    printed = forked("""
        outputs = counting()
        next(outputs)
        sys.stdout.flush()
        if os.fork() == 0:
            mine = counting()
            next(mine)
            sys.exit()  # with the hooks at the end of the interpreter
        print(os.WEXITSTATUS(os.wait()[1]))
        """)
    assert printed == ["0"]


def test_a_worker_may_fork() -> None:
    printed = forked("""
        def fork(x):
            in_child(lambda: print("in child", x, threading.active_count()))
            return x
        print(list((task(range, branch=True) | task(fork))(2)))
        """)
    assert printed == ["in child 0 1", "child 0", "in child 1 1", "child 0", "[0, 1]"]


def test_a_fork_while_another_thread_starts_a_run() -> None:
    printed = forked("""
        starting, go_on = threading.Event(), threading.Event()
        start = threading.Thread.start
        def slowly(self):
            if self.name == "abs":
                starting.set()
                go_on.wait(20)
            start(self)
        threading.Thread.start = slowly
        outputs = (counting | task(abs))()
        asker = threading.Thread(target=lambda: print(next(outputs)))
        asker.start()
        starting.wait()
        def work():
            try:
                next(outputs)
            except RuntimeError as error:
                print(str(error).split(";")[0])
            outputs.close()
        in_child(work)
        go_on.set()
        asker.join()
        outputs.close()
        """)
    assert printed == ["these outputs belong to the parent of this forked process", "child 0", "0"]


def test_a_fork_while_runs_go_on_in_other_threads() -> None:
    printed = forked("""
        stop = threading.Event()
        def work():
            while not stop.is_set():
                assert len(list((task(range, branch=True) | task(abs))(50))) == 50
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            in_child(lambda: print(len(list(task(range, branch=True)(5)))))
        stop.set()
        for thread in threads:
            thread.join()
        """)
    assert printed == ["5", "child 0"] * 20


# ------------------------------------------------------------------------------ no more threads


def test_a_thread_that_cannot_be_started_is_an_error_that_names_the_task() -> None:
    printed = run_program(
        program("""
        start = threading.Thread.start
        def refuse(self):
            if self.name.startswith("abs-3"):
                raise RuntimeError("can't start new thread")
            start(self)
        threading.Thread.start = refuse
        outputs = (counting | task(abs, workers=5))()
        try:
            for _ in outputs:
                pass
        except RuntimeError as error:
            print("abs" in str(error), repr(error.__cause__))
        print(list(outputs), threading.active_count())
        """)
    )
    assert printed.splitlines() == ["""True RuntimeError("can't start new thread")""", "[] 1"]


def test_an_interrupt_while_threads_are_started() -> None:
    printed = run_program(
        program("""
        start = threading.Thread.start
        def interrupted(self):
            start(self)
            if self.name.startswith("abs-2"):
                raise KeyboardInterrupt
        threading.Thread.start = interrupted
        outputs = (counting | task(abs, workers=4))()
        try:
            next(outputs)
        except KeyboardInterrupt:
            print("interrupted")
        outputs.close()
        print(list(outputs), threading.active_count())
        """)
    )
    assert printed.splitlines() == ["interrupted", "[] 1"]


def test_ctrl_c_while_threads_are_started() -> None:
    """It waits: threading would list a half-started thread for ever."""
    printed = run_program(
        program("""
        import signal
        start = threading.Thread.start
        def interrupted(self):
            if self.name.startswith("abs-2"):
                signal.raise_signal(signal.SIGINT)
                print("it waits")
            start(self)
        threading.Thread.start = interrupted
        outputs = (counting | task(abs, workers=4))()
        try:
            next(outputs)
        except KeyboardInterrupt:
            print("interrupted")
        outputs.close()
        print(list(outputs), threading.active_count())
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """)
    )
    assert printed.splitlines() == ["it waits", "interrupted", "[] 1", "True"]


def test_the_handlers_of_all_signals_wait_while_threads_are_started() -> None:
    """What they raise comes out of next(), one after the other; they are all there again."""
    printed = run_program(
        program("""
        import signal, sys
        class TooLate(Exception):
            pass
        def too_late(number, frame):
            raise TooLate(signal.Signals(number).name)
        hooked = []
        sys.unraisablehook = lambda info: hooked.append(repr(info.exc_value))
        for number in (signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, too_late)
        signal.siginterrupt(signal.SIGUSR1, False)
        start = threading.Thread.start
        def interrupted(self):
            if self.name.startswith("abs-2"):
                for number in (signal.SIGUSR1, signal.SIGALRM):
                    signal.raise_signal(number)
                    print("it waits")
            start(self)
        threading.Thread.start = interrupted
        outputs = (counting | task(abs, workers=4))()
        try:
            next(outputs)
        except TooLate as error:
            print(repr(error), error.__cause__, hooked)
        outputs.close()
        print(list(outputs), threading.active_count())
        print([signal.getsignal(n) is too_late for n in (signal.SIGALRM, signal.SIGUSR1)])

        import ctypes
        action = ctypes.create_string_buffer(256)
        ctypes.CDLL(None).sigaction(signal.SIGUSR1, None, action)
        SA_RESTART, FLAGS = 0x10000000, slice(136, 140)
        print(bool(int.from_bytes(action[FLAGS], sys.byteorder) & SA_RESTART))
        """)
    )
    assert printed.splitlines() == [
        "it waits",
        "it waits",
        """TooLate('SIGUSR1') None ["TooLate('SIGALRM')"]""",
        "[] 1",
        "[True, True]",
        "True",
    ]


def test_handlers_that_raise_at_any_moment_of_a_start() -> None:
    """No worker is left without its thread, which close() would wait for."""
    printed = run_program(
        program("""
        import random, signal
        class TooLate(Exception):
            pass
        armed = False  # another thread may have taken an alarm, and tell Python of it late
        def too_late(number, frame):
            if armed:
                raise TooLate
        signal.signal(signal.SIGALRM, too_late)
        raised = set()
        for _ in range(400):
            outputs = (task(range, branch=True) | task(abs, workers=40))(4)
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
                next(outputs)
            except Exception as error:
                armed = False
                raised.add(repr(error))
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            outputs.close()
        print(raised, threading.active_count(), signal.getsignal(signal.SIGALRM) is too_late)
        """)
    )
    assert printed.splitlines() == ["{'TooLate()'} 1 True"]


def test_what_else_somebody_does_about_signals_stays() -> None:
    """A C library's own handler before Python's, and what a handler sets itself."""
    printed = run_program(
        program("""
        import faulthandler, os, signal, tempfile
        came = []
        def once(number, frame):
            came.append(number)
            signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, another)
        def another(number, frame):
            came.append(number)
        signal.signal(signal.SIGUSR1, another)
        signal.signal(signal.SIGUSR2, once)
        signal.signal(signal.SIGHUP, another)
        log = tempfile.TemporaryFile()
        faulthandler.register(signal.SIGUSR1, file=log, chain=True)
        start = threading.Thread.start
        def with_signal(self):
            signal.raise_signal(signal.SIGUSR2)
            start(self)
        threading.Thread.start = with_signal
        print(list(task(range, branch=True)(2)))
        threading.Thread.start = start
        print(came == [signal.SIGUSR2], signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL)
        signal.raise_signal(signal.SIGUSR1)
        print(came == [signal.SIGUSR2, signal.SIGUSR1], log.seek(0, os.SEEK_END) > 0)
        faulthandler.unregister(signal.SIGUSR1)
        log.close()
        """)
    )
    assert printed.splitlines() == ["[0, 1]", "True True", "True True"]


def test_where_threading_takes_another_thread_for_the_main_one() -> None:
    """The one that has imported it, up to Python 3.12: it may set no handler."""
    printed = run_program("""
        import _thread, os
        ended = _thread.allocate_lock()
        ended.acquire()
        def thread():
            from pyper import task
            print(list(task(range, branch=True)(3)), flush=True)
            ended.release()
        _thread.start_new_thread(thread, ())
        ended.acquire()
        os._exit(0)  # the end of such a program is threading's business
        """)
    assert printed.splitlines() == ["[0, 1, 2]"]


def test_what_is_forked_during_a_start_has_its_handlers() -> None:
    """And none of the signals that have come to its parent meanwhile."""
    printed = run_program(
        program("""
        import os, signal
        came = []
        def came_in(number, frame):
            came.append((os.getpid(), number))
        signal.signal(signal.SIGUSR1, came_in)
        start = threading.Thread.start
        def forking(self):
            signal.raise_signal(signal.SIGUSR1)
            child = os.fork()
            if not child:
                before = list(came)
                signal.raise_signal(signal.SIGUSR1)
                print(before, came == [(os.getpid(), signal.SIGUSR1)], flush=True)
                os._exit(0)
            print(os.waitpid(child, 0)[1])
            start(self)
        threading.Thread.start = forking
        print(list(task(range, branch=True)(2)))
        print(came == [(os.getpid(), signal.SIGUSR1)])
        """)
    )
    assert printed.splitlines() == ["[] True", "0", "[0, 1]", "True"]


def test_an_interrupt_while_threads_are_joined() -> None:
    printed = run_program(
        program("""
        join = threading.Thread.join
        pending = [KeyboardInterrupt]
        def interrupted(self, timeout=None):
            if pending:
                raise pending.pop()
            join(self, timeout)
        threading.Thread.join = interrupted
        outputs = task(range, branch=True)(2)
        try:
            print(list(outputs))
        except KeyboardInterrupt:
            print("interrupted")
        outputs.close()
        print(list(outputs), threading.active_count())
        """)
    )
    assert printed.splitlines() == ["interrupted", "[] 1"]


# --------------------------------------------------------------------------------- subinterpreters


@pytest.mark.skipif(sys.version_info < (3, 13), reason="no way to make one before 3.13")
def test_a_subinterpreter_runs_pipelines_of_its_own() -> None:
    printed = run_program("""
        import _interpreters
        import pyper
        source = '''
        from pyper import task
        print(list((task(range, branch=True) | task(abs, workers=2, ordered=True))(4)))
        import itertools
        left = task(itertools.count, branch=True, throttle=1)()
        next(left)
        '''
        import textwrap
        for _ in range(3):
            interpreter = _interpreters.create()
            error = _interpreters.run_string(interpreter, textwrap.dedent(source))
            assert error is None, error
            _interpreters.destroy(interpreter)
        print(list(pyper.task(abs)(-5)))
        """)
    assert printed.splitlines() == ["[0, 1, 2, 3]"] * 3 + ["[5]"]
