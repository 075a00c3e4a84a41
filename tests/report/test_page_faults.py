"""What a page must not do: refer to itself, count a finding twice, judge by its machine, advise poses on grippers."""

import re
from pathlib import Path

import pytest
from evaluation_factory import write_tiny_checkpoint
from log_factory import write_log
from report_factory import closed_loop, write_run
from tiny_run import write_dataset

from diffusion_policy.diagnose import environment
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.diagnose.findings import Finding, diagnose, distinct
from diffusion_policy.report.report_page import Sources, make_report

SHUT = [0.99] * 30


@pytest.mark.parametrize("given", ["datasets", "logs", "run", "closed_loop"])
def test_the_page_is_not_its_own_next_command(given: str, tmp_path: Path) -> None:
    values = {
        "datasets": lambda: (write_dataset(tmp_path / "set.zarr"),),
        "logs": lambda: (write_log(tmp_path / "inference_log_1.json", SHUT),),
        "run": lambda: write_run(tmp_path / "some_run", checkpoint=False),
        "closed_loop": lambda: (closed_loop(tmp_path / "a.json", "c" * 40),),
    }
    verdict, page = make_report(Sources(**{given: values[given]()}))
    assert verdict.level != "good", "there is something to look at"
    lead = page[: page.index("<nav")]
    assert "report.py" not in lead
    assert ("next: " in lead) == (given in ("datasets", "logs"))


def found_by_each(finding: Finding, *files: str) -> list[Finding]:
    return [Finding(finding.code, finding.severity, finding.evidence, about=file) for file in files]


def test_the_same_trouble_is_counted_once() -> None:
    cause = Finding("step-spacing", "warning", "steps are 0.2 s apart")
    other = Finding("polarity", "warning", "1 episode starts open, 9 closed")
    diagnosis = diagnose([*found_by_each(cause, "a.zarr", "b.zarr"), *found_by_each(other, "a.zarr", "b.zarr")])
    assert (diagnosis.cause, len(diagnosis.others)) == (found_by_each(cause, "a.zarr")[0], 1)
    assert distinct(found_by_each(other, "a", "b", "a")) == [(found_by_each(other, "a")[0], ("a", "b"))]


def test_a_trouble_of_many_logs_is_one_row_that_names_them(tmp_path: Path) -> None:
    logs = tuple(write_log(tmp_path / f"inference_log_{number}.json", SHUT) for number in range(8))
    _, page = make_report(Sources(logs=logs))
    table = page[page.index("<h3>log</h3>") : page.index("</section>")]
    assert table.count("never closes: commands stay") == 1
    assert "(inference_log_0.json, inference_log_1.json" in table
    assert "inference_log_5.json and 2 more)" in table
    examination = examine(logs=list(logs))
    assert len(examination.diagnosis.others) == 0, "eight times the same"


def test_the_machine_comes_last_and_judges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_log(tmp_path / "inference_log_1.json", [1.0] * 20 + [0.02] * 15 + [0.97] * 10)
    before, _ = make_report(Sources(logs=(log,)))
    monkeypatch.setattr(environment, "DISK_NEEDED", 10**18)
    verdict, page = make_report(Sources(logs=(log,)))
    assert verdict == before
    assert page.index("<h3>log</h3>") < page.index("<h3>environment</h3>") < page.index("GiB of disk are free")
    assert examine(logs=[log]).exit_status == 1, "the doctor is asked whether it works here"


def test_a_pose_policy_gets_no_advice_on_grippers(tmp_path: Path) -> None:
    """Nothing about closings, polarity or growing, for a dataset whose gripper never moves and a log without one."""
    dataset = write_dataset(tmp_path / "set.zarr")
    pose, eight = (write_tiny_checkpoint(tmp_path / f"{width}.ckpt", width=width) for width in (7, 8))
    texts = {}
    for checkpoint in (pose, eight):
        _, page = make_report(Sources((dataset,), checkpoint))
        texts[checkpoint] = page[page.index("<h3>dataset</h3>") : page.index("<h3>together</h3>")]
    about_grippers = re.compile(r"gripper closes|start open|neither open|equal at|grow")
    assert about_grippers.search(texts[eight])
    assert not about_grippers.search(texts[pose])
