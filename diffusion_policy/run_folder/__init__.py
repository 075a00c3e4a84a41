"""A training run on disk: its config, numbers and checkpoints; also run folders of the users' code base.

RUN/.hydra/config.yaml, overrides.yaml     the requested settings
RUN/logs.json.txt                          one JSON object per line
RUN/status.json                            under way, stopped, failed or finished; absent in older folders
RUN/sampling.json                          how often each dataset or task is drawn, if there are several
RUN/checkpoints/*.ckpt                     latest, best, and the best few
RUN/closed_loop*.json, closed_loop/*.json  results of evaluate_closed_loop.py --json for its checkpoints
RUN/logs/inference_log_*.json              the policy's actions in held-out episodes, if it was run on them
"""

from diffusion_policy.errors import WorkspaceError

LATEST = "latest.ckpt"
BEST = "best.ckpt"
LOG_NAME = "logs.json.txt"
STATUS_NAME = "status.json"
SAMPLING_NAME = "sampling.json"


class RunFolderError(WorkspaceError, ValueError):
    """There is no run, or one of its files is torn or has another format."""
