#!/usr/bin/env bash
# Train the report's three KL annealing settings with one seed on the same data, and plot their comparison.
#
#   scripts/compare_kl.sh --DR DATASET --save_root runs/kl [--cyclical_cycle 20] [--cyclical_ratio 2]
#       [--monotonic_cycle 100] [--monotonic_ratio 1] [any other flag of Trainer.py, @FILE included]
#
# Trains runs/kl/cyclical, runs/kl/monotonic and runs/kl/none in turn with --recipe report and the given flags. Started
# again, it continues where it stopped; with --overwrite it starts over. (Monotonic annealing has its own defaults: with
# a cycle of 20 and a ratio of 2 it would reach its maximum in epoch 4.)
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
            fail "$1: this is what the runs differ in; give --cyclical_cycle, --cyclical_ratio, --monotonic_cycle or --monotonic_ratio" ;;
        --kl_anneal_start*|--kl_anneal_stop*)
            fail "$1: monotonic annealing always goes from 0 to 1, and so do the others here; leave it out" ;;
        --recipe*) fail "$1: all three runs use --recipe report; leave it out" ;;
        --ckpt_path*|--test) fail "$1: all three runs start from scratch; leave it out" ;;
        --resume|--overwrite)  # it resumes by default
            [ -z "$resume" ] || [ "$resume" = "$1" ] || fail "--resume and --overwrite: give only one of them"
            resume="$1"; shift ;;
        -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$root" ] || fail "--save_root is missing; give a folder for the three runs"
# Checked before the first run, because the others start perhaps hours later.
check() {  # FLAG VALUE PATTERN WHAT
    [[ $2 =~ $3 ]] || fail "--$1 $2: give $4"
}
number='^([0-9]*[1-9][0-9]*\.?[0-9]*|[0-9]*\.[0-9]*[1-9][0-9]*)$'
check cyclical_cycle "$cyclical_cycle" '^0*([2-9]|[1-9][0-9]+)$' "a whole number of at least 2"
check monotonic_cycle "$monotonic_cycle" '^0*[1-9][0-9]*$' "a whole number of at least 1"
check cyclical_ratio "$cyclical_ratio" "$number" "a number above 0"
check monotonic_ratio "$monotonic_ratio" "$number" "a number above 0"
python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
    fail "PyTorch is not installed; run scripts/setup.sh and source .venv/bin/activate"

started="$(mktemp)"
trap 'rm -f "$started"' EXIT
train() {  # NAME FLAG...
    local code=0
    touch "$started"
    echo "== $1"
    python "$here/../Trainer.py" --recipe report ${flags[@]+"${flags[@]}"} --save_root "$root/$1" \
        "${resume:---resume}" "${@:2}" || code=$?
    # A run that diverged is a result like any other. A run that never started has wrong flags or a folder in use:
    # config.json is written when all checks have passed and training starts.
    if [ $code -eq 2 ] && [ "$root/$1/config.json" -nt "$started" ]; then
        echo "compare_kl.sh: $1 stopped early (see above); continuing with the next run" >&2
    elif [ $code -ne 0 ]; then
        exit $code
    fi
}
range=(--kl_anneal_start 0 --kl_anneal_stop 1)  # for all three, whatever an @FILE says
train cyclical "${range[@]}" --kl_anneal_type Cyclical --kl_anneal_cycle "$cyclical_cycle" --kl_anneal_ratio "$cyclical_ratio"
train monotonic "${range[@]}" --kl_anneal_type Monotonic --kl_anneal_cycle "$monotonic_cycle" --kl_anneal_ratio "$monotonic_ratio"
train none "${range[@]}" --kl_anneal_type None
python "$here/compare_runs.py" "$root/cyclical" "$root/monotonic" "$root/none" --save_root "$root/compare"
