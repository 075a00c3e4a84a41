"""A request with the actions still to be executed of the last answer: checked, converted, held, logged, replayed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_factory import tiny_config, write_policy, write_tiny_checkpoint
from layout_factory import CAMERAS, JOINTS, NAMES, episode, low_dim_keys, shape_meta
from serve_factory import POSE, FakeEngine, ServerThread, jpeg, observation_message, parsed, settings

from diffusion_policy.serve.client import LineClient
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.replay import replay
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.serve.transport.protocol import Limits, MessageForm, Observation, ProtocolError, parse_message
from diffusion_policy.spec import ActionLayout, action_semantics

ROW = [*POSE, 1.0]


def opened(checkpoint: Path, **options: Any) -> PolicyEngine:
    return PolicyEngine.open(checkpoint, EngineSettings(**{"steps": 4, **options}))


def after(engine: PolicyEngine, observation: Observation, executed: int, committed: int) -> Observation:
    """The same observation, with the rest of the answer to it."""
    answer = engine.infer(observation, 0, None, Stages())
    rest = answer.sequence[answer.first + executed : answer.first + engine.policy.horizon]
    return Observation(**{**vars(observation), "continuation": Continuation("rtc", rest, committed)})


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("kind", NAMES)
def test_every_layout_is_continued_by_both_paths_alike(tmp_path: Path, kind: str, relative: bool) -> None:
    config = tiny_config()
    config["policy"]["shape_meta"] = shape_meta(kind, relative=relative)  # type: ignore[index]
    arrays, names = episode(kind, 12, 0), NAMES[kind]
    fitted = {
        key: arrays["state"][:, [names.index(name) for name in entry]] for key, entry in low_dim_keys(kind).items()
    }
    fitted["action"] = arrays["action"] - (arrays["state"].mean(axis=0) if relative else 0.0)
    if relative and kind == "one arm":
        fitted["action"][:, 3:7] = [0.0, 0.0, 0.0, 1.0]
    path = write_policy(tmp_path / "layout.ckpt", config, fitted, action_semantics(names, dict.fromkeys(JOINTS, "rad")))
    for sampler in ({"scheduler": "ddim"}, {"scheduler": "ddpm"}):
        fast, plain = opened(path, **sampler), opened(path, fast=False, **sampler)
        layout = fast.form.layout
        states = ActionLayout.of(names).converted(arrays["state"][:2], layout)
        images = [jpeg(10 * camera + step) for camera in range(len(CAMERAS[kind])) for step in (0, 1)]
        measured = fast.form.observation(images, states, np.array([0.0, 0.1]))
        # near the arm, like the rest of an answer, since random weights lead far away
        rows = ActionLayout.of(names).converted(arrays["action"][2:6], layout)
        observation = Observation(**{**vars(measured), "continuation": Continuation("rtc", rows, 2)})
        answers = [engine.infer(observation, 1, None, Stages()) for engine in (fast, plain)]
        np.testing.assert_allclose(answers[0].actions, answers[1].actions, atol=1e-4)
        for answer in answers:
            np.testing.assert_array_equal(answer.actions[:2], rows[:2])
        free = fast.infer(measured, 1, None, Stages()).actions
        apart = [np.abs(actions[2] - rows[2]).max() for actions in (answers[0].actions, free)]
        assert apart[0] < apart[1]


@pytest.mark.parametrize("n_action_steps", [None, 3, 7])
def test_an_answer_is_as_long_as_asked(served_checkpoint: Path, n_action_steps: int | None) -> None:
    engines = [opened(served_checkpoint, n_action_steps=n_action_steps, fast=fast) for fast in (True, False)]
    answers = [engine.infer(parsed(), 0, None, Stages()).actions for engine in engines]
    assert {len(actions) for actions in answers} == {n_action_steps or 4}
    np.testing.assert_allclose(*answers, atol=1e-4)
    assert engines[0].describe()["n_action_steps"] == (n_action_steps or 4)
    held = [engine.infer(after(engines[1], parsed(), 2, 1), 1, None, Stages()).actions for engine in engines]
    np.testing.assert_allclose(*held, atol=1e-4)


def test_an_answer_beyond_the_horizon_is_refused(served_checkpoint: Path) -> None:
    with pytest.raises(ServeError, match=r"engine\.n_action_steps is 8; the policy predicts 7 steps from now on"):
        opened(served_checkpoint, n_action_steps=8)


def test_an_invalid_rotation_is_refused() -> None:
    continuation = {"mode": "rtc", "actions": [[0.0] * 8], "committed": 1}
    with pytest.raises(ProtocolError, match=r"continuation\.actions") as refused:
        parse_message(observation_message(continuation=continuation), MessageForm(2), Limits())
    assert refused.value.code == "bad_state"


def test_a_policy_that_cannot_continue_chunks_says_so_and_keeps_serving() -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client() as client:
        refused = client.ask(observation_message(continuation={"mode": "rtc", "actions": [ROW] * 2, "committed": 1}))
        assert refused is not None
        assert (refused["type"], refused["code"]) == ("error", "unsupported")
        answered = client.ask(observation_message(1))
        assert answered is not None
        assert answered["type"] == "action"


def test_a_server_continues_from_them_and_its_log_replays(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "latest.ckpt")
    engine = opened(checkpoint)
    words = ("gripper_scale=percent", "guard.on_workspace=clip", "guard.quaternion_tolerance=0.9", "engine.steps=4")
    with (
        ServerThread(engine, settings(tmp_path / "log", *words)) as server,
        LineClient(port=server.ports["line"]) as client,
    ):
        assert client.metadata["continuations"] == ["rtc", "warm_start"]
        first = client.ask(observation_message(grippers=[[100.0]] * 2))
        rest = first["action"][2:]
        assert {row[-1] for row in rest} <= {0.0, 100.0}, "commands in the robot's scale"
        continuation = {"mode": "rtc", "actions": rest, "committed": 1}
        second = client.ask(
            observation_message(
                2, poses=[first["action"][1][:7]] * 2, grippers=[[100.0]] * 2, continuation=continuation
            )
        )
    np.testing.assert_allclose(second["action"][0][:3], rest[0][:3], atol=1e-9, err_msg="committed")
    (run,) = (tmp_path / "log").glob("run_*")
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    logged = lines[1]["input"]["continuation"]
    assert logged["committed"] == 1
    assert {row[-1] for row in logged["actions"]} <= {0.0, 1.0}, "logs have the internal scale"
    np.testing.assert_array_equal(lines[1]["predicted"]["values"][1], logged["actions"][0])
    assert lines[1]["seam"]["millimetres"] is not None
    report = replay(run, checkpoint)
    assert (report.bit_equal, report.steps) == (2, 2)
