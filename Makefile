# The front door of pyper.  Meson builds libpyper into build/, and meson-python builds the Python
# package and installs it into .venv/, where the tools (Meson and ninja among them) live as well.
# The longer work is done by scripts/; `make help` lists the targets.

# The interpreter that .venv/ was made with, unless another one is asked for.
PYTHON    ?= $(firstword $(wildcard .venv/bin/python) python3)
PREFIX    ?= /usr/local
LIBDIR    ?= lib
DEMO_PATH ?=

# Without the folder's own path, which may have spaces in it.
meson := .venv/bin/meson
ninja := .venv/bin/ninja
export NINJA := $(CURDIR)/.venv/bin/ninja

.DEFAULT_GOAL := all

all: library package ## build libpyper into build/ and install the package into .venv/

demo: all ## run the demo in Python and in C (DEMO_PATH=folder to choose the input)
	.venv/bin/python examples/python/demo.py $(DEMO_PATH)
	build/examples/c/demo $(or $(DEMO_PATH),$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))'))

test: test-c test-python ## run all tests, with every Python that the machine has

test-c: library ## run the C tests
	scripts/test-c build

test-python: all tools ## run the Python tests (INTERPRETERS="3.12 3.13t" to choose)
	.venv/bin/python scripts/test-python $(INTERPRETERS)

test-typing: all tools ## ask type checkers about the package (test-python does so too)
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m pytest tests/python/test_typing.py

test-faults: all tools ## run the whole table of ends, exhaustion and leak hunts (INTERPRETERS=)
	PYPER_MATRIX=full scripts/test-c build -t 4 test_matrix test_exhaustion
	.venv/bin/python scripts/test-python --faults $(INTERPRETERS)

soak: all ## run pipelines with faults for some time (SECONDS=60 or MINUTES=20, SEED=, SOAKERS="C 3.11")
	@$(ninja) -C build tests/soak/soak
	.venv/bin/python tests/soak/run.py $(if $(SEED),--seed $(SEED)) \
		--seconds $(or $(SECONDS),$(if $(MINUTES),$$(($(MINUTES) * 60))),60) $(SOAKERS)

bench: all ## measure, as ratios against others (FAST=1 for a first look; ROWS=, FASTFLOW=folder)
	.venv/bin/python bench/run.py $(if $(FAST),--fast) $(if $(FASTFLOW),--fastflow $(FASTFLOW)) $(ROWS)

bench-publish: venv ## put the last run of bench into the documents (REMARK="about that run")
	.venv/bin/python bench/publish.py --remark "$(REMARK)"

check-instructions: all ## count the instructions of the hot paths and compare with their budgets
	.venv/bin/python scripts/check-instructions

model: venv ## explore the wait/wake protocol in every order, and find the mistakes put into it
	.venv/bin/python tests/model/run.py build/model --cc "$(or $(CC),cc)"

model-all: venv ## the same with larger bounds: more than half an hour
	.venv/bin/python tests/model/run.py build/model --all --cc "$(or $(CC),cc)"

fuzz: venv ## feed made-up bytes to what reads those of other processes (PYPER_FUZZ=seed)
	scripts/fuzz

sanitize: sanitize-address sanitize-thread ## run the C tests under the sanitizers (PYPER_SCHEDULES=seed: with pauses)

sanitize-address: venv ## run the C tests under AddressSanitizer and UBSan
	scripts/sanitize address

sanitize-thread: venv ## run the C tests under ThreadSanitizer
	scripts/sanitize thread

schedules: venv ## run the C tests with threads that pause at random (PYPER_SCHEDULES=seed to repeat)
	scripts/schedules

check: tools ## check the formatting and the lint rules
	scripts/check

format: tools ## format the C and the Python sources
	scripts/check --fix

install: library ## install header, libraries and pyper.pc below PREFIX (DESTDIR, LIBDIR too)
	$(meson) configure build -Dprefix=$(abspath $(PREFIX)) -Dlibdir=$(LIBDIR)
	DESTDIR="$(DESTDIR)" $(meson) install -C build --tags devel,runtime

clean: ## remove what make has made
	rm -rf build .venv

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

# What the targets above stand on.

venv:
	@scripts/check-prerequisites $(PYTHON)
	@$(PYTHON) scripts/environment.py .venv build

tools: venv
	@.venv/bin/python scripts/environment.py .venv test check loops

library: venv
	@test -e build/build.ninja || $(meson) setup build -Dlibdir=$(LIBDIR)
	@$(ninja) -C build

package: venv
	@.venv/bin/python scripts/environment.py .venv --package

.PHONY: all demo test test-c test-python test-typing test-faults soak bench bench-publish \
	check-instructions model model-all fuzz sanitize sanitize-address sanitize-thread schedules \
	check format install clean help venv tools library package
