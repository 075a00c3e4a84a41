"""Logs of served policies: the observation and the answer of each step.

Inference servers of this robot have written ``inference_log_YYYYMMDD_HHMMSS.json`` in three formats; ``read_log`` reads
all of them into one ``RunLog``, and ``write_inference_log`` writes the third. The fourth is this server's folder:

1. ``{"inputs": [{"step", "state"}], "outputs": [{"step", "action": [[A] x T]}]}``;
2. ``{"steps": [{"step", "input": {"state", "timestamp"}, "action": {"values": [[A] x T]}}]}``;
3. ``{"meta": {"checkpoint", "start_time", ...}, "steps": [{"step", "timing": {...}, "input": {"state", "image_base64"},
   "action": {"values": [[A] x T]}}]}``;
4. a folder with ``meta.json``, ``steps.jsonl`` and ``images/``, see ``session_log``.

A log is untrusted input: its size is bounded, every number is checked, and errors name the file and the entry. Old logs
do not name the layout of their numbers (pose + gripper, or rotation vector + width); which is then inferred from the
numbers themselves.

Legend of shapes: N steps, S state dimensions, T actions in a chunk, A action dimensions. Positions are meters,
quaternions xyzw, gripper 1 = open.
"""

from diffusion_policy.run_log.log import LogStep, RunLog, RunLogError, layout_of_commands, missing_sentences
from diffusion_policy.run_log.reading import read_log
from diffusion_policy.run_log.writing import write_inference_log

__all__ = [
    "LogStep",
    "RunLog",
    "RunLogError",
    "layout_of_commands",
    "missing_sentences",
    "read_log",
    "write_inference_log",
]
