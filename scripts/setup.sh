#!/usr/bin/env bash
# Make .venv with what requirements.txt lists (scripts/setup.sh FILE: what FILE lists). Quick when it is there already.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "setup.sh: Python 3.10 or newer is needed; install it, or name it: PYTHON=/path/to/python3 $0" >&2
    exit 2
fi
# The stamp tells what was installed last; it is written only after pip has succeeded.
stamp=.venv/installed-$(basename "$requirements" .txt)
wanted=$(cat requirements*.txt)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
echo "setup.sh: installing $requirements into .venv (a minute or two the first time)"
if ! [ -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    echo "setup.sh: .venv could not be made; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 2
fi
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
    echo "setup.sh: pip could not install $requirements (its message stands above); mend that and start again" >&2
    exit 2
fi
printf '%s\n' "$wanted" > "$stamp"
