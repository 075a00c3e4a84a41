"""One default sampler wherever a policy is sampled, and a note if it is not the one used in training."""

import argparse
import dataclasses
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_run
from evaluation_factory import write_dataset, write_tiny_checkpoint
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.closed_loop.evaluation import Evaluation
from diffusion_policy.evaluate.open_loop_report import evaluate_open_loop
from diffusion_policy.evaluate.recorded_inference import Sampling, run_recorded_inference
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER, Sampler, sampler_note, sampler_of_training
from diffusion_policy.serve.candidates import DEFAULT_CANDIDATES, Candidate, parse_candidate
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings, read_settings
from diffusion_policy.serve.tuning import Budget, tune
from diffusion_policy.workspace.sampler_settings import read_sampler

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "config"


def of_function(function: Callable[..., object]) -> Sampler:
    parameters = inspect.signature(function).parameters
    return Sampler(parameters["scheduler"].default, parameters["steps"].default)


def of_fields(kind: type) -> Sampler:
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    return Sampler(defaults["scheduler"], defaults["steps"])


def of_config() -> Sampler:
    return read_sampler(OmegaConf.load(CONFIG / "train_cogact_robot.yaml").sampler, 0.1).sampler


def of_served_config() -> Sampler:
    engine = read_settings(CONFIG / "serve.yaml", ["ckpt=a.ckpt"]).engine
    return Sampler(engine.scheduler, engine.steps)


DEFAULTS = {
    "config of training": of_config,
    "training without the section": lambda: read_sampler(None, 0.1).sampler,
    "config of serving": of_served_config,
    "serving": lambda: of_fields(EngineSettings),
    "open loop": lambda: of_fields(Sampling),
    "closed loop": lambda: of_fields(Evaluation),
    "recorded inference": lambda: of_function(run_recorded_inference),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_is_the_same(name: str) -> None:
    assert DEFAULTS[name]() == DEFAULT_SAMPLER


@pytest.mark.parametrize("script", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_that_take_a_sampler_have_the_same_default(script: Path) -> None:
    names = runpy.run_path(str(script))
    parser = argparse.ArgumentParser()
    names.get("add_arguments", lambda parser: None)(parser)
    if {"--scheduler", "--steps"} <= set(parser._option_string_actions) and parser.get_default("scheduler"):
        assert Sampler(parser.get_default("scheduler"), parser.get_default("steps")) == DEFAULT_SAMPLER


def test_the_default_sampler_is_a_candidate_of_tuning() -> None:
    default = Candidate(DEFAULT_SAMPLER.scheduler, DEFAULT_SAMPLER.steps)
    assert default in [parse_candidate(word) for word in DEFAULT_CANDIDATES]


def test_configs_of_experiments_leave_the_sampler_alone() -> None:
    for path in sorted((CONFIG / "experiment").glob("*.yaml")):
        if OmegaConf.select(OmegaConf.load(path), "sampler.steps") is not None:
            pytest.fail(f"{path.name} has a sampler of its own: its best.ckpt is not chosen as policies are served")


@pytest.mark.parametrize(
    ("provenance", "cfg", "expected"),
    [
        ({"measured": {"with": {"scheduler": "ddpm", "steps": 20}}}, {"sampler": {"steps": 8}}, Sampler("ddpm", 20)),
        ({}, {"sampler": {"scheduler": "ddim", "steps": 8}}, Sampler("ddim", 8)),
        (None, {}, None),
        ({"measured": {"with": 3}}, {"sampler": "ddim"}, None),
        ({"measured": []}, None, None),
        ({"measured": {"with": {"scheduler": "ddim", "steps": "eight"}}}, None, None),
    ],
)
def test_the_sampler_of_training_is_read_where_it_is_stored(provenance, cfg, expected) -> None:
    assert sampler_of_training(provenance, cfg) == expected


def test_a_note_where_they_differ() -> None:
    assert sampler_note(None, DEFAULT_SAMPLER) is None
    assert sampler_note(DEFAULT_SAMPLER, DEFAULT_SAMPLER) is None
    note = sampler_note(Sampler("ddim", 8), Sampler("ddim", 10))
    assert note is not None
    assert note.startswith("this runs ddim, 10 steps; the checkpoint was measured and chosen with ddim, 8 steps")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was chosen with DDIM, 3 steps."""
    folder = tmp_path_factory.mktemp("measured")
    found = read_checkpoint(write_tiny_checkpoint(folder / "plain.ckpt"))
    write_checkpoint(
        folder / "best.ckpt",
        cfg=found.cfg,
        state_dicts=found.state_dicts,
        pickles=found.pickles,
        provenance={**(found.provenance or {}), "measured": {"with": {"scheduler": "ddim", "steps": 3}}},
    )
    return folder / "best.ckpt"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def serving(checkpoint: Path, dataset: Path, steps: int, folder: Path) -> str:
    engine = PolicyEngine.open(checkpoint, EngineSettings(steps=steps))
    return str(engine.describe()["measured_with"])


def open_loop(checkpoint: Path, dataset: Path, steps: int, folder: Path) -> str:
    return str(evaluate_open_loop(checkpoint, dataset, [0], Sampling(steps=steps), samples=1).sampler_note)


def recorded_inference(checkpoint: Path, dataset: Path, steps: int, folder: Path) -> str:
    run_recorded_inference(checkpoint, dataset, folder / "logs", [0], steps=steps, stride=6)
    return ""


def tuning(checkpoint: Path, dataset: Path, steps: int, folder: Path) -> str:
    report = tune(checkpoint, dataset, [Candidate("ddim", steps)], Budget(), EngineSettings(), [0])
    assert report.to_json()["trained_with"] == {"scheduler": "ddim", "steps": 3}
    return str(report.table().caption)


@pytest.mark.parametrize("run", [serving, open_loop, recorded_inference, tuning], ids=lambda run: run.__name__)
def test_sampling_in_another_way_is_reported(
    measured: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, run: Callable[..., str]
) -> None:
    output = run(measured, dataset, 2, tmp_path) + caplog.text
    assert "ddim, 3 steps" in output
    if run is tuning:
        return  # shows it for all candidates
    assert "this runs ddim, 2 steps; the checkpoint was measured and chosen with ddim, 3 steps" in output
    caplog.clear()
    assert "this runs" not in run(measured, dataset, 3, tmp_path) + caplog.text


def test_a_run_stores_the_sampler_that_it_was_asked_for() -> None:
    """An explicit setting is the one that is used."""
    assert read_sampler(tiny_run.settings(Path("a.zarr"), "sampler.steps=5").sampler, 0.1).sampler == Sampler("ddim", 5)
    words = ["ckpt=a.ckpt", "engine.steps=5", "engine.scheduler=ddpm"]
    engine = read_settings(CONFIG / "serve.yaml", words).engine
    assert (engine.scheduler, engine.steps) == ("ddpm", 5)
