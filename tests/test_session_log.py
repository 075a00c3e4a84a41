"""diffusion_policy.run_log.session_log: written as it happens, without delaying the arm."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from serve_factory import FakeEngine, ServerThread, jpeg, observation_message, settings

from diffusion_policy.run_log import RunLogError, read_log
from diffusion_policy.run_log.session_log import SessionLog, SessionLogError, newest_images, read_image, read_lines
from diffusion_policy.serve.settings import EngineSettings


def served(folder: Path, n_steps: int = 3, *overrides: str) -> list[Path]:
    """Runs of a client that asks n times, errs once and resets once."""
    with ServerThread(FakeEngine(), settings(folder, *overrides)) as server, server.client() as client:
        for step in range(n_steps):
            assert client.ask(observation_message(step))["type"] == "action"
        client.ask({"type": "nonsense"})
        client.ask({"type": "reset"})
    return sorted(folder.glob("run_*"))


def test_a_run_is_read_back_with_everything_that_computed_it(tmp_path: Path) -> None:
    (run,) = served(tmp_path)
    meta, lines = read_lines(run)
    assert meta["version"] == 4
    assert {"torch", "numpy", "python"} <= meta["software"].keys()
    assert meta["checkpoint_sha256"] == "0" * 64
    assert meta["guard"]["max_step_rad"] == 0.1
    assert meta["settings"]["engine"]["steps"] == EngineSettings().steps
    assert [line.get("event", line.get("step")) for line in lines] == [0, 1, 2, "error", "reset"]
    step = lines[0]
    assert {"receive_ms", "parse_ms", "decode_ms", "guard_ms", "reply_ms", "server_recv"} <= step["timing"].keys()
    assert len({line["seed"] for line in lines[:3]}) == 3
    assert step["delivered"] is True
    assert [read_image(run, name) for name in step["input"]["images"]] == [jpeg(0), jpeg(1)]
    assert len(list((run / "images").iterdir())) == 4, "a frame that two steps share is stored once"


def test_the_reader_of_all_logs_reads_it(tmp_path: Path) -> None:
    (run,) = served(tmp_path)
    log = read_log(run)
    assert (log.generation, len(log.steps)) == (4, 3)
    assert log.actions.shape == (3, 8, 8)
    assert log.steps[2].frames == {"image": jpeg(3)}
    assert log.layout == "xyz_quat_gripper"
    assert log.step_period is not None
    (run / "steps.jsonl").write_text('{"action": 1}\n')
    with pytest.raises(RunLogError, match="not a run folder, or a line of steps"):
        read_log(run)


def test_a_torn_last_line_is_left_out_and_an_earlier_one_is_named(tmp_path: Path) -> None:
    (run,) = served(tmp_path)
    steps = run / "steps.jsonl"
    steps.write_bytes(steps.read_bytes()[:-20])
    assert len(read_lines(run)[1]) == 4
    assert len(read_log(run).steps) == 3
    steps.write_bytes(steps.read_bytes().replace(b'{"step": 1', b'{"step" 1', 1))
    with pytest.raises(SessionLogError, match="line 2 is not JSON"):
        read_lines(run)
    with pytest.raises(SessionLogError, match="is not a run folder"):
        read_lines(tmp_path)
    with pytest.raises(SessionLogError, match="is not an image of this run"):
        read_image(run, "../secret.jpg")
    with pytest.raises(SessionLogError, match="cannot be read"):
        read_image(run, "images/absent.jpg")


def test_a_killed_process_loses_at_most_the_last_line(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from diffusion_policy.run_log.session_log import SessionLog\n"
        "log = SessionLog(sys.argv[1], {}, capacity=10_000)\n"
        "for step in range(10**6):\n"
        "    log.write({'step': step, 'text': 'x' * 500})\n"
        "    if step == 50: print('written', flush=True)\n"
        "    time.sleep(0.0005)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    (run,) = tmp_path.glob("run_*")
    steps = [line["step"] for line in read_lines(run)[1]]
    assert steps == list(range(len(steps)))
    assert len(steps) > 40


def test_a_full_disk_stops_the_log_and_not_the_arm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with ServerThread(FakeEngine(), settings(tmp_path)) as server, server.client() as client:
        assert client.ask(observation_message(0))["type"] == "action"
        deadline = time.monotonic() + 5
        while not list(tmp_path.glob("run_*/steps.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.01)
        (log,) = (connection.session._log for connection in server.host._connections)
        while log._lines is None or not log._lines.tell():
            time.sleep(0.01)
        log._lines = open("/dev/full", "a")  # noqa: SIM115 - every write to it fails with ENOSPC
        assert client.ask(observation_message(1))["type"] == "action"
        while not log.stopped and time.monotonic() < deadline:
            time.sleep(0.01)
        reply = client.ask(observation_message(2))
        assert reply["type"] == "action"
        assert "the log stopped: [Errno 28]" in reply["warnings"][0]
        assert client.ask({"type": "hello"})["log_stopped"]
    assert "the robot is still served" in caplog.text


def test_a_log_that_stopped_with_lines_waiting_still_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, full = threading.Event(), threading.Event()

    def fail(self: SessionLog, *item: object) -> None:
        entered.set()
        full.wait(60)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SessionLog, "_write", fail)
    log = SessionLog(tmp_path, {}, capacity=1)
    log.write({"step": 0})
    assert entered.wait(10)
    log.write({"step": 1})  # the one that waits
    full.set()
    while not log.stopped:
        time.sleep(0.001)
    closing = threading.Thread(target=log.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive(), "a session that ends must not wait for a log that nobody writes"


def test_a_line_that_cannot_be_written_stops_the_log_and_is_reported(tmp_path: Path) -> None:
    log = SessionLog(tmp_path, {})
    log.write({"step": 0, "state": float("nan")})
    log.close()
    assert log.stopped is not None
    assert "the log stopped" in log.stopped


def test_a_slow_disk_leaves_steps_out_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, disk_is_back = SessionLog._write, threading.Event()
    monkeypatch.setattr(SessionLog, "_write", lambda self, *item: (disk_is_back.wait(60), written(self, *item)))
    log = SessionLog(tmp_path, {}, capacity=2)
    for step in range(20):  # waits for nothing: the disk only comes back afterwards
        log.write({"step": step})
    assert log.dropped >= 17
    disk_is_back.set()
    log.close()
    (run,) = tmp_path.glob("run_*")
    steps = [line["step"] for line in read_lines(run)[1]]
    assert len(steps) == 20 - log.dropped
    assert steps == sorted(set(steps)), "those that are there are in order"


def test_a_large_run_continues_in_a_new_folder(tmp_path: Path) -> None:
    runs = served(tmp_path, 4, "log.max_bytes=9000")
    assert len(runs) > 1
    metas, lines = zip(*(read_lines(run) for run in runs), strict=True)
    assert [meta["continues"] for meta in metas] == [None, *(run.name for run in runs[:-1])]
    assert [line["step"] for part in lines for line in part if "step" in line] == [0, 1, 2, 3]


def test_raw_frames_are_kept_without_loss(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    log = SessionLog(tmp_path, {})
    log.write({"step": 0}, [frame])
    log.close()
    (run,) = tmp_path.glob("run_*")
    (line,) = read_lines(run)[1]
    data = np.frombuffer(read_image(run, line["input"]["images"][0]), np.uint8)
    np.testing.assert_array_equal(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), frame)


def test_sessions_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    logs = [SessionLog(tmp_path, {}) for _ in range(12)]
    for number, log in enumerate(logs):
        log.write({"step": number})
    for log in logs:
        log.close()
    assert [log.stopped for log in logs] == [None] * 12
    assert len(list(tmp_path.glob("run_*"))) == 12


def test_no_folder_without_a_line(tmp_path: Path) -> None:
    SessionLog(tmp_path / "logs", {}).close()
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("cameras", "names", "expected"),
    [
        (None, ["a0", "a1"], {"image": "a1"}),
        (["front"], ["a0", "a1"], {"image": "a1"}),
        (["wrist", "front"], ["a0", "a1", "b0", "b1"], {"wrist": "a1", "front": "b1"}),
        (["wrist", "front"], ["a0", "a1", "b0"], "a step names 3 images of 2 cameras"),
        (["wrist", "front"], [], "a step names 0 images of 2 cameras"),
        ("front", ["a0"], "cameras is 'front'; expected a list of names"),
    ],
)
def test_the_newest_image_of_every_camera(cameras: object, names: list[str], expected: dict[str, str] | str) -> None:
    meta = {} if cameras is None else {"cameras": cameras}
    if isinstance(expected, str):
        with pytest.raises(SessionLogError, match=expected):
            newest_images("run", meta, names)
    else:
        assert newest_images("run", meta, names) == expected
