#!/usr/bin/env bash
# Create .venv and install requirements.txt, or the requirements file given as the argument, in the versions of
# requirements-constraints.txt. Returns at once where that has been done.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "setup.sh: error: Python 3.10 or newer is required; install it, or run PYTHON=/path/to/python3 $0" >&2
    exit 2
fi
# The stamp records what was installed last. It is written only after pip has succeeded.
stamp=.venv/installed-$(basename "$requirements" .txt)
wanted=$(cat requirements*.txt)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
echo "setup.sh: installing $requirements into .venv (takes a few minutes the first time)"
if ! [ -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    echo "setup.sh: error: cannot create .venv; on Debian and Ubuntu, run: apt install python3-venv" >&2
    exit 2
fi
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c requirements-constraints.txt; then
    echo "setup.sh: error: pip cannot install $requirements (see its message above); fix this and run setup.sh again" >&2
    exit 2
fi
printf '%s\n' "$wanted" > "$stamp"
