"""The demo: the pipelines in Python and in C, and the plain loop, give the same answer.

They are compared on the standard library and on a folder that holds everything that is wrong with
files.  The answer for that folder is also known from outside, so that all three cannot be wrong in
the same way.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from printed import ROOT, run, run_python

DEMO = ROOT / "examples" / "python" / "demo.py"
C_DEMO = Path(os.environ.get("PYPER_BUILD", ROOT / "build")) / "examples" / "c" / "demo"
KINDS = ("missing", "folder", "special", "unreadable")


def run_demo(variant: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if variant == "c":
        assert C_DEMO.exists(), f"{C_DEMO} is not built: run make first"
        return run([C_DEMO, *arguments], timeout=90)
    how = [f"--{variant}"] if variant != "python" else []
    return run_python(DEMO, *how, *arguments, timeout=90)


def answer(variant: str, *path: str | Path, status: int = 0) -> dict[str, Any]:
    done = run_demo(variant, "--json", *path)
    assert (done.returncode, done.stderr) == (status, "")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


variants = pytest.mark.parametrize("variant", ["python", "processes", "plain", "c"])


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder of everything that is wrong with files."""
    folder = tmp_path / "nasty"
    folder.mkdir()
    for name, data in {
        b"good.py": b"def add(a, b):\n    return a + b\n",  # def add a b return a b
        b"empty.py": b"",
        b".py": b"hidden",  # hidden, and no line end
        b"windows.py": b"x = 1\r\ny = 2\r\n",  # x y
        b"latin.py": "na\u00efve = 'caf\u00e9'\n".encode("latin-1"),  # na ve caf
        b"utf16.py": "ab = 1\n".encode("utf-16-le"),  # a b
        b"binary.py": bytes(range(256)),  # A..Z, _, a..z in three runs; digits alone
        b"numbers.py": b"0x1F 1e5 _0 __ 9lives\n",  # x1F e5 _0 __ lives
        b"long.py": b"q" * 1_000_000,  # one word, one line without an end
        b"odd \xff\n name.py": b"odd\n",
        b"README.txt": b"not Python\n",
        b"upper.PY": b"not called py\n",
    }.items():
        (folder / os.fsdecode(name)).write_bytes(data)

    (folder / "folder.py").mkdir()
    (folder / "folder.py" / "inner.py").write_bytes(b"inner\n")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "installed.py").write_bytes(b"installed\n")
    (folder / "empty").mkdir()
    (folder / "link.py").symlink_to("good.py")
    (folder / "dangling.py").symlink_to("nothing")
    (folder / "through_a_file.py").symlink_to("good.py/inner.py")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "folder_link.py").symlink_to("folder.py")
    (folder / "around").symlink_to(".")
    os.mkfifo(folder / "fifo.py")
    (folder / "null.py").symlink_to("/dev/null")

    # A folder whose path is too long to be opened by name; the levels above it can be.
    parent = os.open(folder, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=parent)
        child = os.open("d" * 200, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(parent)

    monkeypatch.chdir(folder)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.py")
    yield folder
    monkeypatch.undo()
    shutil.rmtree(folder)


@variants
def test_a_nasty_folder_is_counted_by_kind(variant: str, nasty: Path) -> None:
    result = answer(variant, nasty)
    top = dict(result.pop("top"))
    assert result == {
        "files": 12,  # ten called *.py, link.py (good.py again), inner.py
        "bytes": 32 * 2 + 6 + 14 + 15 + 14 + 256 + 22 + 1_000_000 + 4 + 6,
        "lines": 2 * 2 + 0 + 2 + 1 + 1 + 1 + 1 + 0 + 1 + 1,
        "identifiers": 7 * 2 + 1 + 2 + 3 + 2 + 3 + 5 + 1 + 1 + 1,
        "distinct": 5 + 1 + 2 + 3 + 0 + 3 + 5 + 1 + 1 + 1,
        "skipped": {
            "missing": 2,  # dangling.py, through_a_file.py
            "folder": 2,  # folder.py, folder_link.py
            "special": 3,  # fifo.py, null.py, socket.py
            "unreadable": 2,  # loop.py, the folder with the long path
        },
    }
    assert list(top.items())[:3] == [("a", 5), ("b", 5), ("add", 2)]
    assert len(top) == 10


@variants
def test_the_table_says_what_was_skipped(variant: str, nasty: Path) -> None:
    done = run_demo(variant, nasty)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "skipped: 2 missing, 2 folder, 3 special, 2 unreadable" in lines
    assert ["files", "12"] in [line.split() for line in lines]
    counters = [line.split()[:4] for line in lines[-4:]]
    if variant != "plain":
        emitted = str(12 + 9)  # the lister says where it was, whether it can be read or not
        assert [(name, into, out) for name, _, into, out in counters] == [
            ("list_files", "1", emitted),
            ("read", emitted, emitted),
            ("analyse", emitted, emitted),
            ("total", emitted, "1"),
        ]


@pytest.mark.timeout(300)  # it reads some 1 800 files three times, perhaps for the first time
def test_all_agree_on_the_standard_library() -> None:
    path = sysconfig.get_path("stdlib")
    plain, c = answer("plain", path), answer("c", path)
    python = answer("python")  # this is what it reads if it is not told
    assert python == plain
    assert python == answer("processes", path)
    assert python == c
    assert python["files"] > 100
    assert "self" in dict(python["top"])


@variants
def test_a_single_file_is_read_whatever_it_is_called(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one two two\n")
    result = answer(variant, path)
    assert (result["files"], result["lines"], result["top"]) == (1, 1, [["two", 2], ["one", 1]])


@variants
def test_an_empty_folder_has_an_answer(variant: str, tmp_path: Path) -> None:
    result = answer(variant, tmp_path)
    assert (result["files"], result["top"]) == (0, [])
    assert set(result["skipped"].values()) == {0}


@variants
@pytest.mark.parametrize("name", ["missing", "special", "unreadable"])
def test_a_path_that_cannot_be_read_is_told(variant: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "special":
        os.mkfifo(path)
    elif name == "unreadable":
        path.symlink_to(name)
    result = answer(variant, path, status=1)
    assert result["files"] == 0
    assert result["skipped"] == {kind: int(kind == name) for kind in KINDS}


@pytest.mark.parametrize("arguments", [["--what"], ["a", "b"]])
@variants
def test_wrong_usage_is_told(variant: str, arguments: list[str]) -> None:
    done = run_demo(variant, *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr
