"""The command: what it prints and writes, what it refuses, and how it resumes after Ctrl-C."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import vpt_factory
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.env_runner.tabletop_runner import SETTINGS
from diffusion_policy.installation import CONFIG

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("closed_loop_script", REPOSITORY / "scripts/evaluate_closed_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("closed_loop") / "latest.ckpt")


@pytest.fixture
def quick(tmp_path: Path) -> list[str]:
    """Arguments that make an evaluation small: short episodes, small frames, two denoising steps."""
    settings = SETTINGS.read_text().replace("image_size: [320, 180]", "image_size: [64, 36]\n  max_steps: 12")
    (tmp_path / "small.yaml").write_text(settings)
    small = ["--simulator", str(tmp_path / "small.yaml"), "--referee", "kinematic", "--steps", "2", "--threads", "1"]
    return [*small, "--scenes", "3"]


def test_it_measures_draws_and_films(
    script: ModuleType, checkpoint: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--json", str(out / "a.json"), "--output", str(out), "--picture", "--video", "1"]
    assert script.main([str(checkpoint), *quick, *words]) == 0
    printed = capsys.readouterr().out
    assert "success     0 of 3 (0-56 %)" in printed
    assert "referee kinematic" in printed
    document = json.loads((out / "a.json").read_text())
    assert (document["referee"], document["n_action_steps"], document["success"]["count"]) == ("kinematic", 4, 0)
    assert {path.suffix for path in out.iterdir()} == {".json", ".png", ".mp4"}
    assert script.main([str(checkpoint), *quick, "--compare", str(out / "a.json"), "--json", str(out / "b.json")]) == 0
    assert json.loads((out / "b.json").read_text())["comparison"]["neither"] == 3


def test_ctrl_c_keeps_what_has_ended_and_resume_continues(
    script: ModuleType,
    checkpoint: Path,
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusion_policy.closed_loop import evaluation

    monkeypatch.setattr(evaluation, "_AT_ONCE", 1)
    original, out = evaluation.roll_out, tmp_path / "kept.json"

    def interrupted(*arguments, **options):
        episodes = original(*arguments, **options)
        yield next(episodes)
        raise KeyboardInterrupt

    words = [str(checkpoint), *quick, "--json", str(out)]
    monkeypatch.setattr(evaluation, "roll_out", interrupted)
    assert script.main(words) == 130
    output = capsys.readouterr().err
    assert f"1 of 3 scenes are kept in {out}; go on with: " in output
    assert output.rstrip().endswith("--resume")
    assert json.loads(out.read_text())["interrupted"]
    monkeypatch.setattr(evaluation, "roll_out", original)
    assert script.main([*words, "--resume"]) == 0
    resumed = out.read_text()
    assert script.main(words) == 0
    assert out.read_text() == resumed


@pytest.fixture(scope="module")
def vpt_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as released: nothing but tensors."""
    path = tmp_path_factory.mktemp("vpt") / "tiny.weights"
    tensors = vpt_factory.tiny_policy().state_dict().items()
    torch.save({name: tensor for name, tensor in tensors if not name.startswith("normalizer.")}, path)
    return path


@pytest.fixture
def grove() -> list[str]:
    short = ["--env", "max_steps=3", "--scenes", "2", "--threads", "1", "--device", "auto"]
    return ["--simulator", str(CONFIG / "simulator" / "grove.yaml"), *short]


def test_vpt_s_weights_play_in_the_grove(
    script: ModuleType, vpt_weights: Path, grove: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    words = [str(vpt_weights), *grove, "--output", str(tmp_path), "--json"]
    assert script.main([*words, str(one), "--picture", "--video", "1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "success 0 of 2 (0-66 %)" in printed
    assert "grove, log; asked at every step; actions drawn, model; policy in process" in printed
    assert "picture: left out, since this simulator reports no position" in printed
    assert "grasped" not in printed
    document = json.loads(one.read_text())
    assert (document["actions"], document["scheduler"], document["n_action_steps"]) == ("drawn", "none", 1)
    assert document["simulator"]["env"]["max_steps"] == 3
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".mp4"]
    document["scenes"] = document["scenes"][:1]
    other.write_text(json.dumps(document))
    assert script.main([*words, str(other), "--resume", "--compare", str(one)]) == 0
    assert json.loads(other.read_text())["scenes"] == json.loads(one.read_text())["scenes"]
    assert script.main([*words, str(one), "--resume", "--greedy"]) == 2
    assert "was made with another actions: 'drawn'" in capsys.readouterr().err


def test_a_checkpoint_without_an_average_is_judged_by_its_live_weights(
    script: ModuleType, checkpoint: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = read_checkpoint(checkpoint)
    state_dicts = {"model": opened.state_dicts["model"]}
    live = tmp_path / "live.ckpt"
    write_checkpoint(live, cfg=opened.cfg, state_dicts=state_dicts, pickles=opened.pickles)
    assert script.main([str(live), *quick, "--scenes", "1"]) == 0
    assert "ddim in 2 steps, model;" in " ".join(capsys.readouterr().out.split())
    assert script.main([str(live), *quick, "--scenes", "1", "--weights", "ema_model"]) == 2
    assert "it holds no 'ema_model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--through-server"], "remembers the frames since its episode began"),
        (["--env", "task=juggle"], "no task 'juggle'"),
        (["--env", "max_steps"], "--env is 'max_steps'; expected KEY=VALUE"),
        (["--env", "game=[", "--task", "log"], "--env game=[: the value cannot be read"),
        (["--env", "game=minedojo"], "MineDojo is not installed"),
    ],
)
def test_what_vpt_cannot_do_is_refused_in_one_line(
    script: ModuleType, vpt_weights: Path, grove: list[str], words: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    through_server = ["--set", "engine.weights=model"] if "--through-server" in words else []
    assert script.main([str(vpt_weights), *grove, *words, *through_server]) == 2
    output = capsys.readouterr().err.strip()
    assert message in output
    assert "\n" not in output


def test_only_probabilities_can_be_greedy(
    script: ModuleType, checkpoint: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(checkpoint), *quick, "--greedy"]) == 2
    assert "--greedy is for policies that give probabilities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scenes", "0"], "--scenes is 0; expected 1 or more"),
        (["--resume"], "--resume needs --json OUT"),
        (["--resume", "--json", "absent.json"], "absent.json: cannot be read"),
        (["--set", "guard.max_step_m=1"], "--set is for the server; add --through-server"),
        (["--through-server", "--set", "guard.max_step=1"], "guard.max_step"),
        (["--referee", "umpire"], "no referee 'umpire'; expected one of physics, kinematic"),
        (["--task", "juggle"], "no task 'juggle'"),
        (["--n-action-steps", "99"], "n_action_steps is 99; expected 1 to the 4 of a chunk"),
        (["--latency", "-5"], "latency_s is -0.005"),
        (["--camera-size", "0", "9"], "image_size is (0, 9)"),
        (["--compare", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--compare", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--simulator", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_it_refuses_in_one_line(
    script: ModuleType,
    checkpoint: Path,
    quick: list[str],
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script.main([str(checkpoint), *quick, *words]) == 2
    output = capsys.readouterr().err.strip()
    assert output.startswith("error: ")
    assert message in output
    assert "\n" not in output


def test_an_invalid_checkpoint_is_refused(
    script: ModuleType, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    for path in (tmp_path / "odd.ckpt", tmp_path / "absent.ckpt", tmp_path):
        assert script.main([str(path), *quick]) == 2
        assert str(path) in capsys.readouterr().err
