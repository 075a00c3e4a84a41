"""Every script on a dataset and a checkpoint of VPT: what it says is true of them, or it says why it refuses them."""

import html
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import vpt_factory
from omegaconf import OmegaConf
from script_parsers import refusal, script_called

from diffusion_policy.checkpoint import write_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose import ReportError
from diffusion_policy.diagnose.arm_paths import buttons, camera_turns, joint_paths
from diffusion_policy.diagnose.closed_loop_evidence import look_at_closed_loop
from diffusion_policy.diagnose.closed_loop_findings import of_another
from diffusion_policy.diagnose.step_evidence import idle_ranges, look_at_steps
from diffusion_policy.diagnose.steps import steps_of_dataset
from diffusion_policy.env_runner.simulator import Simulator, read_arguments, words_for
from diffusion_policy.installation import CONFIG, PRETRAINED, script_path
from diffusion_policy.training_config import checked_arguments, compose_training

GROVE = CONFIG / "simulator" / "grove.yaml"

OF_ROBOTS = re.compile(r"\b(gripper|robot|pose|joint|arm)s?\b", re.IGNORECASE)
READ = {
    "doctor": "--dataset DATA --checkpoint CKPT",
    "edit_dataset": "DATA --output OUT.zarr --delete 1",
    "export_dataset": "DATA --zarr-zip OUT.zarr.zip",
    "report": "--dataset DATA --checkpoint CKPT --out OUT.html",
    "verify_converted_data": "--zarr-path DATA --output-dir OUT",
    "view_dataset": "DATA --output OUT.html",
}
REFUSED = {
    "evaluate_open_loop": "CKPT DATA",
    "export_policy": "CKPT OUT.onnx",
    "run_offline_inference": "CKPT DATA --output OUT",
    "serve": "ckpt=CKPT",
    "tune_inference": "CKPT DATA",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vpt_factory.write_dataset(tmp_path_factory.mktemp("data") / "log.zarr")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "latest.ckpt"
    weights = {"model": vpt_factory.tiny_policy().state_dict()}
    write_checkpoint(path, cfg=OmegaConf.create(vpt_factory.config()), state_dicts=weights, pickles={})
    return path


def run(script: str, words: str, places: dict[str, Path]) -> int:
    arguments = shlex.split(words)
    for name, path in places.items():
        arguments = [word.replace(name, str(path)) for word in arguments]
    return int(runpy.run_path(str(script_path(script)))["main"](arguments))


@pytest.mark.parametrize("script", READ)
def test_a_script_that_reads_it_does_not_mention_robots(
    script: str, data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, READ[script], {"DATA": data, "CKPT": checkpoint, "OUT": tmp_path / "out"})
    printed = capsys.readouterr()
    assert not OF_ROBOTS.search(printed.out + printed.err), printed.out
    if script == "report":
        page = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", (tmp_path / "out.html").read_text(), flags=re.DOTALL)
        assert not OF_ROBOTS.search(page)
    if script == "view_dataset":
        (first,) = re.findall(r'id="data-episode-0">(.*?)</script>', (tmp_path / "out.html").read_text())
        shown = json.loads(first)
        assert [button["name"] for button in shown["buttons"]] == ["attack", "forward"]
        assert [line["name"] for line in shown["lines"]] == ["camera_pitch", "camera_yaw"]
        assert not shown["idle"]


def test_weights_that_ship_are_found_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--checkpoint WEIGHTS", {"WEIGHTS": PRETRAINED / "grove_vpt.weights"}) == 0
    assert "error" not in capsys.readouterr().out


@pytest.mark.parametrize("script", REFUSED)
def test_a_script_that_asks_for_single_answers_names_the_command_that_plays(
    script: str, data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, REFUSED[script], {"DATA": data, "CKPT": checkpoint, "OUT": tmp_path / "out"}) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert "remembers the frames since its episode began" in output
    named, words = script_called(shlex.split(output.rpartition("play it: ")[2]))
    assert run(named, shlex.join([*words, "--scenes", "1", "--env", "max_steps=2"]), {}) == 0


def test_standing_still_is_not_trimmed_where_no_arm_stands(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("edit_dataset", "DATA --output OUT --trim-idle 1", {"DATA": data, "OUT": tmp_path / "out.zarr"}) == 2
    assert "--null-actions drop" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_steps_of_a_game_are_buttons_and_turns_and_nothing_of_an_arm(data: Path) -> None:
    buffer = ReplayBuffer.open(data)
    steps = steps_of_dataset(buffer)
    assert set(buttons(steps)) == {"attack", "forward"}
    assert set(camera_turns(steps)) == {"camera_pitch", "camera_yaw"}
    assert joint_paths(steps)[0] == {}
    assert all(not episode.idle for episode in look_at_steps(steps).episodes)
    with pytest.raises(ReportError, match="no arm moves or stands still"):
        idle_ranges(buffer)


def test_a_result_of_another_checkpoint_is_measured_again_in_the_same_world(checkpoint: Path, tmp_path: Path) -> None:
    """The command that the report shows runs as it is, and its world is that of the result."""
    words = ["CKPT", "--simulator", str(GROVE), "--env", "max_steps=2", "--task", "wool", "--scenes", "1"]
    places = {"CKPT": checkpoint, "OUT": tmp_path / "a.json"}
    assert run("evaluate_closed_loop", " ".join([*words, "--json", "OUT"]), places) == 0
    best = tmp_path / "best.ckpt"
    weights = {"model": vpt_factory.tiny_policy(seed=1).state_dict()}
    write_checkpoint(best, cfg=OmegaConf.create(vpt_factory.config()), state_dicts=weights, pickles={})
    (evidence,) = look_at_closed_loop([tmp_path / "a.json"], [best])
    named, again = script_called(shlex.split(of_another(evidence).command))
    assert run(named, shlex.join([*again, "--scenes", "1"]), {}) == 0
    (measured,) = look_at_closed_loop([tmp_path / "closed_loop_best.json"], [best])
    assert measured.found.about["simulator"] == evidence.found.about["simulator"]


@pytest.mark.parametrize("path", sorted((CONFIG / "simulator").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_environment_is_made_again_from_its_description(path: Path) -> None:
    described = Simulator.load(path, max_steps=7, task="stone").describe()
    words = words_for(described)
    assert words is not None
    assert words[:2] == ["--simulator", str(path)]
    assert Simulator.load(path, **read_arguments(words[3::2])).describe() == described
    assert words_for({"env": {"_target_": "elsewhere.Env"}}) is None


BC_LINES = (
    {"global_step": 0, "train_loss_before_first_update": 13.0, "start": "pretrained"},
    {"global_step": 1, "train_loss": 13.0, "lr": 1e-6},
    {"global_step": 2, "train_loss": 13.9, "lr": 1e-6, "val_loss": 9.0},
    {"global_step": 3, "train_loss": None, "lr": 1e-6, "val_loss": 14.0},
)
SHARES = {"success_share": 0.1, "success_share_low": 0.0, "success_share_high": 0.3, "window_episodes": 100.0}
PPO_LINES = (
    {"global_step": 1, **SHARES, "success_share": 0.9, "success_share_low": 0.8, "success_share_high": 0.95},
    {"global_step": 2, **SHARES, "explained_variance": -1.0, "kl_to_pretrained": 3.0, "lr": 1e-5},
)


@pytest.mark.parametrize(("name", "lines"), [("train_vpt_bc", BC_LINES), ("train_ppo_from_vpt", PPO_LINES)])
def test_every_command_that_a_run_shows_is_taken(
    name: str, lines: tuple[dict[str, object], ...], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Of a run with much to find fault with: stopped, few updates, a loss that rises, a result of other weights."""
    folder = tmp_path / "a run"
    words = vpt_factory.OVERRIDES if name == "train_vpt_bc" else ("training.device=cpu",)
    words = (*words, f"task.dataset_path={data}") if name == "train_vpt_bc" else words
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(compose_training(name, words), folder / ".hydra" / "config.yaml")
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra:\n  job:\n    config_name: {name}\n")
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    (folder / "logs.json.txt").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    status = {"state": "stopped", "signal": "SIGTERM", "error": None, "epochs": 1, "of_epochs": 9, "updates": 3}
    (folder / "status.json").write_text(json.dumps({**status, "of_updates": 99}))
    (folder / "checkpoints").mkdir()
    shutil.copy(checkpoint, folder / "checkpoints" / "latest.ckpt")
    played = ["CKPT", "--simulator", str(GROVE), "--env", "max_steps=2", "--scenes", "1", "--json", "OUT"]
    other = tmp_path / "other.ckpt"
    write_checkpoint(
        other, cfg=OmegaConf.create(vpt_factory.config()),
        state_dicts={"model": vpt_factory.tiny_policy(seed=2).state_dict()}, pickles={},
    )  # fmt: skip
    assert run("evaluate_closed_loop", shlex.join(played), {"CKPT": other, "OUT": folder / "closed_loop.json"}) == 0
    places = {"RUN": folder, "OUT": tmp_path / "out"}
    run("doctor", "--run RUN --json OUT.json", places)
    run("report", "--run RUN --out OUT.html", places)
    groups = json.loads((tmp_path / "out.json").read_text())["groups"].values()
    shown = {finding["command"] for group in groups for finding in group}
    shown |= {
        html.unescape(code) for code in re.findall(r"<code[^>]*>(.*?)</code>", (tmp_path / "out.html").read_text())
    }
    called = [found for line in shown if (found := script_called(shlex.split(line))) is not None]
    assert {script for script, _ in called} >= {"train", "evaluate_closed_loop"}
    for script, arguments in called:
        if script == "train":
            assert f"--config-name={name}" in checked_arguments(arguments)
        else:
            assert refusal(script, list(arguments)) is None
        if script == "evaluate_closed_loop":
            assert str(GROVE) in arguments
