"""Two cameras, from recording to report, by the commands in docs/on_the_arm.md as written."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import warm_process
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.client import LineClient, ServerError, read_arm_log

CAMERAS = ("front", "wrist")
N_STEPS = 30
# Settings that turn an hour into seconds. So little training leaves quaternions of any norm, and steps of any size.
TRAINING = (
    "training.device=cpu training.num_epochs=1 training.max_train_steps=2 training.max_val_steps=1 sampler.steps=1 "
    "training.precision=float32 dataloader.batch_size=4 val_dataloader.batch_size=4 dataloader.num_workers=0 "
    "val_dataloader.num_workers=0 ++policy.encoder_width=16 policy.n_layer=1 policy.n_emb=32 policy.n_head=2 "
    "policy.noise_scheduler.num_train_timesteps=20"
)
SERVING = (
    "guard.quaternion_tolerance=0.99 guard.max_step_m=9 guard.max_step_rad=9 guard.max_chunk_m=9 guard.max_chunk_rad=9 "
    "guard.workspace_low=[-9,-9,-9] guard.workspace_high=[9,9,9] engine.steps=2 deadline_s=60 max_age_s=60"
)
# On a busy machine. The reasons why the arm holds have their own tests.
PATIENT = "--answer-timeout 60 --max-action-age 60 --camera-max-age 60 --state-max-age 60 --longest-gap 60"
ADDED = {"train.py": TRAINING, "run_robot.py": PATIENT}


def commands_of(page: str) -> list[list[str]]:
    """The words of the section's commands."""
    section = page.split("## Two cameras")[1].split("\n## ")[0]
    [block] = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path: Path, repository: Path) -> Path:
    """A checkout in which two cameras were recorded, one of them at half the rate."""
    for name in ("scripts", "config", "train.py", "diffusion_policy"):
        (tmp_path / name).symlink_to(repository / name)
    for episode in range(4):
        arrays = recorded_arrays(N_STEPS, episode)
        arrays["timestamp"] = arrays["timestamp"][0] + 0.1 * np.arange(N_STEPS)
        write_trajectory(
            tmp_path / "data" / "raw" / "two_cameras", episode, N_STEPS, (80, 45), arrays=arrays, cameras=CAMERAS
        )
    return tmp_path


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """One command; patterns are expanded as by a shell."""
    given = [*words[1:], *shlex.split(ADDED.get(Path(words[1]).name, ""))]
    expanded: list[str] = []
    for word in given:
        found = sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "*" in word else [word]
        expanded += found
    return warm_process.run(expanded, folder)


def served(words: list[str], folder: Path, port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, *words[1:], *SERVING.split(), f"port={port}"], cwd=folder, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            LineClient(port=port).close()
            return server
        except ServerError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.exhaustive  # each stage of it has tests with two cameras by default
def test_the_walk_of_two_cameras(workplace: Path, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = None
    names = []
    try:
        for words in commands_of((repository / "docs" / "on_the_arm.md").read_text()):
            name = Path(words[1]).name
            names.append(name)
            if name == "serve.py":
                server = served(words, workplace, port)
                continue
            if name == "run_robot.py":
                words = [*words, "--server", f"127.0.0.1:{port}"]
            if name == "join_logs.py":
                assert server is not None
                server.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
            done = run(words, workplace)
            output = done.stdout + done.stderr
            assert done.returncode == (1 if name == "report.py" else 0), f"{shlex.join(words)}\n{output}"
    finally:
        if server is not None and server.poll() is None:
            server.kill()
    assert names == [
        "convert_cogact_to_zarr.py", "train.py", "serve.py", "run_robot.py", "join_logs.py", "report.py",
    ]  # fmt: skip
    [arm_log] = (workplace / "data" / "logs" / "arm").iterdir()
    log = read_arm_log(arm_log)
    assert log.of("move")
    assert all(set(line["ages_s"]) == set(CAMERAS) for line in log.of("request"))
    assert log.start["settings"]["camera_max_ages_s"] == {"wrist": 0.2}
    [run_folder] = (workplace / "data" / "logs" / "serve").iterdir()
    meta, lines = read_lines(run_folder)
    assert meta["cameras"] == list(CAMERAS)
    answered = [line for line in lines if line.get("action")]
    assert answered
    assert all(len(line["input"]["images"]) == 2 * len(CAMERAS) for line in answered)
    assert {line["request_id"] for line in answered} >= {line["request_id"] for line in log.of("answer")}
    report = (workplace / "data" / "outputs" / "two_cameras" / "report.html").read_text()
    assert json.dumps(run_folder.name)[1:-1] in report
