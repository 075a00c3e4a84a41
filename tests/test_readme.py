"""Every command of the README runs, as written, in a folder that has the repository's scripts and small data.

They are pasted into a shell without an active environment; README's own line activates it.
"""

import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import warm_process
from predecessor_configs import write_configs
from trajectory_factory import recorded_arrays, write_trajectory
from zarr_factory import write_umi

from diffusion_policy import checkpoint
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.serve.client import ServerError

REPOSITORY = Path(__file__).resolve().parents[1]
# What turns the users' job into a matter of seconds; the commands are otherwise run as they stand.
SMALL_POLICY = [
    "++policy.encoder_width=16",
    "policy.n_layer=2",
    "policy.n_emb=32",
    "policy.crop_shape=[36,64]",
    "policy.num_inference_steps=2",
]
TRAINING = " ".join(
    [
        "training.debug=true",
        "training.device=cpu",
        "dataloader.batch_size=2",
        "val_dataloader.batch_size=2",
        "sampler.steps=1",
        *(f"'{setting}'" for setting in SMALL_POLICY),
    ]
)
ON_A_SMALL_MACHINE = [
    (re.compile(r"(python train\.py .*)"), rf"\1 {TRAINING}"),
    (re.compile(r"(finetune_7d_to_8d\.sh) 0 200"), rf"\1 cpu 2 {TRAINING}"),
    (re.compile(r"(evaluate_closed_loop\.py .*) --scenes 20"), r"\1 --scenes 1"),
    (re.compile(r"EPOCHS=200 (bash scripts/train_cogact_finetune\.sh)"), rf"GPU=cpu EPOCHS=2 \1 {TRAINING}"),
]
# So little training leaves quaternions of any length, which the guard refuses as it should.
GUARD = ("guard.quaternion_tolerance=0.95",)
# A policy that has seen six batches has learned nothing, so the commands that judge it may exit with status 1.
ACTIVATE = "source .venv/bin/activate"
NOT_LEARNED = re.compile(r"validate_gripper\.py|LOGS=1|evaluate_open_loop\.py|doctor\.py|report\.py")


def readme_commands() -> list[str]:
    """The commands of the README's bash blocks, in order, continuation lines joined and comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone as left by `make demo`, with six short recordings, a small 7-D checkpoint and older configs."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "config", "train.py", "diffusion_policy", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)
    link_environment(folder / ".venv")
    for episode in range(6):
        write_trajectory(folder / "data" / "raw" / "trajectories", episode_id=episode, n_steps=20, size=(320, 180))
    write_configs(folder / "old_repository" / "diffusion_policy" / "config")
    (folder / "data" / "pretrained").mkdir()
    shutil.copy(REPOSITORY / "data" / "pretrained" / "tabletop_7d.ckpt", folder / "data" / "pretrained")
    write_pose_checkpoint(folder / "data" / "pretrained" / "cogact_7d.ckpt")
    write_umi(folder / "cup.zarr.zip")
    return folder


def link_environment(target: Path) -> None:
    """The tests' environment under another path, as if made there by `make setup`.

    Its `python` runs commands in copies of a process that has everything loaded; the one that serves is a new one.
    """
    source = Path(sys.prefix)
    if not (source / "bin" / "activate").is_file():
        pytest.skip("the tests run in no virtual environment, so there is none to activate")
    (target / "bin").mkdir(parents=True)
    for entry in [*source.iterdir(), *(source / "bin").iterdir()]:
        if entry.name not in ("bin", "activate", "python"):
            (target / entry.relative_to(source)).symlink_to(entry)
    (target / "bin" / "python").symlink_to(warm_process.python())
    script = (source / "bin" / "activate").read_text()
    (target / "bin" / "activate").write_text(
        re.sub(r"^( *(?:export )?VIRTUAL_ENV=).*", rf"\g<1>{target}", script, flags=re.MULTILINE)
    )


def write_pose_checkpoint(path: Path) -> None:
    """A small 7-D checkpoint with the shipped settings otherwise; its weights are random."""
    register_resolvers()
    with hydra.initialize_config_dir(str(REPOSITORY / "config"), version_base="1.2"):
        cfg = hydra.compose("train_cogact_robot", overrides=["task=cogact_robot_7d", *SMALL_POLICY])
    torch.manual_seed(0)
    policy = checkpoint.build_policy(cfg)
    normalizer = LinearNormalizer()
    arrays = recorded_arrays(20)
    gripper = arrays["robot_gripper"][:, None].astype(np.float32)
    normalizer.fit(
        {"action": arrays["action"], "robot_eef_pose": arrays["robot_eef_pose"], "robot_gripper_state": gripper}
    )
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    checkpoint.write_checkpoint(
        path,
        cfg=cfg,
        state_dicts={which: policy.state_dict() for which in ("model", "ema_model")},
        pickles={"_output_dir": None, "global_step": 0, "epoch": 0},
    )


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    for written, small in ON_A_SMALL_MACHINE:
        command = written.sub(small, command)
    # The launchers change to the folder that contains them, and find .venv there.
    pasted = command if ".sh " in command else f"{ACTIVATE}\n{command}"
    shell = ["bash", "-c", pasted]
    return subprocess.run(
        shell, cwd=folder, env=no_environment(), capture_output=True, text=True, check=False, timeout=900
    )


def no_environment() -> dict[str, str]:
    """A shell's variables without an active environment, and without its programs."""
    active = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    here = Path(sys.executable).parent
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != here]
    kept = {name: value for name, value in os.environ.items() if name not in active}
    return kept | {"PATH": os.pathsep.join(folders)}


def serve(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the server, let the README's client drive it over a recorded episode, and end it as systemd would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, *shlex.split(command)[1:], f"port={port}", *GUARD]
    with (folder / "server.txt").open("w") as output:
        server = subprocess.Popen(words, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(port, server)
            drive(port, folder / "data" / "raw" / "trajectories" / "episode_0005")
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
    return subprocess.CompletedProcess(words, status, (folder / "server.txt").read_text(), "")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Waits until the port answers, unless the server has ended."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the server ended before it listened"
        time.sleep(0.1)
    raise AssertionError("the server did not listen within a minute")


def drive(port: int, episode: Path) -> None:
    """Runs the README's Python lines; the arm shows its recording and keeps its commands."""
    (lines,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    arm = RecordedArm(episode)
    exec(lines.replace('LineClient("127.0.0.1")', f'LineClient("127.0.0.1", {port})'), {"arm": arm})  # noqa: S102
    assert arm.shown == len(arm.frames) - 1
    assert len(arm.moves) >= arm.shown
    assert all(move.shape == (8,) for move in arm.moves)


class RecordedArm:
    """An arm that shows two recorded steps at a time as if they were current."""

    def __init__(self, episode: Path) -> None:
        self.data = pickle.loads((episode / "data.pkl").read_bytes())
        self.frames = [path.read_bytes() for path in sorted((episode / "images").iterdir())]
        self.moves: list[np.ndarray] = []
        self.shown = 0

    @property
    def done(self) -> bool:
        return self.shown == len(self.frames) - 1

    def observe(self) -> tuple[list[bytes], np.ndarray, np.ndarray, np.ndarray]:
        pair = slice(self.shown, self.shown + 2)
        self.shown += 1
        pose, gripper = self.data["robot_eef_pose"][pair], self.data["robot_gripper"][pair, None]
        return self.frames[pair], pose, gripper, time.time() + np.array([-0.1, 0.0])

    def move(self, action: np.ndarray) -> None:
        self.moves.append(action)

    def hold(self, error: ServerError) -> None:
        raise error


@pytest.mark.slow
def test_the_recipe_runs_as_written(workplace: Path) -> None:
    commands = [command for command in readme_commands() if not command.startswith("make ") and command != ACTIVATE]
    assert any("finetune_from_7d_to_8d.py" in command for command in commands)
    for command in commands:
        finished = (serve if "scripts/serve.py" in command else run)(command, workplace)
        accepted = {0, 1} if NOT_LEARNED.search(command) else {0}
        assert finished.returncode in accepted, f"{command}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"


def test_the_environment_is_activated_as_the_readme_says(workplace: Path) -> None:
    commands = readme_commands()
    assert commands.index("make demo") < commands.index(ACTIVATE)
    found = run("command -v python tensorboard", workplace).stdout.split()
    assert found == [str(workplace / ".venv" / "bin" / program) for program in ("python", "tensorboard")]


@pytest.mark.parametrize(("target", "does"), [("demo", "scripts/demo.py"), ("test", "-m pytest")])
def test_the_two_commands_of_the_first_screen_exist(target: str, does: str) -> None:
    assert f"make {target}" in readme_commands()
    planned = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert does in planned.stdout
