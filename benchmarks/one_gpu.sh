#!/usr/bin/env bash
# What to run on a GPU that is lent for a quarter of an hour, in two calls; each ends by itself in time.
#
#   bash benchmarks/one_gpu.sh wheels           # before, where there is a network: fills .wheels/
#   bash benchmarks/one_gpu.sh first FOLDER     # does it compute what it should, and how fast; 5.5 minutes
#   bash benchmarks/one_gpu.sh second FOLDER    # beside LeRobot, with the tables of both; 5.5 minutes
#
# A step that fails or takes too long is reported, and the next one begins. `LIMIT_SCALE=0.1` rehearses.
set -uo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(lerobot==0.6.1 draccus==0.11.6 mergedeep==1.3.4 transformers==5.5.4 tokenizers==0.22.2 gymnasium
  farama-notifications)
export HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF-expandable_segments:True} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

# step NAME SECONDS COMMAND...: run a command for at most so long, into FOLDER/NAME.log
step() {
  local name=$1 limit began=$SECONDS status=0
  limit=$(awk "BEGIN { print $2 * ${LIMIT_SCALE:-1} }")
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$folder/$name.log" 2>&1 || status=$?
  echo "$name: exit status $status after $((SECONDS - began)) of at most $limit s"
  tail -n 3 "$folder/$name.log" | cut -c 1-300
}

# training NAME SECONDS FLAGS...: rows of train_step.py into FOLDER/NAME.jsonl
training() {
  local name=$1 seconds=$2
  shift 2
  step "$name" "$seconds" python benchmarks/train_step.py --device=cuda --results="$folder/$name.jsonl" \
    --time_limit_s="$(awk "BEGIN { print ($seconds - 10) * ${LIMIT_SCALE:-1} }")" "$@"
}

case "${1:-}" in
  wheels)
    python -m pip download --quiet --no-deps --dest .wheels "${PACKAGES[@]}"
    exit
    ;;
  first | second)
    folder=${2:?name a folder for the results}
    mkdir -p "$folder"
    if [ -d .wheels ]; then
      python -m pip install --quiet --no-deps --no-index --find-links=.wheels "${PACKAGES[@]}"
    fi
    ;;
  *)
    echo "usage: bash benchmarks/one_gpu.sh wheels|first|second [FOLDER]" >&2
    exit 2
    ;;
esac

if [ "$1" = first ]; then
  nvidia-smi >"$folder/nvidia-smi.log" 2>&1
  step doctor 120 python -m depi.cli doctor --gpu --json
  step tests 60 python -m pytest -q -m gpu -p no:cacheprovider tests/policies tests/benchmarks
  training depi 110 --implementations=depi_eager,depi --batch_sizes=32,8 --steps=8
  step inference 50 python benchmarks/inference.py --device=cuda --cameras=3 --implementations=depi_fused,depi
else
  training lerobot_eager 90 --implementations=lerobot_eager --batch_sizes=32,8 --mixes=3 --steps=4
  training lerobot_compiled 120 --implementations=lerobot_compiled_default --batch_sizes=32 --mixes=3 --steps=4
  step inference_lerobot 90 python benchmarks/inference.py --device=cuda --cameras=3 --implementations=lerobot
  step report 20 python benchmarks/train_step.py \
    --report="$folder/depi.jsonl,$folder/lerobot_eager.jsonl,$folder/lerobot_compiled.jsonl"
  cat "$folder/report.log"
fi
