#!/usr/bin/env bash
# Everything that wants a card, unattended, on a bare machine with python3, torch, numpy, scipy, safetensors and
# perhaps tensorboard and pytest. Each call does the steps it names, in at most ten minutes:
#
#   bash Testing/gpu/run.sh data              the cache from $CARRIED/part*.npz, where not all of it can come at once
#   bash Testing/gpu/run.sh data check        and: benchmark of all presets, CUDA tests
#   bash Testing/gpu/run.sh train:7.5         so many minutes of training preset small; again, to go on
#
# All parts have to be there before the first training. What a call has by its end, weights in fp16 and in pieces too, is
# in $OUT, also where it is cut off before.
#
# $CARRIED (default .gpu): what Testing/gpu/carry.py packed. $WORK (default /tmp/maesil): cache and run, between calls.
# $OUT (default out): what is to be kept. $MINUTES (default 13): of training in all calls together. $STEPS: updates, if
# they are not to come from the benchmark. $PRESET: small.
set -euo pipefail
cd "$(dirname "$0")/../.."
CARRIED=${CARRIED:-.gpu} WORK=${WORK:-/tmp/maesil} OUT=${OUT:-out} MINUTES=${MINUTES:-13}
PRESET=${PRESET:-small} PRESETS=${PRESETS:-"small base tiny"}
export CARRIED WORK OUT PRESETS BENCH=${BENCH:-}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
mkdir -p "$WORK" "$OUT"

data() {
  python3 Testing/gpu/carry.py unpack "$WORK/cache" "$CARRIED"/part*.npz
}

bench() {
  # shellcheck disable=SC2086
  python3 Testing/Benchmarks/bench_gpu.py --data "$WORK/cache" --output "$OUT/bench.json" "$@" ${BENCH:-} |
    tee "$OUT/bench.txt"
  cp "$OUT/bench.json" "$WORK/bench.json"
}

check() {
  # shellcheck disable=SC2086
  timeout 400 bash -c "$(declare -f bench); bench --profile '$OUT' --presets $PRESETS" || echo "THE BENCHMARK WAS CUT OFF"
  if [ -f "$OUT/bench.json" ]; then cp "$OUT/bench.json" "$WORK/bench.json"; fi
  if python3 -c 'import pytest' 2>/dev/null; then
    timeout 120 python3 -m pytest --noconftest -q Testing/library/training/test_cuda.py 2>&1 | tee "$OUT/test_cuda.txt" ||
      echo "THE CUDA TESTS FAILED OR WERE CUT OFF"
  fi
}

train() {
  trap keep EXIT
  if [ ! -f "$WORK/steps" ]; then
    if [ -z "${STEPS:-}" ] && [ ! -f "$WORK/bench.json" ]; then bench --presets "$PRESET" --no-monai; fi
    { if [ -n "${STEPS:-}" ]; then echo "$STEPS"
      else python3 Testing/gpu/carry.py steps "$WORK/bench.json" "$MINUTES" "$PRESET"; fi; } >"$WORK/steps.new"
    mv "$WORK/steps.new" "$WORK/steps"
  fi
  echo "training to update $(cat "$WORK/steps")"
  # status 3: the minutes are over, and the next call goes on
  # shellcheck disable=SC2086
  python3 -m MAESILLib pretrain --data "$WORK/cache" --output "$WORK/run" --config Testing/gpu/small.toml \
    --preset "$PRESET" --steps "$(cat "$WORK/steps")" --minutes "$1" --resume auto --progress bar ${TRAIN:-} || [ $? = 3 ]
}

keep() {
  if [ -f "$WORK/run/model.safetensors" ]; then
    cp "$WORK/run/log.csv" "$WORK/run/config.json" "$OUT/"
    cp "$(ls -t "$WORK"/run/previews/*.png | head -n 1)" "$OUT/preview.png" || true
    python3 Testing/gpu/carry.py split "$WORK/run/model.safetensors" "$OUT"
    tail -n 3 "$OUT/log.csv"
  fi
}

for step in "$@"; do
  "${step%%:*}" "$([[ $step == *:* ]] && echo "${step#*:}" || true)"
done
