"""Three layouts of an action through a real server: guarded, answered, logged, replayed to the bit, exported."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_factory import tiny_config, write_policy
from layout_factory import CAMERAS, JOINTS, NAMES, episode, low_dim_keys, shape_meta, write
from serve_factory import ServerThread, jpeg, observation_message, settings

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.closed_loop.server_actor import ServerActor
from diffusion_policy.env_runner.actors import ActionRequest
from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.run_log import RunLogError, read_log
from diffusion_policy.run_log.exports import to_inference_log, to_rerun, to_vlalab
from diffusion_policy.run_log.session_log import SessionLogError
from diffusion_policy.run_log.to_trajectories import convert_logs
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.checks.parity import check_parity
from diffusion_policy.serve.client import Chunk, LineClient, ServerError, WebSocketClient
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.replay import replay
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.tuning import Budget, tune
from diffusion_policy.spec import POSE, POSE_GRIPPER, ActionLayout, action_semantics

KINDS = tuple(NAMES)
UNITS = dict.fromkeys(JOINTS, "rad")
LIMITS = ("guard.quaternion_tolerance=0.9", "guard.on_workspace=clip", "engine.steps=2", "websocket_port=0")
N_OBS = 2


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layout(tmp_path_factory.mktemp("layouts") / "latest.ckpt", shape_meta(kind), kind)


def write_layout(path: Path, meta: dict[str, Any], kind: str) -> Path:
    config = tiny_config(policy={"encoder_width": 16})
    config["policy"]["shape_meta"] = meta  # type: ignore[index]
    arrays = episode(kind, 12, 0)
    fitted = {
        key: arrays["state"][:, [NAMES[kind].index(name) for name in names]]
        for key, names in low_dim_keys(kind).items()
    }
    names = meta["action"].get("names", NAMES[kind])
    fitted["action"] = arrays["action"][:, [NAMES[kind].index(name) for name in names]]
    return write_policy(path, config, fitted, action_semantics(names, UNITS))


def engine_of(checkpoint: Path, **options: Any) -> PolicyEngine:
    return PolicyEngine.open(checkpoint, EngineSettings(**{"steps": 2, **options}))


def states_of(kind: str, engine: PolicyEngine, step: int) -> np.ndarray:
    """(To, D) measured at two steps of an episode, as messages carry them."""
    measured = episode(kind, 12, 0)["state"][[step, step + 1]]
    return ActionLayout.of(NAMES[kind]).converted(measured, engine.form.layout)


def images_of(kind: str, step: int) -> dict[str, list[bytes]]:
    return {name: [jpeg(10 * index + step + i) for i in range(N_OBS)] for index, name in enumerate(CAMERAS[kind])}


def ask(client: LineClient | WebSocketClient, kind: str, engine: PolicyEngine, step: int) -> Chunk:
    times = [step / 10, (step + 1) / 10]
    return client.infer(images_of(kind, step), states=states_of(kind, engine, step), timestamps=times)


CLIENTS: dict[str, Callable[[dict[str, int]], LineClient | WebSocketClient]] = {
    "line": lambda ports: LineClient(port=ports["line"], timeout=20),
    "websocket": lambda ports: WebSocketClient(f"ws://127.0.0.1:{ports['websocket']}", timeout=20),
}


@pytest.mark.parametrize("transport", CLIENTS)
def test_every_layout_is_served_within_the_limits_of_its_arms(checkpoint: Path, kind: str, transport: str) -> None:
    engine = engine_of(checkpoint)
    layout = engine.form.layout
    with ServerThread(engine, settings(None, *LIMITS)) as server, CLIENTS[transport](server.ports) as client:
        about, chunk = client.metadata, ask(client, kind, engine, 0)
    assert about["action_semantics"]["names"] == list(layout.names)
    assert about.get("state_names", list(POSE_GRIPPER)) == list(layout.names)
    assert about["cameras"] == list(CAMERAS[kind])
    assert chunk.actions.shape == (4, len(layout.names))
    path = np.vstack([states_of(kind, engine, 0)[-1], chunk.actions])
    tolerance = 1e-6  # the second transport carries float32
    assert (np.linalg.norm(np.diff(layout.positions(path), axis=0), axis=-1) <= 0.04 + tolerance).all()
    turns = layout.rotations(path)
    assert (geodesic_distance(turns[1:], turns[:-1]) <= 0.1 + 1e-3).all()
    assert np.isin(layout.grippers(chunk.actions), [0, 1]).all()
    assert chunk.reply["interventions"], "weights of chance lead far away"
    if kind == "joints":
        limits = about["guard"]["joints"]
        steps = np.abs(np.diff(layout.joints(path), axis=0))
        assert (steps <= np.array([limits[name]["max_step"] for name in JOINTS]) + tolerance).all()
        assert about["guard"]["joint_unit"] == "rad"
    if kind == "two arms":
        assert set(about["guard"]["workspaces"]) == {"left", "right"}
        assert all(name.partition(" ")[0] in ("left", "right") for name in chunk.reply["interventions"])


def test_a_simulator_s_steps_are_asked_and_answered_in_the_policy_s_own_numbers(checkpoint: Path, kind: str) -> None:
    engine, measured = engine_of(checkpoint), episode(kind, 12, 0)["state"]
    frames = {name: np.random.default_rng(0).integers(0, 255, (36, 40, 3), dtype=np.uint8) for name in CAMERAS[kind]}
    keys = {key: [NAMES[kind].index(name) for name in names] for key, names in low_dim_keys(kind).items()}
    history = [{**frames, **{key: measured[step, columns] for key, columns in keys.items()}} for step in (0, 1)]
    simulator = SimpleNamespace(control_hz=10.0)
    with ServerThread(engine, settings(None, *LIMITS)) as server:
        actor = ServerActor(engine, simulator, server.ports["line"])  # type: ignore[arg-type]
        (answer,) = actor.answer([ActionRequest(0, 0, 0, history)])
        actor.close()
    assert answer.refusal is None
    assert answer.actions is not None
    assert answer.actions.shape == (4, len(NAMES[kind]))
    layout = ActionLayout.of(NAMES[kind])
    moved = layout.positions(answer.actions[0]) - layout.positions(measured[1])
    assert (np.linalg.norm(moved, axis=-1) <= 0.04 + 1e-6).all()


def test_the_fast_path_is_the_plain_one(checkpoint: Path, kind: str) -> None:
    fast, plain = engine_of(checkpoint), engine_of(checkpoint, fast=False)
    assert fast._fast is not None
    images = [image for own in images_of(kind, 0).values() for image in own]
    observation = fast.form.observation(images, states_of(kind, fast, 0), np.array([0.0, 0.1]))
    answers = [engine.infer(observation, 0, None, Stages()) for engine in (fast, plain)]
    np.testing.assert_allclose(answers[0].actions, answers[1].actions, atol=1e-4)
    assert answers[0].encoded == N_OBS
    assert fast.infer(observation, 0, None, Stages()).encoded == 0, "both cameras' frames are known"
    for key, names in low_dim_keys(kind).items():
        wanted = episode(kind, 12, 0)["state"][:2, [NAMES[kind].index(name) for name in names]]
        inputs, _ = plain.inspect(observation, 0)
        np.testing.assert_allclose(inputs[key], wanted, atol=1e-6, err_msg="by names, in the policy's representation")


@pytest.fixture(scope="module")
def run(checkpoint: Path, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with frames that they share, of an episode."""
    folder = tmp_path_factory.mktemp("runs")
    engine = engine_of(checkpoint, warm_start=0.5)
    words = (*LIMITS, "engine.warm_start=0.5", f"ckpt={checkpoint}")
    with ServerThread(engine, settings(folder, *words)) as server, CLIENTS["line"](server.ports) as client:
        for step in range(3):
            ask(client, kind, engine, step)
    (found,) = folder.glob("run_*")
    return found


def test_a_log_names_its_layout_and_is_replayed_to_the_bit(run: Path, checkpoint: Path, kind: str) -> None:
    meta = json.loads((run / "meta.json").read_text())
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    names = meta["action_semantics"]["names"]
    assert len(names) == {"one arm": 8, "two arms": 16, "joints": 8}[kind]
    assert {len(row) for line in lines for row in (*line["input"]["states"], *line["action"]["values"])} == {len(names)}
    assert {len(line["input"]["images"]) for line in lines} == {N_OBS * len(CAMERAS[kind])}
    assert set(lines[1]["seam"]) == {"millimetres", "degrees", "gripper", *(["joints"] if kind == "joints" else [])}
    report = replay(run, checkpoint)
    assert (report.bit_equal, report.steps, report.largest, report.passed) == (3, 3, 0.0, True)
    fewer = replay(run, checkpoint, {"steps": 3}).to_json()
    assert ("furthest_joint" in fewer) == (kind == "joints")
    assert (fewer["furthest_mm"] is None) == (kind == "joints")
    meta |= {"cameras": ["front"]}
    (run / "meta.json").write_text(json.dumps(meta))
    try:
        with pytest.raises(SessionLogError, match=r"seen by \['front'\]; this policy expects"):
            replay(run, checkpoint)
    finally:
        (run / "meta.json").write_text(json.dumps({**meta, "cameras": list(CAMERAS[kind])}))


def test_recorded_data_of_every_layout_is_tuned_on_and_compared_with_a_server(
    checkpoint: Path, kind: str, tmp_path: Path
) -> None:
    recorded = write(tmp_path / "set.zarr", kind, lengths=(6, 5))
    budget = Budget(1e3, 1e3, 60.0)
    tuning = tune(checkpoint, recorded, [Candidate("ddim", 2)], budget, EngineSettings(), "all", stride=3)
    (row,) = tuning.to_json()["measured"]
    assert tuning.proposed == Candidate("ddim", 2)
    assert ("joint" in row) == (kind == "joints")
    assert (row["position_mm"] is None) == (kind == "joints")
    assert (row["joint" if kind == "joints" else "seam_mm"] or 0) > 0
    assert row["event_f1"] is not None
    engine = engine_of(checkpoint)
    words = (*LIMITS, "allow_inspection=true", f"ckpt={checkpoint}")
    with ServerThread(engine, settings(None, *words)) as server, LineClient(port=server.ports["line"]) as client:
        report = check_parity(checkpoint, recorded, client, requests=2)
    assert report.passed, report.to_json()
    assert {entry.key for entry in report.keys} == {*CAMERAS[kind], *low_dim_keys(kind)}


def test_a_log_is_exported_or_says_why_not(run: Path, kind: str, tmp_path: Path) -> None:
    vlalab = to_vlalab(run, tmp_path / "vlalab")
    meta = json.loads((vlalab / "meta.json").read_text())
    step = json.loads((vlalab / "steps.jsonl").read_text().splitlines()[0])
    width = len(step["obs"]["state"])
    assert meta["action_dim"] == step["action"]["action_dim"] == width
    assert len(step["obs"]["images"]) == len(meta["cameras"]) == len(CAMERAS[kind])
    assert ("pose" in step["obs"]) == (kind == "one arm")
    if importlib.util.find_spec("rerun") is not None:  # an extra
        assert to_rerun(run, tmp_path / "run.rrd").stat().st_size > 1000
    log = read_log(to_inference_log(run, tmp_path / "logs"))
    assert log.meta["action_semantics"]["names"] == read_log(run).meta["action_semantics"]["names"]
    np.testing.assert_array_equal(log.actions, read_log(run).actions)
    if kind == "one arm":
        (written,) = convert_logs([run], tmp_path / "episodes")
        assert written.n_steps == 3
        return
    with pytest.raises(RunLogError, match=r"joints|left: position") as refused:
        convert_logs([run], tmp_path / "episodes")
    assert "a CogACT trajectory holds the pose and the gripper of one arm" in str(refused.value)
    assert not list((tmp_path / "episodes").glob("*"))


def refused(send: Callable[[], object]) -> str:
    with pytest.raises(ServerError) as error:
        send()
    return str(error.value)


def test_what_another_robot_sends_is_refused_by_name(checkpoint: Path, kind: str) -> None:
    engine, times = engine_of(checkpoint), [0.0, 0.1]
    names, images, states = engine.form.layout.names, images_of(kind, 0), states_of(kind, engine, 0)
    with ServerThread(engine, settings(None, *LIMITS)) as server, CLIENTS["line"](server.ports) as client:

        def asked(**changes: Any) -> str:
            return refused(lambda: client.ask(observation_message(**changes)))

        wide = np.zeros((N_OBS, len(names) + 1))
        assert f"expected (2, {len(names)})" in refused(lambda: client.infer(images, states=wide, timestamps=times))
        if kind == "one arm":
            message = "malformed: the message carries states; expected poses (2, 7) and grippers (2, 1)"
            assert asked(poses=None, grippers=None, states=[[0.0] * 8] * 2) == message
        else:
            expected = f"expected states (2, {len(names)}): {' '.join(names)}"
            assert asked() == f"malformed: the message carries poses and grippers; {expected}"
            poses = [[0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]] * 2
            assert "expects states of" in refused(lambda: client.infer(images, poses, [1, 1], times))
        if kind == "two arms":
            own = {"poses": None, "grippers": None, "states": states.tolist()}
            expected = "expected one list of 2 by camera: left_image, right_image"
            assert asked(images=[], **own) == f"malformed: images is list; {expected}"
            found = asked(images={"left_image": [], "wrist": []}, **own)
            assert found == f"wrong_frames: images has ['left_image', 'wrist']; {expected}"
            own["states"][1][14] = 3.0  # type: ignore[index]
            found = asked(images={"left_image": ["", ""], "right_image": ["", ""]}, **own)
            assert found.startswith("bad_state: states of right: quaternion 1 has norm")
        assert len(ask(client, kind, engine, 0).actions) == 4, "and the session goes on"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (POSE, "A 7-D pose policy grows a gripper"),
        (("x", "y", "z", "gripper"), "clients expect"),
        (("x", "y", "z", "rx", "ry", "rz", "width"), r"has no limit for \['width'\]"),
    ],
)
def test_a_layout_that_no_guard_can_judge_is_not_served(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    meta = shape_meta("one arm")
    meta["action"] = {"shape": [len(names)], "names": list(names)}
    config = tiny_config(policy={"encoder_width": 16})
    config["policy"]["shape_meta"] = meta  # type: ignore[index]
    arrays = episode("one arm", 12, 0)["state"]
    fitted = {"robot_eef_pose": arrays[:, :7], "robot_gripper_state": arrays[:, 7:], "action": arrays[:, : len(names)]}
    path = write_policy(tmp_path / "a.ckpt", config, fitted, action_semantics(names))
    with pytest.raises(ServeError, match=message):
        PolicyEngine(load_policy(path), EngineSettings())
