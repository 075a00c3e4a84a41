"""The new file and its ledger appear once everything has been checked; an earlier end leaves neither."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_factory import policy_cfg, save_checkpoint

from diffusion_policy import storage
from diffusion_policy.adapt import AdaptError, apply
from diffusion_policy.adapt.files import apply_file, open_target, rules_of
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.tensor_file import saving

Work = Callable[..., object]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A policy with a sixteenth of the usual encoder, live weights only."""
    cfg = policy_cfg(encoder_width=16, n_layer=1, crop_shape=[32, 32])
    return save_checkpoint(tmp_path_factory.mktemp("small") / "small.ckpt", cfg, parts=("model",))


@pytest.fixture(params=["checkpoint", "weights"])
def work(request: pytest.FixtureRequest, small: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Each kind of file: makes `out` from its source, with the arguments common to the commands."""
    if request.param == "checkpoint":
        return lambda out, **options: grow_7d_to_8d(small.path, out, **options)
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"a": torch.ones(3)}, folder / "old.pt")
    (folder / "names.json").write_text('{"a": [3]}')
    target = open_target(folder / "names.json")
    return lambda out, **options: apply_file(folder / "old.pt", target, rules_of([]), out, **options)


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, interrupted as soon as it is done."""

    def then_interrupted(*words: Any, **options: Any) -> Any:
        function(*words, **options)
        raise KeyboardInterrupt

    return then_interrupted


# Where the work may be interrupted before the new file is in place.
MOMENTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "before writing": (saving.torch, "save", interrupted),
    "written, not checked": (saving, "read_torch_zip", after(saving.read_torch_zip)),
    "while it is checked": (torch, "equal", interrupted),
    "before the ledger": (apply, "write_json", interrupted),
    "after the ledger": (apply, "write_json", after(apply.write_json)),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("moment", "former"), [*((moment, True) for moment in MOMENTS), ("after the ledger", False)])
def test_an_interruption_leaves_what_was_there(
    work: Work, moment: str, former: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new.pt"
    if former:
        out.write_bytes(b"former")
        Path(f"{out}.ledger.json").write_bytes(b"former ledger")
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*MOMENTS[moment])
        with pytest.raises(KeyboardInterrupt):
            work(out, overwrite=former)
    assert contents(tmp_path) == before


def test_an_interruption_after_the_new_file_is_in_place_keeps_both(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_in_place(folder: Path) -> None:
        if (folder / "new.pt").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_flush_folder", interrupted_in_place)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path / "new.pt")
    assert sorted(contents(tmp_path)) == ["new.pt", "new.pt.ledger.json"]


def test_a_ledger_that_cannot_be_written_keeps_the_file_out(work: Work, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    with pytest.raises(WorkspaceError, match=r"ledger\.json: cannot be written"):
        work(tmp_path / "new.pt", ledger_path=tmp_path / "file" / "ledger.json")
    assert list(contents(tmp_path)) == ["file"]


def test_a_disk_that_refuses_the_new_file_takes_the_ledger_back(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "new.pt":
            raise OSError(28, "No space left on device")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(WorkspaceError, match=r"new\.pt: could not be written \(No space left on device\)"):
        work(tmp_path / "new.pt")
    assert contents(tmp_path) == {}


def test_a_file_that_differs_from_the_plan_is_not_put_in_place(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: False)
    with pytest.raises(AdaptError, match="after writing"):
        work(tmp_path / "new.pt")
    assert contents(tmp_path) == {}


def test_a_failed_proof_leaves_nothing(small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_policy.adapt.proof.TOLERANCE", -1.0)
    monkeypatch.setattr("diffusion_policy.adapt.proof.prove.__defaults__", (-1.0, ()))
    with pytest.raises(AdaptError, match="nothing was written: model: 7 shared action dimensions"):
        grow_7d_to_8d(small.path, tmp_path / "new.ckpt")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("ledger", ["source", "out"])
def test_the_ledger_replaces_neither_its_source_nor_the_new_file(
    work: Work, small: Checkpoint, tmp_path: Path, ledger: str
) -> None:
    copy = tmp_path / "source.ckpt"
    copy.write_bytes(small.path.read_bytes())
    before = contents(tmp_path)
    if ledger == "source":
        with pytest.raises(AdaptError, match="is the source itself"):
            grow_7d_to_8d(copy, tmp_path / "new.ckpt", ledger_path=copy)
    else:
        with pytest.raises(AdaptError, match="both the new file and its ledger"):
            work(tmp_path / "new.pt", ledger_path=tmp_path / "new.pt")
    assert contents(tmp_path) == before
