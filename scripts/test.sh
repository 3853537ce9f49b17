#!/usr/bin/env bash
# Install the requirements, lint, and run the tests. Arguments are passed to pytest: scripts/test.sh tests/network -k decoder
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh requirements-dev.txt
.venv/bin/ruff check .
# One thread per process: with more, the test processes compete for the cores and take longer.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadscope "$@"
