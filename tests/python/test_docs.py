"""The documents: every block of code in README.md and docs/ is run and prints what it says; links
lead somewhere; and the tests that guarantees.md names are there.

Each ``python`` block is a program of its own.  In each section, ``c`` blocks without a ``main``
belong to the program of the next one that has it.  ``sh`` blocks may run make, and only with
targets that exist.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from printed import ROOT, expected_lines, printed_lines, run, run_python

PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("python", "c", "guarantees", "performance")),
]
BUILD = Path(os.environ.get("PYPER_BUILD", ROOT / "build"))


@dataclass
class Block:
    """A fenced block: where it stands, its language, and its text."""

    page: Path
    line: int
    section: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Find the fenced blocks of a page."""
    section = ""
    block: Block | None = None
    for number, line in enumerate(page.read_text("utf-8").splitlines(keepends=True), 1):
        if line.startswith("```"):
            if block:
                yield block
                block = None
            else:
                block = Block(page, number, section, line[3:].strip(), "")
        elif block:
            block.text += line
        elif line.startswith("#"):
            section = line.strip()
    assert block is None, f"{block}: the block does not end"


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def c_programs() -> Iterator[Block]:
    """Put the pieces of each section together with the program that they belong to."""
    pieces: list[Block] = []
    for block in BLOCKS:
        if block.language != "c":
            continue
        if pieces and (pieces[0].page, pieces[0].section) != (block.page, block.section):
            raise AssertionError(f"{pieces[0]}: no main follows in this section")
        pieces.append(block)
        if re.search(r"^int main\(", block.text, re.MULTILINE):
            text = "".join(piece.text for piece in pieces)
            yield Block(block.page, pieces[0].line, block.section, "c", text)
            pieces = []
    assert not pieces, f"{pieces[0]}: no main follows"


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"python", "c", "sh"}


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_the_python_block_prints_what_it_says(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text, "utf-8")
    assert printed_lines(run_python(script)) == expected_lines(block.text)


@pytest.mark.parametrize("program", list(c_programs()), ids=str)
def test_the_c_program_prints_what_it_says(program: Block, tmp_path: Path) -> None:
    library = BUILD / "src" / "libpyper.a"
    assert library.exists(), f"{library} is not built: run make first"
    compiler = os.environ.get("CC") or shutil.which("cc")
    assert compiler, "no C compiler"
    source, binary = tmp_path / "block.c", tmp_path / "block"
    source.write_text(program.text, "utf-8")
    flags = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wno-unused-parameter"]
    include = f"-I{ROOT / 'include'}"
    done = run([*compiler.split(), *flags, include, source, library, "-pthread", "-o", binary])
    assert done.returncode == 0, done.stderr
    expected = expected_lines(program.text, "//>")
    assert expected
    assert printed_lines(run([binary])) == expected


def test_the_make_targets_exist() -> None:
    shell = "".join(block.text for block in BLOCKS if block.language == "sh")
    targets = {
        word
        for command in shell.splitlines()
        if command.startswith("make")
        for word in command.partition("#")[0].split()[1:]
        if "=" not in word
    }
    assert "demo" in targets
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert targets <= known


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_shows_a_guarantee_is_a_test() -> None:
    """Each file that is named is there, and has tests in it unless it is what tests stand on."""
    page = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    named = set(re.findall(r"`(tests/[^`]*)`", page))
    assert len(named) > 30
    for name in sorted(named):
        path = ROOT / name
        assert path.is_file(), f"guarantees.md names {name}"
        if path.name.startswith("test_"):
            test = r"^ *(async )?def test_" if path.suffix == ".py" else r"^ *(TEST|EACH_HOST)\("
            assert re.search(test, path.read_text("utf-8"), re.MULTILINE), f"{name} has no test"


def test_each_end_of_a_run_names_its_tests() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    assert len(sections) > 8
    for section in sections:
        assert "`tests/" in section, section.splitlines()[0]
