#!/usr/bin/env bash
# Install what is needed, lint, run the tests. Arguments go to pytest: scripts/test.sh tests/test_latent.py -k moments
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh requirements-dev.txt
.venv/bin/ruff check .
# One thread a process: threads of several tests that share two cores wait for each other most of the time.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadscope "$@"
