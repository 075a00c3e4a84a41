#!/usr/bin/env bash
# Judge VPT's weights as they are, in the grove or in MineDojo. See usage below, or -h.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash scripts/evaluate_vpt_zero_shot.sh [EPISODES] [DEVICE] [STEPS] [WEIGHTS] [OPTION...]

Play EPISODES (default 10) with VPT's weights, without training: success with its interval, why episodes failed, and their
videos. DEVICE: auto (default: cuda where there is one), cpu, cuda:0. STEPS of an episode at most (default 1200, a minute).
WEIGHTS: a .weights file or a checkpoint (default: VPT_WEIGHTS, else data/pretrained/vpt/rl-from-early-game-2x.weights, else
data/pretrained/foundation-model-1x.weights; the small ones that ship, data/pretrained/grove_vpt.weights, only when named).
OPTION: of scripts/evaluate_closed_loop.py, such as --greedy, or --resume after an interruption.

Settings, from the environment; relative paths start where you are:
  GAME         grove, or minedojo where it is installed    grove
  TASK         log, wool, stone; of MineDojo its task id   log (minedojo: harvest_milk)
  SEED         of the first episode                        100000
  VIDEOS       how many episodes are filmed                4, or EPISODES if fewer
  OUT          folder of result.json and the videos        data/vpt_zero_shot
  PYTHON       interpreter                                 the repository's .venv/bin/python, else python

Exit status: 0 measured; 2 refused; 130 interrupted, the episodes that ended are kept.
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

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
EPISODES=${1:-10}
DEVICE=${2:-auto}
STEPS=${3:-1200}
WEIGHTS=${4:-${VPT_WEIGHTS:-}}
shift $(($# < 4 ? $# : 4))
GAME=${GAME:-grove}
SEED=${SEED:-100000}
OUT=${OUT:-data/vpt_zero_shot}
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ ! -x "$ROOT/.venv/bin/python" ]] || PYTHON=$ROOT/.venv/bin/python
fi

[[ "$EPISODES" =~ ^[1-9][0-9]*$ ]] || refuse "EPISODES is '$EPISODES'; expected a positive number, such as:" \
    "bash scripts/evaluate_vpt_zero_shot.sh 1 auto 100"
[[ "$DEVICE" =~ ^(auto|cpu|cuda(:[0-9]+)?)$ ]] || refuse "DEVICE is '$DEVICE'; expected auto, cpu, or cuda:0"
[[ "$STEPS" =~ ^[1-9][0-9]*$ ]] || refuse "STEPS is '$STEPS'; expected a positive number"
[[ "$SEED" =~ ^[0-9]+$ ]] || refuse "SEED is '$SEED'; expected a number, 0 or more"
case "$GAME" in
    grove) TASK=${TASK:-log} ;;
    minedojo) TASK=${TASK:-harvest_milk} ;;
    *) refuse "GAME is '$GAME'; expected grove or minedojo" ;;
esac
case "$WEIGHTS" in
    true) refuse "DEBUG_ACTIONS is 'true'; actions are not printed here, and VIDEOS=$EPISODES films every episode" ;;
    false) WEIGHTS=${VPT_WEIGHTS:-} ;; # the guide's fourth argument, and its default
esac
RELEASED=data/pretrained/vpt/rl-from-early-game-2x.weights
for file in "$RELEASED" "$ROOT/$RELEASED" "$ROOT/data/pretrained/foundation-model-1x.weights"; do
    [[ -n "$WEIGHTS" || ! -f "$file" ]] || WEIGHTS=$file
done
[[ -f "$WEIGHTS" ]] || refuse "no weights ${WEIGHTS:-$RELEASED}; the README of openai/Video-Pre-Training lists the files:" \
    "name one as the fourth argument or in VPT_WEIGHTS, or play the small ones that ship with the project:" \
    "bash $ROOT/scripts/evaluate_vpt_zero_shot.sh $EPISODES $DEVICE $STEPS $ROOT/data/pretrained/grove_vpt.weights"
VIDEOS=${VIDEOS:-$((EPISODES < 4 ? EPISODES : 4))}
[[ "$VIDEOS" =~ ^[0-9]+$ ]] || refuse "VIDEOS is '$VIDEOS'; expected a number, 0 or more"

mkdir -p "$OUT"
exec "$PYTHON" "$ROOT/scripts/evaluate_closed_loop.py" "$WEIGHTS" --simulator "$ROOT/config/simulator/grove.yaml" \
    --env "game=$GAME" --env "max_steps=$STEPS" --task "$TASK" --scenes "$EPISODES" --seed "$SEED" --device "$DEVICE" \
    --output "$OUT" --video "$VIDEOS" --json "$OUT/result.json" "$@"
