"""A training run on disk: its config, its numbers, its checkpoints. Also folders of the users' code base.

RUN/.hydra/config.yaml, overrides.yaml     what was asked for
RUN/logs.json.txt                          one JSON object a line
RUN/status.json                            under way, stopped, failed or finished; absent in older folders
RUN/sampling.json                          how often each dataset or task is drawn, where there are several
RUN/checkpoints/*.ckpt                     latest, best, and the best few
RUN/closed_loop*.json, closed_loop/*.json  what evaluate_closed_loop.py --json wrote of its checkpoints
RUN/logs/inference_log_*.json              what the policy did in held-out episodes, if that was run
"""

from diffusion_policy.errors import WorkspaceError

LATEST = "latest.ckpt"
BEST = "best.ckpt"
LOG_NAME = "logs.json.txt"
STATUS_NAME = "status.json"
SAMPLING_NAME = "sampling.json"


class RunFolderError(WorkspaceError, ValueError):
    """No run there, or a file of it is torn or of something else."""
