#!/usr/bin/env bash
# Iterations of DAgger for VPT in the grove. See usage below, or -h.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/run_dagger_iteration.sh --task TASK --continue-from CKPT --iterations N [OPTION...]

Rounds of scripts/dagger.py in the grove, by a guide's command: roll VPT out, label what it meets with the expert's actions,
add that to the data, clone on all of it, evaluate; a table of the rounds at the end.
TASK: log (default, and what harvest_1_log is here), wool, stone. CKPT: of a train_vpt_bc run, or a .weights file. N: rounds
(default 1). OPTION: of scripts/dagger.py, such as --control, --updates 400, or --resume after an interruption; and the guide's

  --collect-episodes N   rolled out in each round, in place of EPISODES
  --eval-episodes N      that every checkpoint plays (--evaluation-scenes, default 40)
  --max-steps N          of an episode (--env max_steps, default 600)
  --device D             of training: cpu, cuda, cuda:0, or auto; episodes are played on the CPU

Those that mean nothing here are refused with what to use instead.

Settings, from the environment; relative paths start where you are:
  DATASET        what CKPT was cloned from    data/grove/TASK.zarr; where absent, it is made of
  BASE_EPISODES  demonstrations               50
  EPISODES       rolled out in each round     30 20, the guide's; 20 in further rounds
  WORKDIR        where everything is kept     data/dagger_TASK
  PYTHON         interpreter                  the repository's .venv/bin/python, else python

Exit status: 0 all rounds ran; 2 refused; else that of the command that failed.
TEXT
}

refuse() {
    echo "error: $*" >&2
    exit 2
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TASK=log CKPT= ROUNDS=1 COLLECT= DEVICE=
OPTIONS=()
while (($#)); do
    case "$1" in
        -h | --help)
            usage
            exit 0
            ;;
        --task | --continue-from | --iterations | --collect-episodes | --eval-episodes | --max-steps | --device)
            (($# > 1)) || refuse "$1 needs a value"
            case "$1" in
                --task) TASK=$2 ;;
                --continue-from) CKPT=$2 ;;
                --iterations) ROUNDS=$2 ;;
                --device) DEVICE=$2 ;;
                *) [[ "$2" =~ ^[1-9][0-9]*$ ]] || refuse "$1 is '$2'; expected a positive number" ;;
            esac
            case "$1" in
                --collect-episodes) COLLECT=$2 ;;
                --eval-episodes) OPTIONS+=(--evaluation-scenes "$2") ;;
                --max-steps) OPTIONS+=(--env "max_steps=$2") ;;
            esac
            shift 2
            ;;
        --dagger-epochs)
            refuse "--dagger-epochs: the data grows from round to round, and so would the updates of an epoch; a round here" \
                "makes the same number of updates, --updates 400"
            ;;
        --skip-eval)
            refuse "--skip-eval: the table of the rounds compares them in the same episodes; make them few," \
                "--eval-episodes 10"
            ;;
        --skip-collect | --start-iteration)
            refuse "$1: what has been collected, trained and evaluated is kept in WORKDIR and never made again; go on with" \
                "the same command and --resume"
            ;;
        --clean-restart)
            refuse "--clean-restart: nothing is deleted here; begin in another folder, WORKDIR=data/dagger_again"
            ;;
        --failure-window | --random-sample-rate)
            refuse "$1: no frames are chosen, since the expert labels all that the policy meets, in every episode; leave" \
                "it out"
            ;;
        *)
            OPTIONS+=("$1")
            shift
            ;;
    esac
done
if [[ "$TASK" == harvest_1_log ]]; then
    TASK=log
    echo "harvest_1_log is a task of MineDojo; here the grove's log task is played" >&2
fi
[[ "$TASK" =~ ^(log|wool|stone)$ ]] || refuse "--task is '$TASK'; expected log, wool or stone"
[[ -n "$CKPT" ]] || refuse "--continue-from names the checkpoint to start from; make one with:" \
    "python train.py --config-name=train_vpt_bc task.dataset_path=data/grove/$TASK.zarr"
[[ -f "$CKPT" ]] || refuse "no checkpoint $CKPT"
[[ "$ROUNDS" =~ ^[1-9][0-9]*$ ]] || refuse "--iterations is '$ROUNDS'; expected a positive number"

DATASET=${DATASET:-data/grove/$TASK.zarr}
BASE_EPISODES=${BASE_EPISODES:-50}
EPISODES=${COLLECT:-${EPISODES:-30 20}}
WORKDIR=${WORKDIR:-data/dagger_$TASK}
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ ! -x "$ROOT/.venv/bin/python" ]] || PYTHON=$ROOT/.venv/bin/python
fi
[[ "$BASE_EPISODES" =~ ^[1-9][0-9]*$ ]] || refuse "BASE_EPISODES is '$BASE_EPISODES'; expected a positive number"
[[ "$EPISODES" =~ ^[1-9][0-9]*(\ [1-9][0-9]*)*$ ]] || refuse "EPISODES is '$EPISODES'; expected numbers, such as '30 20'"
read -ra SCENES <<<"$EPISODES"
while ((${#SCENES[@]} < ROUNDS)); do SCENES+=("${COLLECT:-20}"); done
[[ "$DEVICE" =~ ^(|auto|cpu|cuda(:[0-9]+)?)$ ]] || refuse "--device is '$DEVICE'; expected auto, cpu, or cuda:0"
if [[ "$DEVICE" == auto ]]; then
    DEVICE=$("$PYTHON" -c "import torch; print('cuda:0' if torch.cuda.is_available() else 'cpu')")
fi
[[ -z "$DEVICE" ]] || OPTIONS+=(--set "training.device=$DEVICE")

# An option that does not exist is refused here, and not after a dataset has been recorded.
for word in ${OPTIONS[@]+"${OPTIONS[@]}"}; do
    [[ "$word" != --* ]] || grep -qF "\"${word%%=*}\"" "$ROOT/scripts/dagger.py" ||
        refuse "$word is an option neither of this launcher nor of scripts/dagger.py; see -h of both"
done

if [[ ! -e "$DATASET" ]]; then
    RECORDINGS=${DATASET%.zarr}_recordings
    "$PYTHON" "$ROOT/scripts/record_grove.py" --output "$RECORDINGS" --task "$TASK" --episodes "$BASE_EPISODES" --resume
    "$PYTHON" "$ROOT/scripts/convert_dataset.py" --input "$RECORDINGS" --output "$DATASET" --resolution 128 128 --resume
fi
exec "$PYTHON" "$ROOT/scripts/dagger.py" "$CKPT" --dataset "$DATASET" --simulator grove --task "$TASK" \
    --rounds "$ROUNDS" --scenes "${SCENES[@]:0:ROUNDS}" --workdir "$WORKDIR" ${OPTIONS[@]+"${OPTIONS[@]}"}
