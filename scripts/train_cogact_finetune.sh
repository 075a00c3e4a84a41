#!/usr/bin/env bash
# Fine-tune an adapted 8-D checkpoint on a dataset. See usage below, or -h.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/train_cogact_finetune.sh [OVERRIDE...]

Train from an adapted checkpoint (scripts/finetune_7d_to_8d.sh makes one and trains). OVERRIDE: settings of train.py,
such as training.num_epochs=50 or dataloader.batch_size=64, passed on as they are.

Settings, from the environment; relative paths start at the repository's root:
  INIT_CKPT    checkpoint to start from      data/pretrained/cogact_7d_to_8d_init.ckpt
  DATASET      dataset, or its URL (s3://)   data/zarr/cogact.zarr
  GPU          index of the GPU, or cpu      0
  EPOCHS       epochs                        200
  EXPERIMENT   a file of config/experiment   finetune_8d   (empty: the plain config)
  RUN_DIR      where the run is kept         data/outputs/DATE/TIME_finetune_8d
  CHECK        1: say whether the run could start, and end; INIT_CKPT may be absent
  LOGS         1: run the trained policy over the dataset's held-out episodes and judge its gripper; 0: do not
  PYTHON       interpreter                   .venv/bin/python where there is one, else python

Exit status: 0 done; 1 done, and the gripper does not open and close in every log (LOGS=1); 2 refused; else that of
the step that failed.
TEXT
}

refuse() {
    echo "error: $*" >&2
    exit 2
}

# A value as Hydra reads it back, whatever is in it.
quoted() {
    local text=${1//\'/\\\'}
    printf "'%s'" "${text//\$\{/\\\$\{}"
}

# A command as bash reads it back, from the folder that this launcher was called from.
command_line() {
    [[ "$CALLED_FROM" == "$PWD" ]] || printf 'cd %q && ' "$PWD"
    printf '%q ' "$@"
}

case "${1:-}" in
    -h | --help)
        usage
        exit 0
        ;;
esac

CALLED_FROM=${CALLED_FROM:-$PWD}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

INIT_CKPT=${INIT_CKPT:-data/pretrained/cogact_7d_to_8d_init.ckpt}
DATASET=${DATASET:-data/zarr/cogact.zarr}
GPU=${GPU:-0}
EPOCHS=${EPOCHS:-200}
EXPERIMENT=${EXPERIMENT-finetune_8d}
RUN_DIR=${RUN_DIR:-data/outputs/$(date +%Y.%m.%d/%H.%M.%S)_finetune_8d}
LOGS=${LOGS:-0}
CHECK=${CHECK:-0}
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi

[[ "$GPU" == cpu || "$GPU" =~ ^[0-9]+$ ]] || refuse "GPU is '$GPU'; expected an index such as 0, or cpu"
[[ "$EPOCHS" =~ ^[1-9][0-9]*$ ]] || refuse "EPOCHS is '$EPOCHS'; expected a positive number"
[[ "$LOGS" == 0 || "$LOGS" == 1 ]] || refuse "LOGS is '$LOGS'; expected 0 or 1"
[[ -z "$EXPERIMENT" || -f "config/experiment/$EXPERIMENT.yaml" ]] ||
    refuse "no config/experiment/$EXPERIMENT.yaml; EXPERIMENT names one of $(cd config/experiment && echo *.yaml)"
[[ -f "$INIT_CKPT" || "$CHECK" == 1 ]] || refuse "no checkpoint $INIT_CKPT; make it with:" \
    "$(command_line "$PYTHON" scripts/finetune_from_7d_to_8d.py --old_ckpt A.ckpt --new_ckpt "$INIT_CKPT" \
        --dataset "$DATASET")"
[[ -e "$DATASET" || "$DATASET" == *://* ]] || refuse "no dataset $DATASET; make it with:" \
    "$(command_line "$PYTHON" scripts/convert_cogact_to_zarr.py --input TRAJECTORIES --output "$DATASET" \
        --resolution 320 180)"

device=cuda:$GPU
[[ "$GPU" != cpu ]] || device=cpu
for word in "$@"; do
    [[ "$word" != training.device=* ]] || device=${word#*=}
done
settings=(--config-name=train_cogact_robot ${EXPERIMENT:+"experiment=$EXPERIMENT"}
    "task.dataset_path=$(quoted "$DATASET")" "pretrained.path=$(quoted "$INIT_CKPT")" "training.device=$device"
    "training.num_epochs=$EPOCHS" "hydra.run.dir=$(quoted "$RUN_DIR")" "$@")

# CHECKED: by the other launcher, a moment ago.
[[ -n "${CHECKED:-}" ]] || "$PYTHON" -m diffusion_policy.workspace.preflight "${settings[@]}"
[[ "$CHECK" != 1 ]] || exit 0

echo "fine-tuning $INIT_CKPT on $DATASET: $EPOCHS epochs on $device, kept in $RUN_DIR"
"$PYTHON" train.py "${settings[@]}"

if [[ "$LOGS" == 1 ]]; then
    "$PYTHON" scripts/run_offline_inference.py "$RUN_DIR/checkpoints/latest.ckpt" "$DATASET" \
        --output "$RUN_DIR/logs" --device "$device"
    "$PYTHON" scripts/validate_gripper.py "$RUN_DIR"/logs/inference_log_*.json
fi
