"""What errors on recordings predict about closed-loop success, and how often the prediction is wrong.

`benchmarks/verdict_calibration.py` fitted the threshold to policies of all qualities in the built-in simulator, leaving
out the runs that it was tested on; docs/evaluation.md has the table. Another task may forgive other errors, so nothing
here is more than a note, and where scenes were rolled out those count instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_policy.diagnose.findings import Finding, ok

POSITION_ERROR = "position-error"
# Mean position error over the steps of a chunk on held-out episodes, in millimeters.
LARGEST_POSITION_MM = 17.6


@dataclass(frozen=True)
class Mispredicted:
    """How many of how many policies did not turn out as predicted."""

    wrong: int
    of: int

    def __str__(self) -> str:
        return f"{self.wrong} of {self.of}"


# Policies that did the task in fewer than half of the scenes, among those predicted to succeed by ...
OPEN_AND_CLOSE_BUT_FAIL = Mispredicted(55, 73)  # ... every log opening and closing
NEAR_BUT_FAIL = Mispredicted(1, 7)  # ... a smaller position error, by a threshold fitted without them
FAR_BUT_SUCCEED = Mispredicted(12, 71)  # and policies that did it in more than half, despite a larger error


def position_finding(error_mm: float, about: str, look: str = "") -> Finding:
    """Whether positions are accurate enough for the gripper to reach its object, as far as recordings tell.

    Args:
        error_mm: mean position error over the steps of a chunk on held-out episodes.
        about: the file.
        look: the command that rolls the policy out.
    """
    text = f"held-out position error {error_mm:.3g} mm"
    if error_mm <= LARGEST_POSITION_MM:
        odds = f"{NEAR_BUT_FAIL} policies judged so failed in the simulator nevertheless"
        return ok(POSITION_ERROR, f"{text}, at most {LARGEST_POSITION_MM:g}; {odds}", about)
    odds = f"only {FAR_BUT_SUCCEED} policies judged so did the task in the simulator"
    remedy = (
        f"a gripper that opens and closes in every log is not enough: {OPEN_AND_CLOSE_BUT_FAIL} such policies failed; "
        "train longer or on more demonstrations, then roll it out"
    )
    return Finding(POSITION_ERROR, "note", f"{text}, more than {LARGEST_POSITION_MM:g}: {odds}", remedy, look, about)
