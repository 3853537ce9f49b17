#!/usr/bin/env bash
# Install what is needed, lint, run the tests. Arguments go to pytest: scripts/test.sh tests/test_latent.py -k moments
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/python -m pytest "$@"
