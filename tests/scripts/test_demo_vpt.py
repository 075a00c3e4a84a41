"""The demo of VPT: its recipe, the weights that ship, and every step run at the smallest size."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusion_policy.policy.vpt_policy import VPTAgent

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = REPOSITORY / "data" / "pretrained" / "grove_vpt.weights"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo, pretrain = script("demo_vpt"), script("pretrain_demo_vpt")


def test_each_step_reads_what_an_earlier_one_wrote() -> None:
    steps = demo.recipe(Path("work"), seed=3, quick=False)
    words = [" ".join(step.words) for step in steps]
    assert all((REPOSITORY / step.words[0]).is_file() for step in steps)
    assert [str(SHIPPED) in line for line in words] == [True, True, False, False, True, False]
    assert "--output work/recordings" in words[2]
    assert "--input work/recordings --output work/log.zarr" in words[3]
    assert f"pretrained.path={SHIPPED} hydra.run.dir=work/clone training.seed=3" in words[4]
    assert "work/clone/checkpoints/latest.ckpt" in words[5]
    assert "--compare work/zero_shot.json" in words[5]
    assert not any("max_train_steps" in line for line in words)


def test_both_policies_play_the_same_episodes() -> None:
    played = [step.words for step in demo.recipe(Path("work"), seed=0, quick=False) if step.script.startswith("eval")]
    alike = [words[2 : words.index("--json")] for words in played]
    assert alike[0] == alike[1]
    assert "--seed" not in alike[0]


def test_the_shipped_weights_are_small_and_say_where_they_come_from() -> None:
    assert SHIPPED.stat().st_size < 6_000_000
    origin = json.loads(SHIPPED.with_name(f"{SHIPPED.name}.json").read_text())
    steps = pretrain.recipe(Path("WORKDIR"), episodes=100, seed=7, epochs=10)
    assert origin["commands"] == [" ".join(step.words) for step in steps]
    agent = VPTAgent.from_weights(SHIPPED)
    assert agent.loaded is not None
    assert (agent.loaded.dropped, agent.policy.settings.hidsize) == ((), 128)
    assert {parameter.dtype for parameter in agent.policy.parameters()} == {torch.float32}
    assert "log" not in pretrain.TASKS, "the demo's task is new to it"


@pytest.mark.exhaustive  # test_interruptions runs its first steps; this one takes half a minute
def test_the_demo_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--quick", "--workdir", str(tmp_path / "work")]) == 0
    shown = capsys.readouterr().out
    assert "as loaded" in shown
    assert "of 2" in shown
    assert (tmp_path / "work" / "cloned.json").is_file()
