#!/usr/bin/env bash
# Train on several GPUs. See usage below, or -h.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash train_scripts/train_ddp.sh [N_GPUS [GPU_IDS]] [OVERRIDE...]

Train in N_GPUS processes (8), one per GPU: the first ones, or those in GPU_IDS, such as 2,3,4,5; cpu instead trains
on the CPU. OVERRIDE: settings of train.py, passed on unchanged.

  bash train_scripts/train_ddp.sh 8 task.dataset_path=data/zarr/mine.zarr dataloader.batch_size=128
  bash train_scripts/train_ddp.sh 4 2,3,4,5 task.dataset_path=data/zarr/mine.zarr

dataloader.batch_size applies to one update over all GPUs (the predecessor's was per GPU).

Settings, from the environment; relative paths start at the repository's root:
  CONFIG       the config, as of --config-name           train_cogact_robot
  CONFIG_DIR   folder of configs from elsewhere          (none: config/)
  PYTHON       interpreter                               .venv/bin/python if it exists, else python

Exit status: 0 done; 2 refused; otherwise training's.
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

cd "$(dirname "${BASH_SOURCE[0]}")/.."

CONFIG=${CONFIG:-train_cogact_robot}
CONFIG_DIR=${CONFIG_DIR:-}
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
fi

n_gpus=8
if [[ $# -gt 0 && "$1" != *=* ]]; then
    n_gpus=$1
    shift
fi
[[ "$n_gpus" =~ ^[1-9][0-9]*$ ]] || refuse "N_GPUS is '$n_gpus'; expected a number of GPUs from 1 on"
settings=(${CONFIG_DIR:+"--config-dir=$CONFIG_DIR"} "--config-name=$CONFIG")
if [[ $# -gt 0 && "$1" != *=* && "$1" != [+~]* ]]; then
    if [[ "$1" == cpu ]]; then
        settings+=(training.device=cpu)
    else
        [[ "$1" =~ ^[0-9]+(,[0-9]+)*$ ]] || refuse "GPU_IDS is '$1'; expected indices such as 2,3,4,5, or cpu"
        IFS=, read -ra ids <<<"$1"
        [[ ${#ids[@]} == "$n_gpus" ]] || refuse "GPU_IDS names ${#ids[@]} GPUs ($1) for $n_gpus processes; give as many"
        export CUDA_VISIBLE_DEVICES=$1
    fi
    shift
fi

"$PYTHON" -m diffusion_policy.workspace.preflight "${settings[@]}" "$@"
echo "training $CONFIG in $n_gpus processes"
"$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$n_gpus" train_ddp.py "${settings[@]}" "$@"
