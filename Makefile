# `make demo` and `make test` need git, make and any Python 3; everything else is set up here.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup libraries demo check test test-slow lint format

# Where uv lands when it is not installed yet.
export PATH := $(CURDIR)/.uv/bin:$(PATH)

help:
	@echo "make demo       set up, then run the whole pipeline offline (about 4 minutes)"
	@echo "make check      while you work: lint, types and the quick tests (at most 90 seconds on two cores)"
	@echo "make test       set up, lint, type check, run the tests (about 15 minutes on two cores)"
	@echo "make test-slow  the tests that take longer"
	@echo "make format     format the code"

setup: libraries
	@command -v uv >/dev/null || { echo "Installing uv into .uv"; \
	  python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; } || \
	  { echo "uv could not be installed: install it by hand (https://docs.astral.sh/uv) and run make again"; exit 1; }
# Inexact: what a user has added, such as the library of his arm's motors, stays.
	@uv sync --locked --inexact --quiet --compile-bytecode --extra sim --extra ray --extra robot --extra viz --extra dev

# Video needs FFmpeg's shared libraries (PyAV takes over without them), rendering needs EGL, and Debian's
# Python makes no environment for uv without python3-venv.
libraries:
	@missing=""; libs=$$(PATH=$$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null); \
	[[ $$libs == *libavcodec.so* ]] || missing="$$missing ffmpeg"; \
	[[ $$libs == *libEGL.so.1* && $$libs == *libGL.so.1* ]] || missing="$$missing libegl1 libgl1"; \
	command -v uv >/dev/null || python3 -c "import ensurepip" 2>/dev/null || missing="$$missing python3-venv"; \
	[ -z "$(BROWSER)" ] || command -v chromium >/dev/null || missing="$$missing chromium"; \
	[ -z "$$missing" ] && exit 0; \
	root=""; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
	if command -v apt-get >/dev/null && $$root true 2>/dev/null && echo "Installing$$missing" \
	  && $$root apt-get update -qq && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	then exit 0; fi; \
	echo "Could not install$$missing: with the rights to do so, run 'apt-get install$$missing'." \
	  "Without ffmpeg, video falls back to PyAV; without libegl1 and libgl1, the simulator cannot render;" \
	  "without chromium, the tests of the report page are skipped."

demo: setup
	uv run --no-sync depi demo

lint: setup
	uv run --no-sync ruff format --check .
	uv run --no-sync ruff check .
	uv run --no-sync lint-imports --no-logo
	uv run --no-sync mypy

test test-slow: BROWSER = yes

# As many processes as there are cores, each with one thread.
PYTEST = OMP_NUM_THREADS=1 uv run --no-sync pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# The test files on the list, chosen by the processor time they need; a test that has become slow is named.
check: lint
	$(PYTEST) --durations=5 --durations-min=3 @tests/quick.txt

test: lint
	$(PYTEST)

test-slow: setup
	uv run --no-sync pytest -m slow

format: setup
	uv run --no-sync ruff format .
	uv run --no-sync ruff check --fix .
