#!/usr/bin/env bash
# The whole pipeline on synthetic people: make a dataset, train, generate, score. Everything is written to demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
source .venv/bin/activate
mkdir -p demo
[ -d demo/data ] || python scripts/make_synthetic_dataset.py demo/data
python Trainer.py --recipe demo --DR demo/data --save_root demo/run --no-cache --overwrite
python Tester.py --DR demo/data --ckpt_path demo/run/best.ckpt --save_root demo/result --truth demo/data/truth \
    --latent mean --no-cache --overwrite
python scripts/score_submission.py demo/result/submission.csv demo/data/truth --json demo/result/score.json
python - <<'PYTHON'
import json
mean = json.load(open("demo/result/summary.json"))["mean"]
gain = mean["course_psnr"] - mean["course_psnr_repeat_first"]
print(f"""
PSNR over the five test sequences: {mean['course_psnr']:.2f} dB, repeating the first frame {mean['course_psnr_repeat_first']:.2f} dB
watch       demo/result/compare_seq0.mp4 ... compare_seq4.mp4   (truth | prediction | pose)
look at     demo/result/psnr.png, demo/run/figures/
submission  demo/result/submission.csv""")
if gain < 3:
    raise SystemExit(f"demo.sh: the gain of {gain:.2f} dB is below the 3 dB that this demo should reach")
PYTHON
