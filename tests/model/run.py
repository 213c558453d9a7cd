#!/usr/bin/env python3
"""Explores the engine's wait/wake protocol in every order, and shows that it would find a mistake.

usage: run.py BUILD [--cc COMPILER] [--all] [--seed N] [--only WORD]

The models (model_*.c) run the code of src/ itself, see explorer.h; it is copied into the folder
BUILD with a few constants made small, so that chunks end and nobody yields before sleeping.

How far each scenario is explored (which is printed, with the number of states):

  every order             all of it; most scenarios are small enough
  at most N pre-emptions  all orders in which at most N times somebody has to stop where he could
                          have gone on.  Changes of thread where one sleeps, waits for a lock, ends
                          or dies are not counted, nor when a store reaches memory.  For what has
                          many threads (Model.bounds says which); --all takes larger bounds, or
                          none, and more than half an hour
  at random               whole runs, too large for either; from a seed that is printed

Each scenario is explored with store buffers.  What happens with memory in one order happens with
them, too, where each store reaches memory at once; so that alone is for what runs at random, and
for --all.

Then each of the mistakes in the file `mutations` is made in a copy, and the explorer has to find
it, within two pre-emptions; those that only store buffers show must not be found without them.

Prints a line for each scenario and mutation, and "N passed, N failed" at the end.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

Edits = tuple[tuple[str, str, str], ...]

# Constants of the engine as the models have them: file, text, what stands there instead.
SMALL: Edits = (
    ("park.c", "#define YIELDS_MAX 50", "#define YIELDS_MAX 0"),
    ("park.c", "if (yields != 0 && yields != YIELDS_UNTRIED) return yields;", "return 0;"),
    ("park.c", "#define LOCK_YIELDS 3", "#define LOCK_YIELDS 0"),
    ("park.c", "#define LOCK_RELAXES 4", "#define LOCK_RELAXES 1"),
    ("park.c", "#define CAREFUL (16 * ONE_IN_VAIN)", "#define CAREFUL (1 * ONE_IN_VAIN)"),
    ("queue.h", "#define PYPER__CHUNK_SIZE 4096", "#define PYPER__CHUNK_SIZE 40"),
    ("claim.h", "#define PYPER__CLAIM_MAX 16", "#define PYPER__CLAIM_MAX 4"),
    ("lane.c", "#define CHUNK_FIRST ((uint64_t)4096)", "#define CHUNK_FIRST ((uint64_t)56)"),
    ("lane.c", "#define CHUNK ((uint64_t)65536)", "#define CHUNK ((uint64_t)56)"),
    ("channel.c", "#define HAND_BYTES 4096", "#define HAND_BYTES 64"),
    ("channel.h", "#define PYPER__HAND_ITEMS 64", "#define PYPER__HAND_ITEMS 2"),
    ("lane.h", "#define PYPER__RECORD_BYTES 512", "#define PYPER__RECORD_BYTES 16"),
    ("shm.h", "#define PYPER__SHM_FIRST ((uint64_t)4096)",
     "#define PYPER__SHM_FIRST ((uint64_t)1472)"),
)  # fmt: skip

# Whole runs.
EVERYTHING = tuple(sorted(p.name for p in (ROOT / "src").glob("*.c") if p.name != "os.c"))
ONE_THREAD: Edits = (
    ("park.c", "#define YIELDS_MAX 50", "#define YIELDS_MAX 2"),
    # Time stands still.
    ("park.c", "#define SOON_NS 50000", "#define SOON_NS (-1)"),
    ("queue.h", "#define PYPER__CHUNK_SIZE 4096", "#define PYPER__CHUNK_SIZE 32"),
)  # fmt: skip

# The queue's model takes the lock for granted: park's model is about it.
TAKE = "static inline void pyper__lock_take(pyper__lock *lock) {"
PATIENTLY = "static inline void pyper__lock_take_patiently(pyper__lock *lock) {"
GIVE = "static inline void pyper__lock_give(pyper__lock *lock) {"
TAKE_OWNED = "static inline bool pyper__owned_lock_take(pyper__owned_lock *lock) {"
DECLARE = "void model_lock(void *lock);\nvoid model_unlock(void *lock);\n"
SIMPLE_LOCK: Edits = (
    ("park.h", TAKE, f"{DECLARE}{TAKE}\n    model_lock(lock);\n    return;"),
    ("park.h", PATIENTLY, f"{PATIENTLY}\n    model_lock(lock);\n    return;"),
    ("park.h", GIVE, f"{GIVE}\n    model_unlock(lock);\n    return;"),
    ("park.h", TAKE_OWNED, f"{TAKE_OWNED}\n    model_lock(&lock->lock);\n    return false;"),
)


@dataclass(frozen=True)
class Model:
    """A model: the sources of src/ it is linked with, and what is changed in its copy."""

    sources: tuple[str, ...]
    edits: Edits = SMALL
    flags: tuple[str, ...] = ()
    #: Of scenarios that are too large for every order: how many pre-emptions; and with --all,
    #: where None is any number.
    bounds: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    #: How many runs at random, if it is too large for all that; with --all ten times as many.
    runs: int = 0

    def bound(self, scenario: str, everything: bool) -> list[str]:
        usual, larger = self.bounds.get(scenario, (None, None))
        most = larger if everything else usual
        return [] if most is None else ["--preemptions", str(most)]


# A mutex of the system: the explorer has one that knows of deaths.
MUTEX = (
    "-Dpthread_mutex_init=model_mutex_init",
    "-Dpthread_mutex_lock=model_mutex_lock",
    "-Dpthread_mutex_unlock=model_mutex_unlock",
    "-Dpthread_mutex_consistent=model_mutex_consistent",
)

# The lock between processes, tried once before its taker sleeps.  For how long says the scenario.
SHARED_LOCK: Edits = (
    ("park.c", "#define TRIES 64", "#define TRIES 1"),
    ("park.c", "#define LOOK_AGAIN_NS 10000000",
     "int64_t model_look_again_ns(void);\n#define LOOK_AGAIN_NS model_look_again_ns()"),
)  # fmt: skip

MODELS = {
    "park": Model(
        ("park.c",),
        SMALL + SHARED_LOCK,
        flags=(*MUTEX, "-Dpthread_mutex_trylock=model_mutex_trylock"),
        bounds={
            "owned_lock_of_three": (2, None),
            "shared_lock_of_three": (4, 6),
        },
    ),
    # Where two wait for the same event there is no end of orders: each may go on waking the other.
    "queue": Model(
        ("park.c", "queue.c", "claim.c", "order.c", "ring.c"),
        (
            *SMALL,
            *SIMPLE_LOCK,
            ("order.c", "#define SIZE_MIN 64", "#define SIZE_MIN 1"),
            ("ring.c", "#define SIZE_MIN 64", "#define SIZE_MIN 1"),
            ("ring.h", "#define PYPER__RING_EVENTS 64", "#define PYPER__RING_EVENTS 2"),
            ("claim.c", "queue->limit / 4 / workers", "queue->limit"),
            ("claim.c", "#define LEAST 8", "#define LEAST 2"),
        ),
        bounds={
            "two_producers_bound_of_2": (2, 3),
            "two_consumers": (2, 3),
            "two_consumers_bound_of_1": (2, 3),
            "two_interrupted": (2, 3),
            "close_against_two_producers": (2, 4),
            "claims": (2, 3),
            "claims_bound_of_2": (2, 3),
            "claims_taken_away": (2, 3),
            "claims_taken_away_at_the_end": (2, 3),
            "claims_of_two": (3, None),
            "claims_of_three": (2, 3),
            "claims_cancelled": (2, 3),
            "ordered_branching": (2, 3),
            "ordered_bound_of_1": (2, None),
            "ordered_bound_of_2": (1, 2),
            "ordered_close": (2, 3),
            "ordered_one_each": (2, 3),
            "ordered_one_each_window_of_1": (2, None),
            "ordered_one_each_bound_of_1": (2, None),
            "ordered_one_each_bound_of_2": (2, 3),
            "ordered_waits_for_an_answer": (3, None),
            "ordered_for_two_consumers": (2, 3),
            "ordered_one_each_close": (2, 3),
            "drawn": (2, 3),
            "drawn_bound_of_1": (2, 3),
            "drawn_for_two_consumers": (2, 3),
            "drawn_when_it_ends": (2, 3),
            "drawn_close": (2, 3),
        },
    ),
    # It takes the lock between processes for granted, too: trying its mutex waits until it is free.
    "channel": Model(
        ("park.c", "lane.c"),
        SMALL + SIMPLE_LOCK,
        flags=(*MUTEX, "-Dpthread_mutex_trylock=model_mutex_lock"),
        bounds={
            "two_producers": (2, None),
            "two_consumers": (2, 3),
            "two_consumers_bound_of_1": (1, 2),
            "producer_dies": (2, None),
            "one_of_two_producers_dies": (1, 2),
            "consumer_dies": (2, None),
            "one_of_two_consumers_dies": (1, 2),
            "ordered": (2, None),
        },
    ),
    "runs": Model(EVERYTHING, ONE_THREAD, runs=5000),
}


@dataclass(frozen=True)
class Mutation:
    """A mistake: where it is made, and which scenario of which model finds it."""

    what: str
    model: str
    scenario: str
    store_buffers: bool  # it is one only with them
    edits: Edits


def read_mutations() -> list[Mutation]:
    found = []
    for section in (HERE / "mutations").read_text().split("\n== ")[1:]:
        head, *places = section.split("\n--- ")
        what, where = head.splitlines()
        model, scenario, *flags = where.split()
        edits = []
        for place in places:
            file, _, text = place.partition("\n")
            old, _, new = f"{text.rstrip()}\n".partition("+++\n")
            edits.append((file, old, new))
        found.append(Mutation(what, model, scenario, flags == ["store-buffers"], tuple(edits)))
    return found


class Builder:
    """Builds models in a folder, and takes for a mutation what it leaves as it is."""

    def __init__(self, folder: Path, compiler: list[str]) -> None:
        self.folder = folder
        self.compiler = compiler

    def compile(self, folder: Path, source: Path, *flags: str) -> Path:
        target = folder / (source.stem + ".o")
        includes = [f"-I{folder / 'src'}", f"-I{HERE}", f"-I{ROOT / 'include'}"]
        standard = ["-std=gnu11", "-g", "-UNDEBUG", "-U_FORTIFY_SOURCE"]
        defines = ["-DPYPER_TESTING", "-DPYPER_STATIC"]
        files = ["-c", str(source), "-o", str(target)]
        subprocess.run([*self.compiler, *standard, *flags, *defines, *includes, *files], check=True)
        return target

    def build(self, name: str, variant: str = "", mutation: Edits = ()) -> Path:
        """The program of a model; with a mistake in it, once it has been built without."""
        model = MODELS[name]
        plain = self.folder / name
        folder = plain / variant
        (folder / "src").mkdir(parents=True, exist_ok=True)
        texts = {p.name: p.read_text() for p in sorted((ROOT / "src").glob("*.[ch]"))}
        for file, old, new in (*mutation, *model.edits):
            if texts[file].count(old) != 1:
                sys.exit(f"run.py: not once in {file}, so the model must follow the code:\n{old}")
            texts[file] = texts[file].replace(old, new)
        for file, text in texts.items():
            (folder / "src" / file).write_text(text)
        changed = {file for file, _, _ in mutation}
        same = variant != "" and not any(file.endswith(".h") for file in changed)
        # Little optimisation: registers and stack slots then hold less of what is of no use any
        # more, which would make states different that are not.
        watched = ["-Og", "-fsanitize=thread", "-w", *model.flags]
        objects = [
            plain / "explorer.o"
            if variant
            else self.compile(plain, HERE / "explorer.c", "-O2", "-Wall", "-Wextra"),
            plain / "os_model.o"
            if same
            else self.compile(folder, HERE / "os_model.c", "-O2", "-Wall", "-Wextra"),
            self.compile(folder, HERE / f"model_{name}.c", *watched),
        ]
        for file in model.sources:
            if same and file not in changed:
                objects.append(plain / (Path(file).stem + ".o"))
            else:
                objects.append(self.compile(folder, folder / "src" / file, *watched))
        program = folder / "model"
        subprocess.run([*self.compiler, *objects, "-o", program, "-lpthread"], check=True)
        return program


#: Nothing takes a tenth of this; with --all it takes ten times as long.
TIMEOUT_S = 600


def at_random(model: Model, seed: int, times: int = 1) -> list[str]:
    return ["--random", str(seed), "--runs", str(model.runs * times)] if model.runs else []


def explore(program: Path, scenario: str, *flags: str) -> tuple[int, str, float]:
    """Exit status, output and seconds."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [program, *flags, scenario], text=True, capture_output=True, timeout=TIMEOUT_S
        )
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, output = -1, f"not done after {TIMEOUT_S} s"
    return status, output, time.monotonic() - started


def check_scenario(program: Path, name: str, scenario: str, flags: list[str]) -> tuple[bool, str]:
    status, output, seconds = explore(program, scenario, *flags)
    title = f"{name} {scenario}{' (store buffers)' if '--tso' in flags else ''}"
    if status != 0:
        return False, f"FAILED  {title}\n{output}"
    count = re.search(r"\d+ (states|runs from seed \d+), .*", output)
    return True, f"ok      {title:56} {count[0] if count else '':>60} {seconds:6.1f} s"


def check_mutation(builder: Builder, number: int, mutation: Mutation) -> tuple[bool, str]:
    model = MODELS[mutation.model]
    program = builder.build(mutation.model, f"mutation-{number}", mutation.edits)
    within = at_random(model, seed=1, times=20) or ["--preemptions", "2"]
    flags = ["--tso"] if mutation.store_buffers else []
    status, output, seconds = explore(program, mutation.scenario, *flags, *within)
    if status != 3:
        return False, f"FAILED  not found: {mutation.what}\n{output}"
    if mutation.store_buffers and explore(program, mutation.scenario, *within)[0] != 0:
        return False, f"FAILED  found without store buffers, too: {mutation.what}"
    return True, f"found   {mutation.what:106} {seconds:16.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores the wait/wake protocol in every order.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--cc", default="cc", help="the C compiler, with its first arguments")
    parser.add_argument("--all", action="store_true", help="with larger bounds: takes half an hour")
    parser.add_argument("--seed", type=int, default=1, help="of the runs at random")
    parser.add_argument("--only", default="", help="what has this word in its name")
    options = parser.parse_args()
    builder = Builder(options.build.absolute(), options.cc.split())
    print(f"seed {options.seed}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = []
        for name, model in MODELS.items():
            program = builder.build(name)
            listed = subprocess.run([program, "--list"], text=True, capture_output=True, check=True)
            for scenario in listed.stdout.split():
                if options.only not in f"{name} {scenario}":
                    continue
                far = at_random(model, options.seed, 10 if options.all else 1)
                far = far or model.bound(scenario, options.all)
                both = options.all or model.runs > 0
                for flags in [far, ["--tso", *far]] if both else [["--tso", *far]]:
                    jobs.append(pool.submit(check_scenario, program, name, scenario, flags))
        for number, mutation in enumerate(read_mutations()):
            if options.only in mutation.what:
                jobs.append(pool.submit(check_mutation, builder, number, mutation))
        results = []
        for job in jobs:
            good, text = job.result()
            results.append(good)
            print(text, flush=True)
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main())
