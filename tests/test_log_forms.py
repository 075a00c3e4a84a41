"""A run in other forms: the predecessor's log, VLA-Lab, Rerun, and trajectories to train on."""

import base64
import itertools
import json
import os
import pickle
import runpy
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from gripper_scales import FOREIGN, GRASP, written
from log_factory import write_log
from serve_factory import FakeEngine, ServerThread, jpeg, observation_message, settings

from diffusion_policy.dagger.marked import cut_marked
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.run_log import RunLogError, read_log
from diffusion_policy.run_log.exports import to_inference_log, to_rerun, to_vlalab
from diffusion_policy.run_log.session_log import SessionLogError, read_lines
from diffusion_policy.run_log.to_trajectories import convert_logs, read_corrections
from diffusion_policy.spec import INTERVENTION
from diffusion_policy.trajectory import open_trajectory

FRAME = base64.b64encode(jpeg(0)).decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five steps; at the third, the policy wants a jump that the guard shortens."""
    folder = tmp_path_factory.mktemp("runs")

    def mischief(observation: object) -> np.ndarray | None:
        states = observation.states[-1]  # type: ignore[attr-defined]
        if abs(observation.timestamps[-1] - 0.3) > 0.01:  # type: ignore[attr-defined]
            return None
        return np.tile(states + np.array([0.16, 0, 0, 0, 0, 0, 0, 0]), (10, 1))

    with ServerThread(FakeEngine(mischief), settings(folder)) as server, server.client() as client:
        for step in range(5):
            assert client.ask(observation_message(step))["type"] == "action"
    (found,) = folder.glob("run_*")
    return found


def test_the_predecessor_s_form(run: Path, tmp_path: Path) -> None:
    log = read_log(to_inference_log(run, tmp_path))
    assert (log.generation, len(log.steps)) == (3, 5)
    assert log.steps[1].frames == {"image": jpeg(2)}
    timing = log.steps[1].timing
    for clock in ("server_recv", "infer_start", "infer_end"):
        assert abs(timing[clock] - read_lines(run)[0]["wall_start"]) < 60, "unix times, as the predecessor's"
    assert 0 < timing["inference_latency"] < 60, "seconds"
    assert not {"transport_latency", "total_latency"} & timing.keys(), "of two clocks"
    with pytest.raises(RunLogError, match="of generation 3 already"):
        to_inference_log(log.path, tmp_path)


def test_vlalab_reads_its_form(run: Path, tmp_path: Path) -> None:
    target = to_vlalab(run, tmp_path, "pick_and_place")
    first = json.loads((target / "steps.jsonl").read_text().splitlines()[0])
    assert "client_send" not in first["timing"], "another clock"
    with pytest.raises(SessionLogError, match="exists already"):
        to_vlalab(run, tmp_path, "pick_and_place")
    vlalab = pytest.importorskip("vlalab", reason="vlalab is not installed")
    assert vlalab.list_projects(dir=tmp_path) == ["pick_and_place"]
    assert vlalab.list_runs(project="pick_and_place", dir=tmp_path) == vlalab.list_runs(dir=tmp_path) == [target]
    loader = pytest.importorskip("vlalab.logging.run_loader", reason="vlalab is not installed").RunLoader(target)
    assert loader.meta.action_dim == 8
    assert loader.step_count == 5
    assert loader.get_all_states().shape == (5, 8)
    assert loader.get_all_actions()[0].shape == (8, 8)
    step = loader.get_step(2)
    assert step.tags["interventions"] == {"step distance": 3}
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg(3), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(loader.load_image(step), expected)
    assert abs(step.timing.server_recv - read_lines(run)[0]["wall_start"]) < 60


def test_rerun_records_it(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra 'rerun' is not installed")
    path = to_rerun(run, tmp_path / "run.rrd")
    assert path.read_bytes()[:3] == b"RRF"
    with pytest.raises(SessionLogError, match="exists already"):
        to_rerun(run, path)


def test_the_commands(run: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = runpy.run_path(str(repository / "scripts" / "export_run.py"))["main"]
    assert export([str(run), "--vlalab", str(tmp_path / "lab")]) == 0
    assert str(tmp_path / "lab" / "diffusion_policy" / run.name) in capsys.readouterr().out
    assert export([str(run), "--vlalab", str(tmp_path / "lab"), "--project", "../out"]) == 2
    assert export([str(run), "--rerun", str(tmp_path / "a.rrd"), "--project", "x"]) == 2
    assert "--project only applies to --vlalab" in capsys.readouterr().err
    assert export([str(tmp_path), "--vlalab", str(tmp_path / "lab")]) == 2
    convert = runpy.run_path(str(repository / "scripts" / "convert_logs_to_trajectories.py"))["main"]
    assert convert([str(run), "--output", str(tmp_path / "data")]) == 0
    assert "5 steps, 0 left out, 0 corrected" in capsys.readouterr().out
    assert convert([str(tmp_path), "--output", str(tmp_path / "data")]) == 2


def test_a_run_becomes_an_episode_with_marks(run: Path, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.json"
    fixed.write_text(json.dumps({"2": [0.5, 0.01, 0.3, 1, 0, 0, 0, 0]}))
    (tmp_path / "data" / "episode_0007").mkdir(parents=True)
    (written,) = convert_logs([run], tmp_path / "data", read_corrections(fixed))
    assert (written.path.name, written.n_steps, written.corrected) == ("episode_0008", 5, 1)
    episode = open_trajectory(written.path)
    np.testing.assert_allclose(episode.pose[0], [0.5, 0, 0.3, 1, 0, 0, 0])
    np.testing.assert_allclose(episode.action[2], [0.5, 0.01, 0.3, 1, 0, 0, 0])
    assert episode.action_gripper.tolist() == [1, 1, 0, 1, 1]
    np.testing.assert_allclose(np.diff(episode.timestamp), 0.1)
    assert episode.frame_path(4).read_bytes() == jpeg(5)
    marks = json.loads((written.path / "marks.json").read_text())
    assert marks["corrected"] == [2]
    assert marks["interventions"] == {"2": {"step distance": 3}}


def test_steps_that_a_person_drove_are_marked_and_read_by_every_reader(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path / "runs")) as server, server.client() as client:
        for step in range(8):
            marked = {"intervention": True} if 2 <= step < 7 else {"intervention": False} if step == 1 else {}
            assert client.ask(observation_message(step, **marked))["type"] == "action"
    (run,) = (tmp_path / "runs").glob("run_*")
    assert [line["step"] for line in read_lines(run)[1] if line["input"].get("intervention")] == [2, 3, 4, 5, 6]
    assert len(read_log(run).steps) == 8
    (plain,) = convert_logs([run], tmp_path / "plain")
    assert json.loads((plain.path / "marks.json").read_text())["intervention"] == [2, 3, 4, 5, 6]
    assert INTERVENTION not in pickle.loads((plain.path / "data.pkl").read_bytes()), "the actions are the policy's"
    wanted = {step: [0.5, 0.01 * step, 0.3, 1, 0, 0, 0, 0] for step in range(2, 7)}
    (fixed,) = convert_logs([run], tmp_path / "fixed", wanted)
    marks = pickle.loads((fixed.path / "data.pkl").read_bytes())[INTERVENTION]
    assert marks.tolist() == [False, False, True, True, True, True, True, False]
    (cut,) = cut_marked(tmp_path / "fixed", tmp_path / "corrections")
    episode = open_trajectory(tmp_path / "corrections" / cut.episodes[0])
    np.testing.assert_allclose(episode.action[:, 1], [0.02, 0.03, 0.04, 0.05, 0.06], atol=1e-6)
    assert episode.frame_path(0).read_bytes() == jpeg(3)


def test_a_reset_begins_another_episode(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path / "runs")) as server, server.client() as client:
        for asked in (0, 1, 2, None, 0, 1):
            client.ask({"type": "reset"} if asked is None else observation_message(asked))
    (run,) = (tmp_path / "runs").glob("run_*")
    steps = run / "steps.jsonl"
    steps.write_text(steps.read_text().replace('"delivered": true', '"delivered": false', 1))
    first, second = convert_logs([run], tmp_path / "data", {4: [0.5, 0.01, 0.3, 1, 0, 0, 0, 0]})
    assert (first.path.name, first.n_steps, first.corrected) == ("episode_0000", 3, 0)
    assert (second.path.name, second.n_steps, second.corrected) == ("episode_0001", 2, 1)
    for episode in (first, second):
        assert (np.diff(open_trajectory(episode.path).timestamp) > 0).all(), "time runs forwards within an episode"
    marks = [json.loads((episode.path / "marks.json").read_text()) for episode in (first, second)]
    assert [mark["steps"] for mark in marks] == [[0, 1, 2], [3, 4]]
    assert [mark["not_delivered"] for mark in marks] == [[0], []]


def test_old_logs_with_images_become_episodes(shared_data: Path, tmp_path: Path) -> None:
    logs = []
    for path in sorted((shared_data / "real_logs").glob("inference_log_*.json")):
        log = read_log(path)
        if log.steps and log.layout == "xyz_quat_gripper" and all(step.frames for step in log.steps):
            logs.append(path)
    if not logs:
        pytest.skip("none of the real logs holds images")
    for episode in convert_logs(logs[:2], tmp_path):
        assert open_trajectory(episode.path).n_steps == episode.n_steps


def test_logs_that_training_cannot_use_are_refused(tmp_path: Path) -> None:

    with pytest.raises(RunLogError, match="steps have no image, the first is 0"):
        convert_logs([write_log(tmp_path / "a.json", [1.0, 0.0])], tmp_path)
    with pytest.raises(RunLogError, match="xyz_rotvec_width; expected a pose and a gripper"):
        convert_logs([write_log(tmp_path / "b.json", [0.05, 0.05], 1, layout="rotvec")], tmp_path)
    wandering = write_log(tmp_path / "c.json", [0.5, 0.5], 3)
    with pytest.raises(RunLogError, match="never clearly open or closed"):
        convert_logs([wandering], tmp_path)
    for text, match in (("[]", "expected a JSON object"), ('{"1": [1, 2]}', "expected 8 finite numbers")):
        (tmp_path / "fix.json").write_text(text)
        with pytest.raises(RunLogError, match=match):
            read_corrections(tmp_path / "fix.json")


@pytest.mark.parametrize("name", FOREIGN)
def test_logs_in_another_scale_become_episodes_of_ours_once_it_is_declared(tmp_path: Path, name: str) -> None:
    """As logged by the predecessor, without a label."""
    command = written(name)
    log = write_log(tmp_path / "log.json", command, 3, measured=[command[0], *command[:-1]])
    content = json.loads(log.read_text())
    for step in content["steps"]:
        step["input"]["image_base64"] = FRAME
    log.write_text(json.dumps(content))
    with pytest.raises(RunLogError, match=r"its commanded gripper is .*; declare it: --gripper-scale"):
        convert_logs([log], tmp_path / "refused")
    (episode,) = convert_logs([log], tmp_path / "out", gripper_scale=parse_scales(name))
    opened = open_trajectory(episode.path)
    np.testing.assert_array_equal(opened.action_gripper, GRASP)
    np.testing.assert_array_equal(opened.gripper, [1.0, *GRASP[:-1]])


@pytest.mark.parametrize("first", [0, 7])
def test_a_log_is_cut_where_steps_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture, first: int) -> None:
    log = write_log(tmp_path / "log.json", GRASP, 3)
    content = json.loads(log.read_text())
    for step in content["steps"]:
        step["input"]["image_base64"], step["step"] = FRAME, first + step["step"]
    content["steps"] = content["steps"][:22] + content["steps"][30:]
    log.write_text(json.dumps(content))
    episodes = convert_logs([log], tmp_path / "out")
    assert [episode.n_steps for episode in episodes] == [22, 15]
    assert f"steps {first + 22}-{first + 29} are missing (8 of 45); it is split there" in caplog.text
    marks = json.loads((episodes[1].path / "marks.json").read_text())
    assert marks["steps"] == list(range(first + 30, first + 45))


def test_a_correction_of_a_missing_step_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"corrections name steps \[41\], which it does not have"):
        convert_logs([run], tmp_path, {1: [0.5, 0, 0.3, 1, 0, 0, 0, 0], 41: [0.5, 0, 0.3, 1, 0, 0, 0, 0]})
    unclear = write_log(tmp_path / "inference_log.json", [0.5, 1.0, 1.0], 3)
    with pytest.raises(
        RunLogError, match=r"steps \[0\] are corrected, but left out: the gripper is first clear at step 1"
    ):
        convert_logs([unclear], tmp_path, {0: [0.5, 0, 0.3, 1, 0, 0, 0, 0.5]})
    assert not list(tmp_path.glob("episode_*"))


def test_an_episode_from_a_log_goes_through_the_converter(run: Path, tmp_path: Path, repository: Path) -> None:
    convert_logs([run], tmp_path / "raw")
    main = runpy.run_path(str(repository / "scripts" / "convert_cogact_to_zarr.py"))["main"]
    words = ["--input", str(tmp_path / "raw"), "--output", str(tmp_path / "set.zarr"), "--resolution", "32", "24"]
    assert main(words) == 0
    buffer = ReplayBuffer.open(tmp_path / "set.zarr")
    assert buffer.n_steps == 5
    assert buffer.episode_ends.tolist() == [5]


def test_an_export_that_is_interrupted_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusion_policy.run_log.exports.read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_vlalab(run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_conversion_keeps_whole_logs_and_continues_with_the_others(
    run: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    lines = (other / "steps.jsonl").read_text().splitlines()
    two = [line.replace('"episode": 0', '"episode": 1') if i > 2 else line for i, line in enumerate(lines)]
    (other / "steps.jsonl").write_text("\n".join(two) + "\n")
    replace, calls = os.replace, itertools.count()

    def stop_at_the_third(source: Path, target: Path) -> None:
        if next(calls) == 2:  # one of the first log, the first of two of the second
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("diffusion_policy.storage.os.replace", stop_at_the_third)
    main = runpy.run_path(str(repository / "scripts" / "convert_logs_to_trajectories.py"))["main"]
    assert main([str(run), str(other), "--output", str(tmp_path / "data")]) == 130
    output = capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["episode_0000"]
    assert f"1 episodes of 1 logs are kept in {tmp_path / 'data'}; go on with: " in output
    assert f"{other} --output" in output
    assert f"{run} {other}" not in output


def test_runs_without_an_answer_are_left_out_and_reported(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path)) as server, server.client() as client:
        assert client.ask({"type": "?"})["code"] == "unknown_type"
    (silent,) = tmp_path.glob("run_*")
    (episode,) = convert_logs([silent, run], tmp_path / "raw")
    assert episode.path.name == "episode_0000"
    assert f"{silent}: left out, none of its observations was answered" in caplog.text
