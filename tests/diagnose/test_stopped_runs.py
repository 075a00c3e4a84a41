"""A stopped run is diagnosed as stopped, and all tools agree on whether it may be deployed."""

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from omegaconf import OmegaConf
from report_factory import metrics, only, write_run

from diffusion_policy.diagnose.disk_need import checkpoint_size, disk_need
from diffusion_policy.diagnose.doctor import examine, examine_numbers
from diffusion_policy.diagnose.environment import environment_findings, look_at_environment
from diffusion_policy.diagnose.training_findings import run_findings
from diffusion_policy.report.comparison import compare
from diffusion_policy.report.report_page import conclude
from diffusion_policy.run_folder import STATUS_NAME, RunFolderError
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

STOPPED = {"state": "stopped", "signal": "SIGINT", "error": None, "epochs": 2}
EARLY = [{**line, "lr": 1e-7, "val_gripper_f1": 0.0, "val_gripper_events_found": 0} for line in metrics(60)]


def with_status(path: Path, lines: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    run = write_run(path, lines)
    status = {**STOPPED, "of_epochs": 100, "updates": 60, "of_updates": 3000, **changes}
    (run / STATUS_NAME).write_text(json.dumps(status))
    return run


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "it was stopped by SIGINT after 60 of about 3000 updates, 2 of 100 epochs"),
        ({"signal": None}, "it was stopped after 60 of about 3000 updates"),
        ({"state": "running"}, "it has not ended (it is still running, or was killed): 60 of about 3000 updates"),
        ({"state": "failed", "error": "no room"}, "it ended with an error (no room) after 60 of about 3000"),
    ],
)
def test_a_run_that_has_not_made_its_epochs_is_diagnosed_as_that(tmp_path: Path, changes: dict[str, Any], says: str):
    """Not as a bad warm-up or too few updates; what it did not learn follows from being stopped."""
    found = examine_numbers(with_status(tmp_path / "some run", EARLY, **changes))
    cause = found.diagnosis.cause
    assert cause is not None
    assert (cause.code, cause.severity) == ("stopped", "warning")
    assert says in cause.evidence
    assert cause.command.startswith("python train.py ")
    assert "training.resume=True" in found.next_command
    codes = Counter(finding.code for finding in found.findings if finding.trouble)
    assert not {"warm-up", "few-updates"} & codes.keys()


def test_a_finished_run_and_one_that_does_not_say_are_judged_by_their_numbers(tmp_path: Path) -> None:
    finished = run_findings(open_run(with_status(tmp_path / "finished", state="finished", epochs=100)))
    assert only(finished, "stopped").evidence == "it completed all of its 100 epochs"
    older = run_findings(open_run(write_run(tmp_path / "older one", EARLY)))
    assert "stopped" not in {finding.code for finding in older}
    assert only(older, "warm-up").severity == "warning"


def test_a_torn_status_is_refused(tmp_path: Path) -> None:
    run = with_status(tmp_path / "some run")
    for content in ("{", "[]", "{}", json.dumps({**STOPPED, "of_epochs": "many", "updates": 1, "of_updates": 2})):
        (run / STATUS_NAME).write_text(content)
        with pytest.raises(RunFolderError, match="not as training writes it"):
            open_run(run)


GOOD = metrics()
KINDS = {
    "stopped, nothing learned": (EARLY, {}),
    "stopped, well on its way": (GOOD, {"epochs": 90, "updates": 1000}),
    "stopped, with NaN": ([*GOOD[:-1], {**GOOD[-1], "train_loss": None}], {}),
    "finished": (GOOD, {"state": "finished", "epochs": 100}),
    "finished, sees nothing": ([{**line, "val_image_features": 0} for line in GOOD], {"state": "finished"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_report_doctor_and_comparison_agree(kind: str, tmp_path: Path) -> None:
    """Never "deploy it" from one tool and "do not deploy it" from another."""
    lines, status = KINDS[kind]
    path = with_status(tmp_path / "this one", lines, **status)
    doctor = examine_numbers(path)
    verdict = conclude(doctor, (), open_run(path))  # the page's
    assert (verdict.level == "bad") == (doctor.exit_status == 1)
    assert verdict.sentence.startswith("Do not deploy") == (verdict.level == "bad")
    other = with_status(tmp_path / "another", [{**line, "val_image_features": 0} for line in GOOD], state="finished")
    comparison = compare([path, other])
    assert (comparison.best is None) == (verdict.level == "bad")
    chosen = comparison.advice().startswith(f"On recordings alone, first roll out {path}")
    assert chosen == (verdict.level != "bad")
    assert comparison.to_json()["deploy"] == (str(path / "checkpoints" / "best.ckpt") if chosen else None)
    message = " ".join(finding.evidence + finding.remedy for finding in doctor.findings)
    assert "to deploy" not in message


# ---- a real run ----

SMALL = ("training.sample_every=0", "training.num_epochs=3", "checkpoint.topk.k=2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


class Interrupted(TrainDiffusionTransformerHybridWorkspace):
    """Receives SIGTERM while it writes the line of update 2, or fails there."""

    failure: BaseException | None = None

    def _write_line(self, line: dict[str, Any]) -> None:
        super()._write_line(line)
        if line["global_step"] == 2:
            if self.failure is not None:
                raise self.failure
            signal.raise_signal(signal.SIGTERM)


def status_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATUS_NAME).read_text())


@pytest.mark.parametrize(
    ("failure", "state", "error"),
    [(None, "stopped", None), (KeyboardInterrupt(), "stopped", None), (TrainingError("no"), "failed", "no")],
    ids=["asked", "at once", "failed"],
)
def test_a_run_writes_how_it_stands(dataset: Path, tmp_path: Path, failure: Any, state: str, error: str | None) -> None:
    assert STATUS_NAME == STATUS_NAME
    run = Interrupted(tiny_run.settings(dataset, *SMALL), tmp_path)
    run.failure = failure
    if failure is None:
        run.run()
    else:
        with pytest.raises(type(failure)):
            run.run()
    signalled = "SIGTERM" if failure is None else None
    position = {"epochs": 0, "of_epochs": 3, "updates": 2, "of_updates": 9}
    assert status_of(tmp_path) == {"state": state, "signal": signalled, "error": error, **position}
    TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *SMALL), tmp_path).run()
    assert status_of(tmp_path) == {
        "state": "finished", "signal": None, "error": None, "epochs": 3, "of_epochs": 3, "updates": 9, "of_updates": 9,
    }  # fmt: skip


def test_the_disk_that_a_run_needs_is_what_its_checkpoints_take(dataset: Path, tmp_path: Path) -> None:
    cfg = tiny_run.settings(dataset, *SMALL)
    planned = disk_need(cfg, None)
    assert planned is not None
    assert (planned.files, planned.there, planned.needed) == (5, 0, 5 * planned.size)
    TrainDiffusionTransformerHybridWorkspace(cfg, tmp_path).run()
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    run = open_run(tmp_path)
    real = run.checkpoints["latest.ckpt"].stat().st_size
    assert planned.size == pytest.approx(real, rel=0.05)
    found = disk_need(None, run)
    assert found is not None
    assert found.size == real
    assert found.needed == max(real, 5 * real - found.there) < planned.needed
    finding = only(environment_findings(look_at_environment(tmp_path, found)), "disk")
    assert f"a run keeps up to 5 checkpoints of {real / 1e6:.0f} MB (as its existing ones)" in finding.evidence


@pytest.mark.parametrize(("averaged", "share"), [(True, 4), (False, 3)])
def test_a_checkpoint_is_weights_average_and_moments(dataset: Path, averaged: bool, share: int) -> None:
    cfg = tiny_run.settings(dataset, f"training.use_ema={averaged}")
    alone = checkpoint_size(tiny_run.settings(dataset, "training.use_ema=False"))
    whole = checkpoint_size(cfg)
    assert alone is not None
    assert whole == pytest.approx(alone * share / 3, rel=0.01)
    assert checkpoint_size(tiny_run.settings(dataset, "policy._target_=os.system")) is None


def test_the_doctor_takes_the_disk_rule_of_what_is_examined(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_run.settings(dataset)
    need = disk_need(cfg, None)
    assert need is not None
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": need.needed - 1})())
    found = examine(config=(["train_cogact_robot"], cfg))
    assert only(found.groups["environment"], "disk").severity == "error"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": need.needed})())
    found = examine(config=(["train_cogact_robot"], cfg))
    assert only(found.groups["environment"], "disk").severity == "ok"


def test_the_end_of_a_stopped_run_says_nothing_of_deploying(dataset: Path, tmp_path: Path) -> None:
    summary = Interrupted(tiny_run.settings(dataset, *SMALL), tmp_path).run()
    assert "stopped by SIGTERM after 0 epochs, 2 updates" in str(summary)
    assert "deploy" not in str(summary)
    assert "go on with: " in str(summary)
