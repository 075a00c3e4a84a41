"""No string, page or help text claims from recordings what only a rollout shows: that a policy has learned, or grasps.

Recordings and logs show when a gripper would close, in how many of them, and how firm that is.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_trees import REPOSITORY, parsed, spoken, where

CLAIM = re.compile(
    r"\b(?:can|may|could) be deployed|\bready (?:to|for) (?:be )?deploy|\bsafe to (?:deploy|run|serve)\b"
    r"|(?<!not )\bdeploy it\b|\blearn(?:ed|t)\b(?! anew)|\blearns (?:when|how|to (?:use|grasp|close|open))\b"
    r"|(?<!whether )\b(?:it|policy|arm|robot) (?:then )?grasps\b|\bcan grasp\b|\bsucceeds\b|\bsuccessfully\b"
    r"|(?<!of )\bit works\b",
    re.IGNORECASE,
)
# By file: context of claims that are denied, quoted, measured by a rollout, or about something else.
ALLOWED = {
    "README.md": [
        '"the gripper changes, so it is learned": 28 of 58 real logs in which it never completes a movement',
        "only a rollout shows that it grasps",
        "a person on the robot, and learned from",
    ],
    "CHANGELOG.md": ['`learned` is now', 'not that it grasps', '"it can be deployed" and "deploy"'],
    "docs/closed_loop.md": [
        "It succeeds in 40 of 40 scenes",  # the scripted expert
    ],
    "docs/dagger.md": ["often the new policy succeeds, so the row gives no success rate"],
    "docs/evaluation.md": [
        "calls a gripper learned that wanders",
        "In each the naive check finds the gripper learned",
        'Earlier versions called the last verdict "learned"',
        "A policy *succeeds* here if it does the task",  # in closed loop
        "a policy which succeeds has the better figure",
    ],
    "docs/study.md": [
        "the gripper is learned between epochs 50 and 150",  # what the guide claims
        "a statement about the loss: a gripper that is not learned",
        "learned in one scaling are wrong in another",
    ],
    "docs/training.md": ["weights learned in one scaling"],
    "diffusion_policy/evaluate/gripper.py": ["learned", "not learned"],  # terms of the naive check, in JSON
    "diffusion_policy/evaluate/gripper_table.py": ["learned", "the naive check would call", " of them learned"],
    "diffusion_policy/evaluate/verdicts.py": ["learned"],  # of files of earlier versions
    "diffusion_policy/report/comparison.py": ["it succeeds most often in closed loop"],
    "diffusion_policy/report/report_page.py": ["It can be deployed"],  # if its rollouts are given
    "diffusion_policy/diagnose/step_findings.py": ["their noise is learned as if it were motion"],
    "scripts/demo.py": ["that cannot grasp learns when to close, and then it grasps"],  # in rollouts
}  # fmt: skip


def said(path: Path) -> Iterator[str]:
    """What users read: pages line by line, the library's strings except docstrings, and scripts' help."""
    if path.suffix != ".py":
        yield from path.read_text(encoding="utf-8").splitlines()
        return
    yield from (text for _, text in spoken(path))
    if path.parent.name == "scripts" or path.name == "train.py":
        yield ast.get_docstring(parsed(path)) or ""


def files() -> list[Path]:
    folders = {"diffusion_policy": ".py", "scripts": "", "docs": ".md", "config": ".yaml"}
    found = [path for folder, end in folders.items() for path in (REPOSITORY / folder).rglob(f"*{end}")]
    pages = [path for path in found if path.suffix in (".py", ".sh", ".md", ".yaml", ".js", ".html")]
    return sorted([*pages, REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", REPOSITORY / "train.py"])


def claims(text: str, allowed: list[str]) -> list[str]:
    for known in allowed:
        text = text.replace(known, "")
    return [text[max(0, match.start() - 40) : match.end() + 40] for match in CLAIM.finditer(text)]


def test_nothing_is_claimed_that_recordings_cannot_show() -> None:
    offences = [
        f"{where(path)}: {claim}"
        for path in files()
        for text in said(path)
        for claim in claims(text, ALLOWED.get(where(path), []))
    ]
    assert not offences, "say what the recordings show, and how firm it is:\n" + "\n".join(offences)


def test_what_is_allowed_is_still_reported() -> None:
    texts = {name: "\n".join(said(REPOSITORY / name)) for name in ALLOWED}
    assert not [(name, known) for name, allowed in ALLOWED.items() for known in allowed if known not in texts[name]]


@pytest.mark.parametrize(
    "text",
    [
        "It can be deployed: no trouble found.", "ready to deploy", "Safe to run on the arm", "the gripper is learned",
        "it learned when to close", "The policy grasps", "it can grasp", "it succeeds", "It works.",
        "closed successfully",
    ],
)  # fmt: skip
def test_claims_are_found(text: str) -> None:
    assert claims(text, [])
    assert not claims("it opens and closes in 3 of 3 logs; whether it holds anything, only a rollout shows", [])
