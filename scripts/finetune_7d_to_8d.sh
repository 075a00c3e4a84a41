#!/usr/bin/env bash
# Grow a 7-D checkpoint to 8-D, then fine-tune it. See usage below, or -h.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/finetune_7d_to_8d.sh [GPU] [EPOCHS] [OVERRIDE...]

Grow a 7-D checkpoint (pose) to 8-D (pose and gripper), then fine-tune it with scripts/train_cogact_finetune.sh.
GPU: its index, or cpu (default 0). EPOCHS: a positive number (default 200). OVERRIDE: settings of train.py.

Settings, from the environment; relative paths start at the repository's root:
  OLD_CKPT     7-D checkpoint                data/pretrained/cogact_7d.ckpt
  INIT_CKPT    8-D checkpoint to write       data/pretrained/cogact_7d_to_8d_init.ckpt   (never overwritten)
  DATASET      dataset, or its URL (s3://)   data/zarr/cogact.zarr
  MODE         grow, or strip: the action projections start anew
and EXPERIMENT, RUN_DIR, LOGS, PYTHON of scripts/train_cogact_finetune.sh.

Exit status: 0 done; 1 done, and the gripper does not open and close in every log (LOGS=1); 2 refused; else that of
the step that failed.
TEXT
}

refuse() {
    echo "error: $*" >&2
    exit 2
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
esac

export CALLED_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export GPU=${1:-${GPU:-0}}
export EPOCHS=${2:-${EPOCHS:-200}}
shift $(($# < 2 ? $# : 2))
export INIT_CKPT=${INIT_CKPT:-data/pretrained/cogact_7d_to_8d_init.ckpt}
export DATASET=${DATASET:-data/zarr/cogact.zarr}
OLD_CKPT=${OLD_CKPT:-data/pretrained/cogact_7d.ckpt}
MODE=${MODE:-grow}
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi
export PYTHON

[[ "$MODE" == grow || "$MODE" == strip ]] || refuse "MODE is '$MODE'; expected grow or strip"
[[ -f "$OLD_CKPT" ]] || refuse "no checkpoint $OLD_CKPT; OLD_CKPT names the 7-D checkpoint to grow"
[[ ! -e "$INIT_CKPT" ]] || refuse "$INIT_CKPT exists already; train from it with" \
    "scripts/train_cogact_finetune.sh, or name another INIT_CKPT"
# What training needs is asked first, so that a slip is found before a checkpoint is written.
CHECK=1 bash scripts/train_cogact_finetune.sh "$@"

mkdir -p "$(dirname "$INIT_CKPT")"
"$PYTHON" scripts/finetune_from_7d_to_8d.py --old_ckpt "$OLD_CKPT" --new_ckpt "$INIT_CKPT" --mode "$MODE" \
    --dataset "$DATASET"
CHECKED=1 bash scripts/train_cogact_finetune.sh "$@"
