#!/usr/bin/env python3
"""Explores the engine's wait/wake protocol in every order, and shows that it would find a mistake.

usage: run.py BUILD [--cc COMPILER] [--deep] [--seed N] [--only WORD]

The models (model_*.c) run the code of src/ itself, see explorer.h; it is copied into the folder
BUILD with a few constants made small, so that chunks end and nobody yields before sleeping.  What
is too large for every order (whole runs) is run at random, from a seed that is printed.  Then each
of the mistakes in the file `mutations` is made in a copy, and the explorer has to find it; those
that only store buffers show must not be found without them.

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
    ("park.c", "#define LOCK_YIELDS 3", "#define LOCK_YIELDS 0"),
    ("queue.h", "#define PYPER__CHUNK_SIZE 4096", "#define PYPER__CHUNK_SIZE 32"),
    ("channel.c", "#define CHUNK_FIRST ((uint64_t)4096)", "#define CHUNK_FIRST ((uint64_t)56)"),
    ("channel.c", "#define CHUNK ((uint64_t)65536)", "#define CHUNK ((uint64_t)56)"),
    ("channel.c", "#define HAND_BYTES 4096", "#define HAND_BYTES 64"),
    ("channel.h", "#define PYPER__HAND_ITEMS 64", "#define PYPER__HAND_ITEMS 2"),
    ("channel.h", "#define PYPER__RECORD_BYTES 512", "#define PYPER__RECORD_BYTES 16"),
    ("shm.h", "#define PYPER__SHM_FIRST ((uint64_t)4096)",
     "#define PYPER__SHM_FIRST ((uint64_t)1408)"),
)  # fmt: skip

# Whole runs.
EVERYTHING = tuple(sorted(p.name for p in (ROOT / "src").glob("*.c") if p.name != "os.c"))
ONE_THREAD: Edits = (
    ("park.c", "#define YIELDS_MAX 50", "#define YIELDS_MAX 2"),
    ("park.c", "#define LET_OTHERS_YIELDS 200", "#define LET_OTHERS_YIELDS 3"),
    ("queue.h", "#define PYPER__CHUNK_SIZE 4096", "#define PYPER__CHUNK_SIZE 32"),
    # The explorer's threads are all on one of the system's.
    ("loop.c", "static _Thread_local char this_thread;",
     "const void *model_self(void);\n#define this_thread (*(const char *)model_self())"),
)  # fmt: skip

# The queue's model takes the lock for granted: park's model is about it.
TAKE = "static inline void pyper__lock_take(pyper__lock *lock) {"
GIVE = "static inline void pyper__lock_give(pyper__lock *lock) {"
DECLARE = "void model_lock(void *lock);\nvoid model_unlock(void *lock);\n"
SIMPLE_LOCK: Edits = (
    ("park.h", TAKE, f"{DECLARE}{TAKE}\n    model_lock(lock);\n    return;"),
    ("park.h", GIVE, f"{GIVE}\n    model_unlock(lock);\n    return;"),
)


@dataclass(frozen=True)
class Model:
    """A model: the sources of src/ it is linked with, and what is changed in its copy."""

    sources: tuple[str, ...]
    edits: Edits = SMALL
    flags: tuple[str, ...] = ()
    #: Scenarios that take minutes: only with --deep.
    deep: frozenset[str] = field(default_factory=frozenset)
    #: How many runs at random, if it is too large for every order; with --deep ten times as many.
    runs: int = 0


MUTEX = ("init", "lock", "unlock", "consistent")

MODELS = {
    "park": Model(("park.c",)),
    "queue": Model(
        ("park.c", "queue.c", "order.c"),
        SMALL + SIMPLE_LOCK,
        deep=frozenset(
            [
                "two_consumers_bound_of_1",
                "two_interrupted",
                "ordered_branching",
                "ordered_bound_of_2",
                "ordered_close",
                "close_against_two_producers",
            ]
        ),
    ),
    # Its lock is a mutex of the system: the explorer has one that knows of deaths.
    "channel": Model(
        ("park.c",),
        flags=(
            *(f"-Dpthread_mutex_{name}=model_mutex_{name}" for name in MUTEX),
            "-Dpthread_mutex_trylock=model_mutex_lock",
        ),
        deep=frozenset(["two_consumers", "two_consumers_bound_of_1"]),
    ),
    "runs": Model(EVERYTHING, ONE_THREAD, runs=20000),
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
    """Builds models in a folder, each variant once."""

    def __init__(self, folder: Path, compiler: list[str]) -> None:
        self.folder = folder
        self.compiler = compiler

    def compile(self, folder: Path, source: Path, *flags: str) -> Path:
        target = folder / (source.stem + ".o")
        includes = [f"-I{folder / 'src'}", f"-I{HERE}", f"-I{ROOT / 'include'}"]
        standard = ["-std=gnu11", "-g", "-UNDEBUG", "-U_FORTIFY_SOURCE"]
        defines = ["-DPYPER_TESTING", "-DPYPER_STATIC"]
        command = [
            *self.compiler,
            *standard,
            *flags,
            *defines,
            *includes,
            "-c",
            source,
            "-o",
            target,
        ]
        subprocess.run(command, check=True)
        return target

    def build(self, name: str, variant: str, mutation: Edits = ()) -> Path:
        """The program of a model, with a mistake in it or without."""
        model = MODELS[name]
        folder = self.folder / f"{name}-{variant}"
        (folder / "src").mkdir(parents=True, exist_ok=True)
        texts = {p.name: p.read_text() for p in sorted((ROOT / "src").glob("*.[ch]"))}
        for file, old, new in (*mutation, *model.edits):
            if texts[file].count(old) != 1:
                sys.exit(f"run.py: not once in {file}, so the model must follow the code:\n{old}")
            texts[file] = texts[file].replace(old, new)
        for file, text in texts.items():
            (folder / "src" / file).write_text(text)
        # Little optimisation: registers and stack slots then hold less of what is of no use any
        # more, which would make states different that are not.
        watched = ["-Og", "-fsanitize=thread", "-w", *model.flags]
        objects = [
            self.compile(folder, HERE / "explorer.c", "-O2", "-Wall", "-Wextra"),
            self.compile(folder, HERE / "os_model.c", "-O2", "-Wall", "-Wextra"),
            self.compile(folder, HERE / f"model_{name}.c", *watched),
            *(self.compile(folder, folder / "src" / file, *watched) for file in model.sources),
        ]
        program = folder / "model"
        subprocess.run([*self.compiler, *objects, "-o", program, "-lpthread"], check=True)
        return program


def at_random(model: Model, seed: int, times: int = 1) -> list[str]:
    return ["--random", str(seed), "--runs", str(model.runs * times)] if model.runs else []


def explore(program: Path, scenario: str, *flags: str) -> tuple[int, str, float]:
    """Exit status, output and seconds."""
    started = time.monotonic()
    done = subprocess.run([program, *flags, scenario], text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


def check_scenario(program: Path, name: str, scenario: str, flags: list[str]) -> tuple[bool, str]:
    status, output, seconds = explore(program, scenario, *flags)
    title = f"{name} {scenario}{' (store buffers)' if '--tso' in flags else ''}"
    if status != 0:
        return False, f"FAILED  {title}\n{output}"
    count = re.search(r"\d+ (states|runs from seed \d+)", output)
    return True, f"ok      {title:52} {count[0] if count else '':>36} {seconds:6.1f} s"


def check_mutation(builder: Builder, number: int, mutation: Mutation) -> tuple[bool, str]:
    program = builder.build(mutation.model, f"mutation-{number}", mutation.edits)
    flags = (
        ["--tso"] if mutation.store_buffers else at_random(MODELS[mutation.model], seed=1, times=5)
    )
    status, output, seconds = explore(program, mutation.scenario, *flags)
    found = status == 3
    if found and mutation.store_buffers:
        plain = explore(program, mutation.scenario)[0]
        if plain != 0:
            return False, f"FAILED  found without store buffers, too: {mutation.what}"
    if not found:
        return False, f"FAILED  not found: {mutation.what}\n{output}"
    return True, f"found   {mutation.what:76} {seconds:6.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores the wait/wake protocol in every order.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--cc", default="cc", help="the C compiler, with its first arguments")
    parser.add_argument("--deep", action="store_true", help="the scenarios that take minutes, too")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1000000 % 1000000000)
    parser.add_argument("--only", default="", help="what has this word in its name")
    options = parser.parse_args()
    builder = Builder(options.build.absolute(), options.cc.split())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = []
        for name, model in MODELS.items():
            program = builder.build(name, "plain")
            listed = subprocess.run([program, "--list"], text=True, capture_output=True, check=True)
            for scenario in listed.stdout.split():
                if scenario in model.deep and not options.deep:
                    continue
                if options.only not in f"{name} {scenario}":
                    continue
                random = at_random(model, options.seed, 10 if options.deep else 1)
                for flags in random, ["--tso", *random]:
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
