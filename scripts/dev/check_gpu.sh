#!/usr/bin/env bash
# Check everything that needs a GPU: scripts/dev/check_gpu.sh OUT [--parts NAME ...]; scripts/dev/check_gpu.py says more.
# Uses .venv where scripts/setup.sh has made one, else python3.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$root/scripts/dev/check_gpu.py" "$@"
