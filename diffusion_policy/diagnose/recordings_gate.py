"""What recordings foretell of success in closed loop, and how often they err; thresholds that the advice rests on.

`benchmarks/verdict_calibration.py` fitted them to policies of all qualities in the built-in simulator, with the runs
left out that they are tried on; docs/evaluation.md has the table. Another task forgives other errors, so nothing here
is more than a note, and where scenes were rolled out these count instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_policy.diagnose.findings import Finding, ok

POSITION_ERROR = "position-error"
# Mean position error over the steps of a chunk on held-out episodes, in millimeters.
LARGEST_POSITION_MM = 17.6


@dataclass(frozen=True)
class Mispredicted:
    """So many of so many policies for which what was foretold did not come true."""

    wrong: int
    of: int

    def __str__(self) -> str:
        return f"{self.wrong} of {self.of}"


# Policies that did the task in fewer than half of the scenes, of those that were foretold to succeed by ...
OPEN_AND_CLOSE_BUT_FAIL = Mispredicted(55, 73)  # ... every log opening and closing
NEAR_BUT_FAIL = Mispredicted(1, 7)  # ... a smaller position error, by a threshold fitted without them
FAR_BUT_SUCCEED = Mispredicted(12, 71)  # and those that did it in more, in spite of a larger error


def position_finding(error_mm: float, about: str, look: str = "") -> Finding:
    """Whether positions are near enough for the gripper to meet what it is to hold, as far as recordings tell.

    Args:
        error_mm: mean position error over the steps of a chunk on held-out episodes.
        about: the file.
        look: the command that rolls the policy out.
    """
    text = f"held-out position error {error_mm:.3g} mm"
    if error_mm <= LARGEST_POSITION_MM:
        odds = f"{NEAR_BUT_FAIL} policies that were judged so failed all the same in the simulator"
        return ok(POSITION_ERROR, f"{text}, at most {LARGEST_POSITION_MM:g}; {odds}", about)
    odds = f"only {FAR_BUT_SUCCEED} policies that were judged so did the task in the simulator"
    remedy = (
        f"a gripper that opens and closes in every log is not enough: {OPEN_AND_CLOSE_BUT_FAIL} such policies failed; "
        "train longer or on more demonstrations, then roll it out"
    )
    return Finding(POSITION_ERROR, "note", f"{text}, more than {LARGEST_POSITION_MM:g}: {odds}", remedy, look, about)
