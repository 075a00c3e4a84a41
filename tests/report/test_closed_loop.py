"""Closed loop in findings, on the page and in its verdict."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, chromium
from log_factory import write_log
from report_factory import ABOUT, CONTENT, closed_loop, metrics, only, scenes_of, write_run

from diffusion_policy.closed_loop.videos import Video
from diffusion_policy.diagnose.closed_loop_evidence import (
    closed_loop_of,
    compared,
    comparison_sentence,
    decisive,
    look_at_closed_loop,
)
from diffusion_policy.diagnose.closed_loop_findings import closed_loop_findings
from diffusion_policy.diagnose.doctor import examine
from diffusion_policy.diagnose.sources import OpenedCheckpoint
from diffusion_policy.env_runner.document import conditions, read_closed_loop
from diffusion_policy.env_runner.outcomes import cells, outcomes
from diffusion_policy.env_runner.results import ResultError
from diffusion_policy.report.report_page import Sources, make_report, write_report
from diffusion_policy.run_folder.reading import open_run

HELD = "the policy commands no gripper: held at 1"
WORKS = "1" * 26 + "c" * 10 + "d" * 4


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_closed_loop(closed_loop(tmp_path / "a.json", WORKS, asked=50))
    assert found.results == scenes_of(WORKS)
    assert found.about == ABOUT
    assert (found.scenes, found.is_complete) == (50, False)
    assert conditions(found) == (
        "TabletopEnv, pick_and_place; referee physics; 6 steps of a chunk executed; ddim in 8 steps, ema_model; policy "
        "in process, no guard; seeds 100000 to 100049"
    )


@pytest.mark.parametrize("key", [*ABOUT, "scenes_asked"])
def test_a_document_without_a_condition_is_refused_by_its_name(key: str, tmp_path: Path) -> None:
    path = closed_loop(tmp_path / "a.json", "1c")
    content = json.loads(path.read_text())
    for wrong in ({"wrong": 1}, 1.5) if key != "latency_injected_ms" else ("fast",):
        path.write_text(json.dumps({**content, key: wrong}))
        with pytest.raises(ResultError, match=rf"a\.json: (simulator\.env|{key}) is"):
            read_closed_loop(path)


@pytest.mark.parametrize(
    "change",
    [
        {"success": "yes"}, {"seed": None}, {"position": 3}, {"position": ["left", 2]}, {"latencies_ms": [None]},
        {"refusals": []}, {"reason": 4}, {"scene": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_scene_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = closed_loop(tmp_path / "a.json", "1c")
    content = json.loads(path.read_text())
    content["scenes"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=r"a\.json: a scene"):
        read_closed_loop(path)


@pytest.mark.parametrize(
    ("outcomes", "changes", "severity", "message"),
    [
        (WORKS, {}, "ok", "26 of 40 scenes (95 % interval 50%-78%; TabletopEnv, pick_and_place; referee physics)"),
        ("1" + "c" * 39, {}, "warning", "1 of 40 scenes (95 % interval 0%-13%"),
        ("c" * 40, {}, "error", "0 of 40 scenes (95 % interval 0%-9%"),
        ("cd", {}, "warning", "0 of 2 scenes (95 % interval 0%-66%"),
        ("11", {}, "note", "2 of 2 scenes (95 % interval 34%-100%"),
        ("c" * 40, {"notes": [HELD]}, "note", "0 of 40 scenes"),
        ("c" * 40, {"notes": [HELD], "task": "pose_only"}, "error", "0 of 40 scenes"),
    ],
)
def test_success_is_judged_with_its_interval(
    outcomes: str, changes: dict[str, Any], severity: str, message: str, tmp_path: Path
) -> None:
    looked = look_at_closed_loop([closed_loop(tmp_path / "a.json", outcomes, **changes)])
    finding = only(closed_loop_findings(looked), "closed-loop")
    assert finding.severity == severity
    assert message in finding.evidence


def test_an_interruption_is_reported(tmp_path: Path) -> None:
    looked = look_at_closed_loop([closed_loop(tmp_path / "a.json", WORKS, asked=100)])
    assert "interrupted after 40 of 100 scenes" in only(closed_loop_findings(looked), "closed-loop").evidence


def run_with(tmp_path: Path, **documents: tuple[str, dict[str, Any]]) -> Path:
    """A run with best.ckpt and latest.ckpt, and documents in its folder."""
    run = write_run(tmp_path / "some_run")
    (run / "checkpoints" / "best.ckpt").write_bytes(CONTENT)
    (run / "checkpoints" / "latest.ckpt").write_bytes(b"others")
    for name, (results, about) in documents.items():
        closed_loop(run / f"closed_loop_{name}.json", results, **about)
    return run


LATEST = {"checkpoint": "latest.ckpt", "checkpoint_sha256": hashlib.sha256(b"others").hexdigest()}
GONE = {"checkpoint": "old.ckpt", "checkpoint_sha256": hashlib.sha256(b"older").hexdigest()}


def test_a_result_is_of_the_checkpoint_with_its_content(tmp_path: Path) -> None:
    run = open_run(run_with(tmp_path, best=(WORKS, {}), latest=("c" * 40, LATEST), gone=("c" * 40, GONE)))
    looked = closed_loop_of((), None, run)
    assert [evidence.checkpoint and evidence.checkpoint.name for evidence in looked] == [
        "best.ckpt",
        None,
        "latest.ckpt",
    ]
    assert [evidence.path.name for evidence in decisive(looked, run.deployable)] == ["closed_loop_best.json"]
    severities = [finding.severity for finding in closed_loop_findings(looked, run.deployable)]
    assert severities == ["ok", "note", "note"], "what fails is not what would be deployed"
    unmeasured = [evidence for evidence in looked if evidence.of != "best.ckpt"]
    assert [evidence.of for evidence in decisive(unmeasured, run.deployable)] == ["latest.ckpt"]


def test_a_policy_that_works_without_latency_is_only_warned_of_with(tmp_path: Path) -> None:
    run = open_run(run_with(tmp_path, a=(WORKS, {}), late=("c" * 40, {"latency_injected_ms": 900.0})))
    findings = closed_loop_findings(closed_loop_of((), None, run), run.deployable)
    assert [finding.severity for finding in findings] == ["ok", "warning"]


def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of these runs are dummies; only their hash is used."""
    monkeypatch.setattr("diffusion_policy.diagnose.sources.open_checkpoint", lambda path: OpenedCheckpoint(path, None))


def test_closed_loop_comes_first_in_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_weights(monkeypatch)
    log = write_log(tmp_path / "inference_log_1.json", [1.0] * 20 + [0.02] * 15 + [0.97] * 10)
    content = json.loads(log.read_text())
    log.write_text(json.dumps({**content, "meta": {**content.get("meta", {}), "dataset": "x.zarr", "episode": 0}}))
    run = run_with(tmp_path, best=(WORKS, {}))
    verdict, page = make_report(Sources(run=run, logs=(log,)))
    done = "in closed loop best.ckpt does the task in 26 of 40 scenes (95 % interval 50%-78%; TabletopEnv"
    would = "on recordings the gripper would open and close in 1 of 1 recorded episodes (95 % interval 21%-100%); "
    assert 0 < verdict.sentence.index(done) < verdict.sentence.index(would)
    assert "not whether it grasps" not in verdict.sentence
    assert page.index('<section id="findings"') < page.index('<section id="closed-loop"') < page.index('id="training"')
    alone, _ = make_report(Sources(logs=(log,)))
    assert (
        "1 recorded episodes (95 % interval 21%-100%), which tells when it would close, not whether" in alone.sentence
    )
    closed_loop(run / "closed_loop_best.json", "c" * 40)
    bad, _ = make_report(Sources(run=run, logs=(log,)))
    assert bad.level == "bad"
    assert bad.sentence.startswith("Do not deploy it: closed loop: best.ckpt does the task in 0 of 40 scenes")
    assert examine((), None, None, run).exit_status == 1, "the doctor says the same"


def test_the_page_shows_outcomes_conditions_and_pairs(tmp_path: Path) -> None:
    first = closed_loop(tmp_path / "old.json", "1" * 10 + "c" * 30, **GONE)
    second = closed_loop(tmp_path / "new.json", WORKS, latency_injected_ms=200.0, n_action_steps=8)
    _, page = make_report(Sources(closed_loop=(first, second)))
    for part in (
        "<td>26 of 40 (50-78 %)</td>",
        "<td>closed beside 10, dropped 4</td>",
        "8 steps of a chunk executed; ddim in 8 steps, ema_model; policy in process, no guard; latency of 200 ms",
        "success 26, closed beside 10, dropped 4; cells show",
        "best.ckpt does 16 more of 40 than old.ckpt (only best.ckpt 16, only old.ckpt 0; McNemar&#x27;s exact test: "
        "p = 3.1e-05); made with another n_action_steps, latency_injected_ms.",
    ):
        assert part in page, part
    other = closed_loop(tmp_path / "kinematic.json", WORKS, simulator={"env": {"_target_": "a.TabletopEnv"}})
    _, page = make_report(Sources(closed_loop=(first, other)))
    assert "The same scenes" not in page, "another referee, other scenes"


def test_only_scenes_that_both_met_are_paired(tmp_path: Path) -> None:
    first, second, apart, kinematic = look_at_closed_loop(
        [
            closed_loop(tmp_path / "first.json", "11cc"),
            closed_loop(tmp_path / "second.json", "1"),
            closed_loop(tmp_path / "apart.json", "11cc", seed=7),
            closed_loop(tmp_path / "kinematic.json", "11", simulator={"env": {"_target_": "a.TabletopEnv"}}),
        ]
    )
    found = compared(first, second)
    assert found is not None
    assert (
        comparison_sentence(found, "A", "B")
        == "B does as many of 1 as A (only B 0, only A 0; McNemar's exact test: p = 1)"
    )
    assert compared(first, apart) is None
    assert compared(first, kinematic) is None


def test_outcomes_add_up_over_cells() -> None:
    results = scenes_of(WORKS)
    assert [(outcome.kind, len(outcome.points)) for outcome in outcomes(results)] == [
        ("success", 26),
        ("closed beside", 10),
        ("dropped", 4),
    ]
    found = cells(results)
    assert (found.total.sum(), found.done.sum()) == (40, 26)
    one = cells(scenes_of("1"))
    assert (one.total.sum(), one.done.sum()) == (1, 1)


def test_success_while_training_is_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_weights(monkeypatch)
    measured = {
        "test_success": 0.3, "test_success_low": 0.15, "test_success_high": 0.5, "test_grasped": 0.4,
        "test_scenes": 20.0, "test_n_action_steps": 6.0,
    }  # fmt: skip
    lines = [{**line, **measured} if "val_loss" in line else line for line in metrics()]
    _, page = make_report(Sources(run=write_run(tmp_path / "some_run", lines)))
    assert "Closed loop during training, 95 % interval, 20 scenes, 6 steps of a chunk executed" in page
    assert "closed loop over updates; at the end success 0.30, grasped 0.40" in page
    _, without = make_report(Sources(run=write_run(tmp_path / "other_run")))
    assert "Closed loop during training" not in without


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def film(path: Path, outcome: str) -> dict[str, Any]:
    """A video as the evaluation writes it, and its entry in the document."""
    (scene,) = scenes_of(outcome)
    video = Video(path, scene.scene, 10.0)
    for step in range(5):
        video.add(np.full((36, 64, 3), 40 * step, dtype=np.uint8), "")
    video.finish(scene)
    (file,) = path.glob("*.mp4")
    return {"scene": 0, "file": f"{path.name}/{file.name}", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_videos_play_in_the_page_and_others_are_named(tmp_path: Path, browser: Browser) -> None:
    path = closed_loop(tmp_path / "a.json", WORKS)
    content = json.loads(path.read_text())
    other = {"scene": 1, "file": "films/other.mp4", "sha256": "0" * 64}
    (tmp_path / "films").mkdir()
    entry = film(tmp_path / "films", "1")
    (tmp_path / "films" / "other.mp4").write_bytes(b"of a later evaluation")
    path.write_text(json.dumps({**content, "videos": [entry, other]}))
    write_report(tmp_path / "report.html", Sources(closed_loop=(path,)))
    browser.open(tmp_path / "report.html")
    browser.wait_for("document.querySelector('video').readyState >= 1")
    assert browser.evaluate("document.querySelectorAll('video').length") == 1
    assert browser.evaluate("document.querySelector('video').duration") == pytest.approx(1.5, abs=0.2)
    assert "Not shown here: films/other.mp4" in browser.evaluate("document.body.innerText")
    browser.wait_for("document.querySelectorAll('#plot-outcomes-0 .scatterlayer .trace').length === 3")
    assert browser.messages == []


@pytest.mark.parametrize(
    ("outcomes", "level", "begins"),
    [
        (WORKS, "good", "It can be deployed: in closed loop best.ckpt does the task in 26 of 40 scenes"),
        ("1" * 21 + "c" * 19, "good", "It can be deployed: in closed loop best.ckpt does the task in 21 of 40 scenes"),
        (
            "1" * 20 + "c" * 20,
            "doubt",
            "It was rolled out, with doubts: in closed loop best.ckpt does the task in 20",
        ),
        ("1" + "c" * 39, "doubt", "It was rolled out, with doubts: closed loop: best.ckpt does the task in 1 of 40"),
        ("cc", "doubt", "It was rolled out, with doubts: closed loop: best.ckpt does the task in 0 of 2"),
        ("c" * 40, "bad", "Do not deploy it: closed loop: best.ckpt does the task in 0 of 40"),
    ],
)
def test_the_verdict_follows_what_was_done(outcomes: str, level: str, begins: str, tmp_path: Path) -> None:
    verdict, _ = make_report(Sources(closed_loop=(closed_loop(tmp_path / "a.json", outcomes),)))
    assert verdict.level == level
    assert verdict.sentence.startswith(begins)


def test_a_foreign_file_is_not_named_to_be_written_over(tmp_path: Path) -> None:
    (tmp_path / "verdicts.json").write_text("[]")
    with pytest.raises(ResultError, match=r"verdicts\.json: is not a closed-loop result.*--json \S*/closed_loop\.json"):
        read_closed_loop(tmp_path / "verdicts.json")
