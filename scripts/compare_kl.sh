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

root="" cyclical_cycle=20 cyclical_ratio=2 monotonic_cycle=100 monotonic_ratio=1 resume=(--resume) flags=()
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
        --ckpt_path*|--test) fail "$1: all three settings start anew; leave it out" ;;
        --resume) shift ;;  # it always does
        --overwrite) resume=(--overwrite); shift ;;
        -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$root" ] || fail "--save_root is missing; give a folder for the three runs"

train() {  # NAME FLAG...
    local code=0
    echo "== $1"
    python "$here/../Trainer.py" "@$here/recipes/report.args" ${flags[@]+"${flags[@]}"} --save_root "$root/$1" \
        "${resume[@]}" "${@:2}" || code=$?
    # A run whose numbers went bad is a finding like any other; what never began is a mistake in the flags.
    if [ $code -eq 2 ] && [ -f "$root/$1/psnr_best.csv" ]; then
        echo "compare_kl.sh: $1 stopped early, see above; going on" >&2
    elif [ $code -ne 0 ]; then
        exit $code
    fi
}
train cyclical --kl_anneal_type Cyclical --kl_anneal_cycle "$cyclical_cycle" --kl_anneal_ratio "$cyclical_ratio"
train monotonic --kl_anneal_type Monotonic --kl_anneal_cycle "$monotonic_cycle" --kl_anneal_ratio "$monotonic_ratio"
train none --kl_anneal_type None
python "$here/compare_runs.py" "$root/cyclical" "$root/monotonic" "$root/none" --save_root "$root/compare"
