"""The naive check calls 58 of 58 real logs learned, of which 28 never complete a change of the gripper.

The logs themselves are not in any checkout. Their counts are known (27 never close, wandering in 0.977-1.000; 1 never
opens; 1 flips 83 times in 457 steps, 44 of them undone at once; 29 open and close, with 2 to 23 changes each), and
sequences with these counts are generated here, always the same. The real logs are tested as well where available.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from log_factory import write_log

from diffusion_policy.evaluate.gripper import GripperReport
from diffusion_policy.evaluate.gripper_table import Validation, validate_logs

NEVER_CLOSE, NEVER_OPEN, CHATTER = 27, 1, 1
OPEN_AND_CLOSE = 58 - NEVER_CLOSE - NEVER_OPEN - CHATTER
NEVER_COMPLETE = {"never closes", "never opens"}


def sequences() -> list[tuple[list[float], list[float]]]:
    """(commands, measured gripper) of each of the 58 logs."""
    rng = np.random.default_rng(58)
    found = []
    for _ in range(NEVER_CLOSE):
        n = int(rng.integers(6, 300))
        found.append((rng.uniform(0.977, 1.0, n), np.ones(n)))
    found.append((rng.uniform(0.0, 0.003, 10), np.r_[np.ones(2), np.zeros(8)]))
    found.append((chattering(rng), np.ones(457)))
    for log in range(OPEN_AND_CLOSE):
        changes = 2 + log * 21 // (OPEN_AND_CLOSE - 1)  # 2 to 23
        dwell = rng.integers(4, 12, changes + 1)
        states = np.concatenate([np.full(length, i % 2 == 0, dtype=float) for i, length in enumerate(dwell)])
        commands = np.clip(states + rng.normal(0, 0.01, len(states)), 0, 1)
        found.append((commands, np.r_[1.0, states[:-1]]))
    return [(commands.tolist(), measured.tolist()) for commands, measured in found]


def chattering(rng: np.random.Generator) -> np.ndarray:
    """457 commands with 83 changes, 44 of which are undone by the next one within two steps."""
    dwell = np.r_[np.ones(44, dtype=int), np.full(38, 10)]
    rest = 457 - 1 - int(dwell.sum())
    dwell = np.r_[1 + rest // 2, dwell[:43], dwell[44:], dwell[43], rest - rest // 2]
    states = np.concatenate([np.full(length, i % 2 == 0, dtype=float) for i, length in enumerate(dwell)])
    return np.clip(states + rng.normal(0, 0.01, len(states)), 0, 1)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    folder = tmp_path_factory.mktemp("logs")
    for i, (commands, measured) in enumerate(sequences()):
        write_log(folder / f"inference_log_20260101_{i:06d}.json", commands, measured=measured)
    return validate_logs([folder])


def reports(validation: Validation) -> list[GripperReport]:
    return [entry for entry in validation.entries if isinstance(entry, GripperReport)]


def test_the_naive_check_calls_all_of_them_learned(judged: Validation) -> None:
    assert [report.naive["verdict"] for report in reports(judged)] == ["learned"] * 58
    assert "the naive check would call 58 of" in judged.summary()


def test_28_never_complete_a_change(judged: Validation) -> None:
    verdicts = Counter(report.verdict for report in reports(judged))
    assert verdicts == {"never closes": 27, "never opens": 1, "chatters": 1, "opens and closes": 29}
    assert sum(not report.events for report in reports(judged)) == 28
    assert judged.exit_status == 1
    assert "opens and closes: 29 of 58 logs with a gripper command (50%, 95 % interval 38%-62%)" in judged.summary()


def test_the_counts_are_those_of_the_real_logs(judged: Validation) -> None:
    by_verdict: dict[str, list[GripperReport]] = {}
    for report in reports(judged):
        by_verdict.setdefault(report.verdict, []).append(report)
    assert all(report.gripper_min and report.gripper_min >= 0.977 for report in by_verdict["never closes"])
    (chatter,) = by_verdict["chatters"]
    assert (chatter.steps, len(chatter.events), chatter.bounces) == (457, 83, 44)
    changes = [len(report.events) for report in by_verdict["opens and closes"]]
    assert (min(changes), max(changes)) == (2, 23)
    assert sequences() == sequences(), "always the same"


def test_the_real_logs_say_the_same(shared_data: Path) -> None:
    """Of the 58, 29 are kept next to the checkout."""
    expected = json.loads((shared_data / "real_logs" / "expected.json").read_text())
    of_eight = [name for name, facts in expected.items() if facts["action_dim"] == 8]
    decided = [name for name in of_eight if not expected[name]["equals_measured_gripper"]]
    found = reports(validate_logs([shared_data / "real_logs" / name for name in decided]))
    assert [report.naive["verdict"] for report in found] == ["learned"] * len(decided)
    assert len(decided) == 29
    assert sum(report.verdict in NEVER_COMPLETE for report in found) == 16
