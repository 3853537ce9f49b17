#!/usr/bin/env bash
# The report's three KL annealing settings, with one seed on the same data, and the plots that compare them.
#
#   scripts/compare_kl.sh --DR DATASET --save_root runs/kl [--cyclical_cycle 20] [--cyclical_ratio 2]
#       [--monotonic_cycle 100] [--monotonic_ratio 1] [any flag of Trainer.py or an @recipe ...]
#
# Trains runs/kl/cyclical, runs/kl/monotonic and runs/kl/none, one after the other: the flags of
# scripts/recipes/report.args with those given here. Started again, it goes on where it was stopped; with --overwrite it
# starts anew. (Monotonic annealing's own defaults: with 20 and 2 it would be at its end in epoch 4.)
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

fail() { echo "compare_kl.sh: error: $1" >&2; exit 2; }

root="" cyclical_cycle=20 cyclical_ratio=2 monotonic_cycle=100 monotonic_ratio=1 resume="" flags=()
while [ $# -gt 0 ]; do
    case "$1" in
        --save_root=*|--cyclical_*=*|--monotonic_*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case "$1" in
        --save_root|--cyclical_cycle|--cyclical_ratio|--monotonic_cycle|--monotonic_ratio)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case "$1" in
                --save_root) root="$2" ;;
                *) declare "${1#--}=$2" ;;
            esac
            shift 2 ;;
        --kl_anneal_type*|--kl_anneal_cycle*|--kl_anneal_ratio*)
            fail "$1: the settings that are compared differ in it; give --cyclical_cycle, --cyclical_ratio, --monotonic_cycle or --monotonic_ratio" ;;
        --kl_anneal_start*|--kl_anneal_stop*)
            fail "$1: monotonic annealing always goes from 0 to 1, so the others do, too; leave it out" ;;
        --ckpt_path*|--test) fail "$1: all three settings start anew; leave it out" ;;
        --resume|--overwrite)  # it resumes without being told
            [ -z "$resume" ] || [ "$resume" = "$1" ] || fail "--resume and --overwrite: give one of the two"
            resume="$1"; shift ;;
        -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$root" ] || fail "--save_root is missing; give a folder for the three runs"
# Now, not when it is their turn, perhaps hours later.
(cd "$here/.." && python - "$cyclical_cycle" "$cyclical_ratio" "$monotonic_cycle" "$monotonic_ratio" <<'PYTHON') || exit 2
import importlib.util
import sys
from modules.schedulers import KLAnnealing
try:
    if importlib.util.find_spec("torch") is None:
        raise ValueError("there is no PyTorch here; run scripts/setup.sh and source .venv/bin/activate")
    for kind, cycle, ratio in (("cyclical", *sys.argv[1:3]), ("monotonic", *sys.argv[3:5])):
        try:
            KLAnnealing(kind, int(cycle), float(ratio))
        except ValueError as error:
            raise ValueError(f"--{kind}_cycle {cycle}, --{kind}_ratio {ratio}: a whole number, which is at least 2 for "
                             "cyclical and 1 for monotonic, and a number above 0 are needed") from error
except ValueError as error:
    sys.exit(f"compare_kl.sh: error: {error}")
PYTHON

begun="$(mktemp)"
trap 'rm -f "$begun"' EXIT
train() {  # NAME FLAG...
    local code=0
    touch "$begun"
    echo "== $1"
    python "$here/../Trainer.py" "@$here/recipes/report.args" ${flags[@]+"${flags[@]}"} --save_root "$root/$1" \
        "${resume:---resume}" "${@:2}" || code=$?
    # A run whose numbers went bad is a finding like any other; what never began is a mistake in the flags, or a folder
    # in use. config.json is written when all is checked and training begins.
    if [ $code -eq 2 ] && [ "$root/$1/config.json" -nt "$begun" ]; then
        echo "compare_kl.sh: $1 stopped early, see above; going on" >&2
    elif [ $code -ne 0 ]; then
        exit $code
    fi
}
range=(--kl_anneal_start 0 --kl_anneal_stop 1)  # of all three, whatever a recipe says
train cyclical "${range[@]}" --kl_anneal_type Cyclical --kl_anneal_cycle "$cyclical_cycle" --kl_anneal_ratio "$cyclical_ratio"
train monotonic "${range[@]}" --kl_anneal_type Monotonic --kl_anneal_cycle "$monotonic_cycle" --kl_anneal_ratio "$monotonic_ratio"
train none "${range[@]}" --kl_anneal_type None
python "$here/compare_runs.py" "$root/cyclical" "$root/monotonic" "$root/none" --save_root "$root/compare"
