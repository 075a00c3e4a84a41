"""Measured states that training never saw, including between values; and a gripper with another scale."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gripper_scales import FOREIGN
from serve_factory import POSE, FakeEngine, ServerThread, observation_message, settings

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.gripper_scale import parse_scale
from diffusion_policy.model.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
from diffusion_policy.run_log import read_log
from diffusion_policy.serve.client import LineClient
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings, ServeError, read_settings
from diffusion_policy.serve.transport.protocol import Observation

RNG = np.random.default_rng(0)
STEPS = 20_000
BINARY = (RNG.random(STEPS) < 0.3).astype(float)
RARE = np.where(np.arange(STEPS) == 7, 0.0, 1.0)
# name -> (what training saw, values that it never saw, values that it saw or might have seen)
TRAINED: dict[str, tuple[np.ndarray, list[float], list[float]]] = {
    "0 and 1": (BINARY, [0.08, 0.04, 0.5, 0.95, -0.2, 1.2], [0.0, 1.0, 0.004, 0.996]),
    "0 and 1, closed once": (RARE, [0.08, 0.5, 0.9], [0.0, 1.0]),
    "-1 and 1": (2 * BINARY - 1, [0.0, 0.5, -0.9], [-1.0, 1.0]),
    "0 and 100": (100 * BINARY, [1.5, 50.0, 97.0], [0.0, 100.0]),
    "two widths": (0.03 + 0.05 * BINARY, [0.055], [0.03, 0.08]),
    "0 and 1, with ways between": (np.r_[BINARY, np.linspace(0, 1, 400)], [-0.2, 1.2], [0.0, 0.08, 0.5, 1.0]),
    "a width": (0.08 * RNG.random(STEPS), [0.2, -0.1], [0.0, 0.04, 0.08]),
    "always open": (np.ones(STEPS), [0.5, 0.0, 1.1], [1.0]),
}


@pytest.fixture(scope="module")
def policy(served_checkpoint: Path) -> Any:
    return load_policy(served_checkpoint)


def measured(gripper: float) -> Observation:
    images = tuple(np.zeros((8, 8, 3), np.uint8) for _ in range(2))
    return Observation(images, np.array([POSE] * 2), np.full((2, 1), gripper), np.array([0.0, 0.1]))


@pytest.mark.parametrize(("saw", "unseen", "seen"), TRAINED.values(), ids=TRAINED.keys())
@pytest.mark.parametrize("mode", ["limits", "gaussian"])
def test_what_training_never_saw_is_reported_also_between_two_values(
    saw: np.ndarray, unseen: list[float], seen: list[float], mode: Any, policy: Any
) -> None:
    engine = PolicyEngine(policy, EngineSettings(steps=1))
    fitted = SingleFieldLinearNormalizer.create_fit(saw[:, None], mode=mode)
    normalizer = LinearNormalizer()
    normalizer.load_state_dict(policy.normalizer.state_dict())
    normalizer["robot_gripper_state"] = fitted
    before = policy.normalizer
    try:
        policy.normalizer = normalizer

        def told(value: float) -> list[str]:
            found = engine.outside_training(measured(value), 0.1)
            return [sentence for sentence in found if "gripper" in sentence]

        for value in unseen:
            (sentence,) = told(value)
            assert sentence.startswith(f"robot_gripper_state gripper is {value:.4f}; training saw ")
        for value in seen:
            assert told(value) == []
    finally:
        policy.normalizer = before


class Binary(FakeEngine):
    """A policy that only saw grippers of 0 and 1."""

    def outside_training(self, observation: Observation, margin: float) -> list[str]:
        value = float(observation.grippers[-1, 0])
        said = f"robot_gripper_state gripper is {value:.4f}; training saw only 0 and 1"
        return [said] if min(abs(value), abs(1 - value)) > 0.01 else []


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ([0.08, 0.08], "gripper_scale=meters:0.08"),
        ([0.0, 0.04], "gripper_scale=meters:0.04"),
        ([100.0, 100.0], "gripper_scale=percent"),
        ([255.0, 255.0], "gripper_scale=byte"),
        ([1.0, -1.0], "gripper_scale=signed_open1"),
    ],
)
def test_a_gripper_in_another_scale_is_reported_with_the_setting_to_use(values: list[float], advice: str) -> None:
    with ServerThread(Binary(), settings()) as server, server.client() as client:
        for step, value in enumerate(values):
            reply = client.ask(observation_message(step, grippers=[[value]] * 2))
    assert reply["type"] == "action"
    assert "training saw only 0 and 1" in reply["warnings"][0]
    assert advice in reply["warnings"][1]
    read_settings(None, ["ckpt=a", reply["warnings"][1].rpartition("declare it: ")[2].partition(" ")[0]])


def test_or_refused_by_setting() -> None:
    with ServerThread(Binary(), settings(None, "on_unseen_state=refuse")) as server, server.client() as client:
        reply = client.ask(observation_message(0, grippers=[[0.08]] * 2))
        assert reply["code"] == "bad_state"
        assert "is 0.0800; training saw only 0 and 1; if the robot's gripper uses a scale other" in reply["message"]
        assert client.ask(observation_message(1))["type"] == "action"


def test_the_server_shows_each_kind_of_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    with ServerThread(Binary(), settings()) as server, server.client() as client:
        for step, value in enumerate((0.08, 0.07, 0.06)):
            client.ask(observation_message(step, grippers=[[value]] * 2))
    assert caplog.text.count("training saw only 0 and 1") == 1


SCALES = {
    "percent": ((100.0, 0.0), (100.0, 0.0)),
    "closed1": ((0.0, 1.0), (0.0, 1.0)),
    "meters:0.08": ((0.08, 0.0), (0.08, 0.0)),
    "signed_closed1/meters:0.08": ((0.08, 0.0), (-1.0, 1.0)),
    "open1": ((1.0, 0.0), (1.0, 0.0)),
    **{name: ((parse_scale(name).open, parse_scale(name).closed),) * 2 for name in FOREIGN},
}


@pytest.mark.parametrize(("name", "ends"), SCALES.items())
def test_a_declared_scale_is_converted_both_ways_and_the_log_is_ours(name: str, ends: Any, tmp_path: Path) -> None:
    """Open, then closed, both as measured by the robot and as commanded."""
    measures, commands = ends

    def turn(observation: Observation) -> np.ndarray:
        """Commands the opposite of the measured state."""
        chunk = np.tile(observation.states[-1], (10, 1))
        chunk[:, 7] = 1 - chunk[:, 7]
        return chunk

    chosen = settings(tmp_path, f"gripper_scale={name}")
    with ServerThread(Binary(turn), chosen) as server, LineClient(port=server.ports["line"]) as client:
        assert client.metadata["gripper_scale"] == name
        for step, (value, other) in enumerate(zip(measures, commands[::-1], strict=True)):
            reply = client.ask(observation_message(10 * step, grippers=[[value]] * 2))
            assert not any("gripper" in warning for warning in reply["warnings"])
            assert [action[7] for action in reply["action"]] == pytest.approx([other] * 8)
    (run,) = tmp_path.glob("run_*")
    log = read_log(run)
    np.testing.assert_allclose(log.grippers[0].measured, [1, 0], atol=1e-9)
    np.testing.assert_allclose(log.commands[:, 7], [0, 1], atol=1e-9)


def test_an_invalid_scale_is_refused_at_the_start() -> None:
    with pytest.raises(ServeError, match=r"gripper_scale: gripper scale 'procent' is not known"):
        settings(None, "gripper_scale=procent")
