#!/usr/bin/env bash
# Everything that wants a card, unattended, on a bare machine with python3, torch, numpy, scipy, safetensors and
# perhaps tensorboard and pytest. Each call does the steps it names, in at most ten minutes, and may be repeated:
#
#   bash Testing/gpu/run.sh data check        the cache from $CARRIED/part*.npz; CUDA tests; benchmark of all presets
#   bash Testing/gpu/run.sh data train:9      more parts; nine minutes of training preset small, or until it is done
#   bash Testing/gpu/run.sh train:8 finish    eight minutes more; the checkpoint in fp16, in pieces, and the figures
#
# $CARRIED (default .gpu): what Testing/gpu/carry.py packed. $WORK (default /tmp/maesil): cache and run, between calls.
# $OUT (default out): what is to be kept. $MINUTES (default 16): of training in all calls together. $PRESET: small.
set -euo pipefail
cd "$(dirname "$0")/../.."
CARRIED=${CARRIED:-.gpu} WORK=${WORK:-/tmp/maesil} OUT=${OUT:-out} MINUTES=${MINUTES:-16}
PRESET=${PRESET:-small} PRESETS=${PRESETS:-"tiny small base"}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p "$WORK" "$OUT"

data() {
  python3 Testing/gpu/carry.py unpack "$WORK/cache" "$CARRIED"/part*.npz
}

check() {
  if python3 -c 'import pytest' 2>/dev/null; then
    python3 -m pytest --noconftest -q Testing/test_cuda.py 2>&1 | tee "$OUT/test_cuda.txt" || echo "CUDA TESTS FAILED"
  fi
  # shellcheck disable=SC2086
  python3 Testing/Benchmarks/bench_gpu.py --data "$WORK/cache" --presets $PRESETS --output "$WORK/bench.json" ${BENCH:-} |
    tee "$OUT/bench.txt"
  cp "$WORK/bench.json" "$OUT/"
}

train() {
  if [ ! -f "$WORK/steps" ]; then
    if [ ! -f "$WORK/bench.json" ]; then
      # shellcheck disable=SC2086
      python3 Testing/Benchmarks/bench_gpu.py --data "$WORK/cache" --presets "$PRESET" --eager --output "$WORK/bench.json" ${BENCH:-}
    fi
    python3 Testing/gpu/carry.py steps "$WORK/bench.json" "$MINUTES" "$PRESET" >"$WORK/steps"
  fi
  echo "training to update $(cat "$WORK/steps")"
  # status 3: the minutes are over, and the next call goes on
  # shellcheck disable=SC2086
  python3 -m MAESILLib pretrain --data "$WORK/cache" --output "$WORK/run" --config Testing/gpu/small.toml \
    --preset "$PRESET" --steps "$(cat "$WORK/steps")" --minutes "$1" --resume auto --progress off ${TRAIN:-} || [ $? = 3 ]
  tail -n 3 "$WORK/run/log.csv"
  keep
}

keep() {
  cp "$WORK/run/log.csv" "$WORK/run/config.json" "$OUT/"
  cp "$(ls -t "$WORK"/run/previews/*.png | head -n 1)" "$OUT/preview.png" || true
}

finish() {
  python3 Testing/gpu/carry.py split "$WORK/run/model.safetensors" "$OUT"
  keep
}

for step in "$@"; do
  "${step%%:*}" "$([[ $step == *:* ]] && echo "${step#*:}" || true)"
done
