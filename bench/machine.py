"""What this machine can run: the interpreters, the packages and the programs of the benchmark.

Everything is made below build/bench.  A peer that cannot be had is named in `missing` with its
reason, and left out of the rows.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from model import System

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
WORK = ROOT / "build" / "bench"

# Peers in Python, each with what installs it.
PACKAGES = {
    "python-pyper": "python-pyper==0.4.4",
    "pypeln": "pypeln==0.4.9",
    "SPDL": "spdl-core==0.8.0",
    "mpire": "mpire==2.10.2",
    "joblib": "joblib==1.6.0",
}

# Peers in Python's own library, and what is done by hand.
BUILT_IN = {
    "futures": "peer",
    "ThreadPool": "peer",
    "by hand": "floor",
    "plain loop": "floor",
    "bare threads": "floor",
}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if "error" in line.lower()), "failed")


class Machine:
    """Sets up what is needed; `peers` (and the Python without the GIL) only if they are wanted."""

    def __init__(self, peers: bool = True, fastflow: str = "", fast: bool = False):
        WORK.mkdir(parents=True, exist_ok=True)
        self.missing: dict[str, str] = {}
        self.processors = len(os.sched_getaffinity(0))
        self.packages = self._install_packages() if peers else {}
        self.c = self._build_c(peers, fastflow)
        self.loops_per_us = self._calibrate()
        os.environ["BENCH_LOOPS_PER_US"] = str(python_loops_per_us())  # for serving.py
        self.free_threaded = self._free_threaded() if peers else None
        self.fast = fast
        self._peers = peers

    def facts(self) -> dict[str, object]:
        """What a reader of the figures wants to know of the machine."""
        compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts: dict[str, object] = {
            "processors": self.processors,
            "processor": _processor(),
            "memory": f"{memory / 2**30:.0f} GiB",
            "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
            "compiler": compiler.stdout.splitlines()[0],
            "python": platform.python_version(),
            "peers": {**self.packages, **self._c_versions()},
        }
        return facts

    # ------------------------------------------------------------------------------ systems

    @staticmethod
    def script(name: str) -> str:
        return str(BENCH / name)

    def ours(self, scenario: str) -> System:
        return System.of("pyper", sys.executable, self.script("scenarios.py"), scenario)

    def python_pyper(self, scenario: str) -> list[System]:
        if "python-pyper" not in self.packages:
            return []
        script = self.script("scenarios.py")
        return [System.of("python-pyper", self._peer_python, script, scenario)]

    def asyncio_alone(self, name: str, scenario: str) -> System:
        """What can be had without any library."""
        command = (sys.executable, self.script("bare_asyncio.py"), scenario)
        return System.of(name, *command, kind="floor")

    def pool_alone(self, name: str, scenario: str) -> System:
        """CPython's own pool of processes, with the best chunks found by hand."""
        return System.of(name, sys.executable, self.script("bare_pool.py"), scenario, kind="floor")

    def package(self, name: str, scenario: str) -> list[System]:
        """Another package, if it is here."""
        if not self._peers or (name in PACKAGES and name not in self.packages):
            return []
        command = (self._peer_python, self.script("peers.py"), name, scenario)
        return [System.of(name, *command, kind=BUILT_IN.get(name, "peer"))]

    def c_program(self, name: str, program: str, *arguments: object, kind: str = "") -> System:
        return System.of(name, self.c[program], *arguments, kind=kind)

    # ------------------------------------------------------------------------------- Python

    @property
    def _peer_python(self) -> Path:
        return WORK / "peers" / "bin" / "python"

    def _install_packages(self) -> dict[str, str]:
        """The packages that are there, each with its requirement."""
        if not self._peer_python.exists():
            folder = str(self._peer_python.parent.parent)
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        there = {}
        for name, requirement in PACKAGES.items():
            mark = WORK / "peers" / f"{requirement}.installed"
            if not mark.exists():
                print(f"installing {requirement} into build/bench/peers", flush=True)
                pip = [self._peer_python, "-m", "pip", "install", "--quiet", requirement]
                done = subprocess.run(pip, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    self.missing[name] = f"pip install {requirement}: {_first_line(done.stderr)}"
                    continue
                mark.touch()
            there[name] = requirement
        return there

    def _free_threaded(self) -> str | None:
        """A Python without the GIL that has this pyper."""
        scripts = ROOT / "scripts"
        listing = [sys.executable, scripts / "interpreters.py"]
        found = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
        for line in found.splitlines():
            tag, path = line.split(maxsplit=1)
            if not tag.endswith("t"):
                continue
            folder = ROOT / "build" / "venvs" / tag
            update = [path, scripts / "environment.py", folder, "build", "--package"]
            if subprocess.run(update, cwd=ROOT, check=False).returncode == 0:
                return str(folder / "bin" / "python")
            self.missing[f"Python {tag}"] = "pyper could not be installed for it"
        if "Python without the GIL" not in self.missing:
            self.missing["Python without the GIL"] = (
                "not here; scripts/build-free-threaded-python builds one"
            )
        return None

    # ------------------------------------------------------------------------------------ C

    def _build_c(self, peers: bool, fastflow: str) -> dict[str, str]:
        """The programs that could be built, by their names."""
        programs: dict[str, str] = {}
        library = ROOT / "build" / "src" / "libpyper.a"
        flags = ["-std=gnu11", "-O2", f"-I{ROOT / 'include'}"]
        for name in ("chain", "costs", "processes"):
            source = BENCH / "c" / f"{name}.c"
            programs[name] = str(WORK / name)
            command = ["cc", *flags, source, "-o", programs[name], library, "-pthread"]
            subprocess.run(command, check=True)
        if not peers:
            return programs
        if shutil.which("c++") is None:
            self.missing["oneTBB, FastFlow"] = "no C++ compiler; on Debian: apt-get install g++"
            return programs
        self._build_cpp(programs, "oneTBB", "chain_tbb", ["-ltbb"], "libtbb-dev")
        folders = [fastflow] if fastflow else ["/usr/include", "/usr/local/include"]
        headers = [folder for folder in folders if (Path(folder) / "ff" / "ff.hpp").exists()]
        if headers:
            options = ["-isystem", headers[0], "-pthread"]
            self._build_cpp(programs, "FastFlow", "chain_fastflow", options, "")
        else:
            where = " and ".join(folders)
            self.missing["FastFlow"] = f"no ff/ff.hpp in {where}; FASTFLOW=folder names another"
        return programs

    def _build_cpp(
        self, programs: dict[str, str], peer: str, name: str, options: list[str], package: str
    ) -> None:
        source, program = BENCH / "c" / f"{name}.cpp", WORK / name
        command = ["c++", "-std=c++17", "-O2", str(source), "-o", str(program), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            programs[name] = str(program)
        else:
            hint = f"; on Debian: apt-get install {package}" if package else ""
            self.missing[peer] = _first_line(done.stderr) + hint

    def _c_versions(self) -> dict[str, str]:
        if "chain_tbb" not in self.c:
            return {}
        source = "#include <oneapi/tbb/version.h>\nVERSION TBB_VERSION_MAJOR TBB_VERSION_MINOR\n"
        command = ["c++", "-E", "-P", "-x", "c++", "-"]
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
        words = done.stdout.splitlines()[-1].split()
        return {"oneTBB": ".".join(words[1:])}

    def _calibrate(self) -> int:
        command = [self.c["chain"], "calibrate"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def python_loops_per_us() -> int:
    """Turns of an empty loop in a microsecond, in the fastest of many tries."""

    def seconds(loops: int) -> float:
        started = time.perf_counter()
        for _ in range(loops):
            pass
        return time.perf_counter() - started

    loops = 2000
    return max(1, round(loops / (min(seconds(loops) for _ in range(500)) * 1e6)))


def _processor() -> str:
    """The model of the processor, as the kernel names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
