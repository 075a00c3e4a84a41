"""The public PushT set, from its archive to a policy, by the commands in docs/data.md as written."""

import json
import runpy
import shlex
from pathlib import Path

import pytest
import tiny_run
import zarr_factory
from dataset_factory import pack
from hydra.utils import get_class

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.recorded_inference import open_recorded
from diffusion_policy.training_config import compose_arguments

# Sizes, and a machine without GPU; frames, crop and task are those of the page.
SMALL = (
    *(word for word in tiny_run.OVERRIDES if not word.startswith(("task.", "policy.crop_shape"))),
    "training.num_epochs=1",
    "training.max_train_steps=2",
    "training.sample_every=1",
)


def documented(repository: Path, script: str) -> list[str]:
    """The arguments of a script in the page's lines about PushT."""
    page = (repository / "docs" / "data.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"    python {script} ") and "pusht" in line]
    return shlex.split(line)[2:]


def test_the_documented_commands_train(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert, train = (documented(repository, script) for script in ("scripts/convert_dataset.py", "train.py"))
    folder = zarr_factory.write_pusht(tmp_path / "replay.zarr", (20, 18, 22))
    pack(folder, tmp_path / convert[convert.index("--input") + 1], top="pusht/pusht_cchi_v7_replay.zarr")
    assert runpy.run_path(str(repository / "scripts" / "convert_dataset.py"))["main"](convert) == 0
    cfg = compose_arguments([*train, *SMALL])
    assert get_class(cfg._target_)(cfg, tmp_path / "run").run() is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs.json.txt").read_text().splitlines()]
    assert lines[-1]["global_step"] == 2
    assert "val_loss" in lines[-1]
    assert not [key for key in lines[-1] if "_error_" in key or "gripper" in key], "nothing but its loss is measured"
    with pytest.raises(WorkspaceError, match="expected names of positions, rotations, joints or grippers"):
        open_recorded(tmp_path / "run" / "checkpoints" / "latest.ckpt", tmp_path / "data" / "zarr" / "pusht.zarr")
