"""Every command of the README runs, as it is written, in a folder that has the repository's doors and small data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy import checkpoint
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.resolvers import register_resolvers

REPOSITORY = Path(__file__).resolve().parents[1]
# What turns the users' job into a matter of seconds; the commands are otherwise run as they stand.
SMALL_POLICY = ["policy.n_layer=2", "policy.n_emb=32", "policy.crop_shape=[36,64]", "policy.num_inference_steps=2"]
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
    (re.compile(r"EPOCHS=200 (bash scripts/train_cogact_finetune\.sh)"), rf"GPU=cpu EPOCHS=2 \1 {TRAINING}"),
]
# A policy that has seen six batches has learned nothing, and the commands that judge it may say so by status 1.
NOT_LEARNED = re.compile(r"validate_gripper\.py|LOGS=1|evaluate_open_loop\.py|doctor\.py|report\.py")


def readme_commands() -> list[str]:
    """The commands of the README's bash blocks, in order, continuation lines joined and comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the doors of the repository, six short recordings and a small 7-D checkpoint."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("scripts", "config", "train.py", "diffusion_policy", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)
    for episode in range(6):
        write_trajectory(folder / "data" / "raw" / "trajectories", episode_id=episode, n_steps=20, size=(320, 180))
    (folder / "data" / "pretrained").mkdir()
    write_pose_checkpoint(folder / "data" / "pretrained" / "cogact_7d.ckpt")
    return folder


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
    # The launchers go to the folder that their own path lies in, which is the workplace's.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def test_the_recipe_runs_as_written(workplace: Path) -> None:
    commands = [command for command in readme_commands() if not command.startswith("make ")]
    assert any("finetune_from_7d_to_8d.py" in command for command in commands)
    for command in commands:
        finished = run(command, workplace)
        accepted = {0, 1} if NOT_LEARNED.search(command) else {0}
        assert finished.returncode in accepted, f"{command}\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}"


@pytest.mark.parametrize(("target", "does"), [("demo", "scripts/demo.py"), ("test", "-m pytest")])
def test_the_two_commands_of_the_first_screen_exist(target: str, does: str) -> None:
    assert f"make {target}" in readme_commands()
    planned = subprocess.run(["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert does in planned.stdout
