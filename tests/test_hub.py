"""Reading from repositories of a hub: a local stand-in on 127.0.0.1, and everything that goes wrong with it."""

from __future__ import annotations

import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from adapt_factory import policy_cfg, save_checkpoint
from hostile.assembling import Calls
from hub_server import COMMITS, TOKEN, Hub, hub_server
from omegaconf import OmegaConf

import diffusion_policy.hub as hub_module
from diffusion_policy.adapt.files import apply_file, open_target, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.errors import PathError, WorkspaceError
from diffusion_policy.hub import address_of, local_copy, pinned
from diffusion_policy.paths import as_path
from diffusion_policy.run_folder import LATEST, LOG_NAME
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.storage import file_sha256
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

CHECKPOINT = "hf://lab/arm/weights/pose.ckpt"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "pose.ckpt"
    save_checkpoint(path, policy_cfg(POSE_GRIPPER))
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bytes) -> Iterator[Hub]:
    """A hub with one public checkpoint; the caches of this process and user are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub_module._commit.cache_clear()
    with hub_server() as server:
        server.repository("models/lab/arm", {"weights/pose.ckpt": weights})
        yield server


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A dataset as a zip archive."""
    folder = tmp_path_factory.mktemp("packed")
    with zipfile.ZipFile(folder / "set.zarr.zip", "w") as archive:
        for name, content in as_files(tiny_run.write_dataset(folder / "set.zarr")).items():
            archive.writestr(name.removeprefix("set.zarr/"), content)
    return (folder / "set.zarr.zip").read_bytes()


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def test_a_checkpoint_is_read_at_a_commit_that_is_kept(hub: Hub, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        read = read_checkpoint(CHECKPOINT)
    assert read.cfg.task.name == "tiny"
    assert f"main is read at commit {COMMITS[0]}" in caplog.text
    assert address_of(read.path) == f"hf://lab/arm@{COMMITS[0]}/weights/pose.ckpt"
    before = len(hub.requests)
    hub.repositories["models/lab/arm"].branches["main"] = COMMITS[1]  # it moves, with nothing at the new commit
    assert inspect_file(CHECKPOINT).path == read.path
    assert all("resolve" not in path for _, path in hub.requests[before:]), "copied once"
    apply_file(CHECKPOINT, open_target(read.path), rules_of([]), tmp_path / "new.ckpt")
    source = json.loads((tmp_path / "new.ckpt.ledger.json").read_text())["source"]
    assert source["address"] == f"hf://lab/arm@{COMMITS[0]}/weights/pose.ckpt"
    adaptation = read_checkpoint(tmp_path / "new.ckpt").provenance["adaptation"]  # type: ignore[index]
    assert adaptation["source"]["address"] == source["address"]


@pytest.mark.parametrize("revision", ["v1", COMMITS[1], "refs/pr/3"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, weights: bytes, revision: str) -> None:
    found = hub.repositories["models/lab/arm"]
    found.branches |= {"v1": COMMITS[1], "refs/pr/3": COMMITS[1]}
    found.files[COMMITS[1]]["pose.ckpt"] = weights
    assert pinned(f"hf://lab/arm@{revision}/pose.ckpt") == f"hf://lab/arm@{COMMITS[1]}/pose.ckpt"
    assert local_copy(f"hf://lab/arm@{revision}/pose.ckpt").read_bytes() == weights


def test_training_starts_from_a_checkpoint_of_a_hub(hub: Hub, tmp_path: Path) -> None:
    from diffusion_policy.workspace.start import decide_start

    cfg = OmegaConf.create({"training": {"resume": True}, "pretrained": {"path": CHECKPOINT, "load_weights": True}})
    start = decide_start(cfg, tmp_path)
    assert address_of(start.path) == f"hf://lab/arm@{COMMITS[0]}/weights/pose.ckpt"  # type: ignore[arg-type]


def as_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder as a repository's, under the folder's name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in files}


def test_a_run_keeps_the_commits_that_it_read(hub: Hub, tmp_path: Path, packed: bytes) -> None:
    demos = hub.repository("datasets/lab/demos", {"set.zarr.zip": packed})
    demos.files[COMMITS[1]]["set.zarr.zip"] = packed
    dataset, checkpoint = (f"hf://datasets/lab/demos@{COMMITS[0]}/set.zarr.zip", f"hf://lab/arm@{COMMITS[0]}/run.ckpt")
    cfg = tiny_run.settings(tmp_path, "task.dataset_path=hf://datasets/lab/demos/set.zarr.zip", "training.num_epochs=1",
                            "training.max_train_steps=1", "training.max_val_steps=1", "training.sample_every=0",
                            "pretrained.path=hf://lab/arm/run.ckpt")  # fmt: skip
    cfg.task.shape_meta = OmegaConf.to_container(cfg.task.shape_meta, resolve=True)
    save_checkpoint(tmp_path / "run.ckpt", cfg)
    hub.repositories["models/lab/arm"].files[COMMITS[0]]["run.ckpt"] = (tmp_path / "run.ckpt").read_bytes()
    run = tmp_path / "run"
    TrainDiffusionTransformerHybridWorkspace(cfg, run).run()
    kept: Any = read_checkpoint(run / "checkpoints" / LATEST).provenance
    assert kept["dataset_addresses"] == [dataset]
    assert kept["pretrained"]["address"] == kept["start"]["address"] == checkpoint
    first_line = read_metrics(run / LOG_NAME)[0]
    assert (first_line["start_address"], first_line["dataset_addresses"]) == (checkpoint, [dataset])
    demos.branches["main"] = COMMITS[1]
    hub_module._commit.cache_clear()  # as in a new process
    cfg.training.resume = True
    with pytest.raises(TrainingError, match=rf"has read {dataset}; .*@{COMMITS[1]}/.*task\.dataset_path='{dataset}'"):
        TrainDiffusionTransformerHybridWorkspace(cfg, run).run()


def test_a_checkpoint_of_a_hub_is_served_and_named_with_its_commit(hub: Hub) -> None:
    about = PolicyEngine.open(CHECKPOINT, EngineSettings(device="cpu")).describe()
    assert about["checkpoint"] == f"hf://lab/arm@{COMMITS[0]}/weights/pose.ckpt"
    assert about["checkpoint_sha256"] == file_sha256(local_copy(CHECKPOINT))


@pytest.mark.parametrize("name", ["set.zarr", "set.zarr.zip"])
def test_a_dataset_is_read_where_it_is(hub: Hub, tmp_path: Path, packed: bytes, name: str) -> None:
    local = tiny_run.write_dataset(tmp_path / "set.zarr")
    files = {name: packed} if name.endswith(".zip") else as_files(local)
    hub.repository("datasets/lab/demos", files)
    there, here = ReplayBuffer.open(f"hf://datasets/lab/demos/{name}"), ReplayBuffer.open(local)
    assert (there["action"][:] == here["action"][:]).all()
    assert address_of(there.where) == f"hf://datasets/lab/demos@{COMMITS[0]}/{name}"


def test_nothing_is_uploaded(hub: Hub) -> None:
    found = as_path("hf://lab/arm/new.zarr")
    for write in (
        lambda: found.fs.open(found.path, "wb"),  # type: ignore[attr-defined]
        lambda: found.fs.pipe_file(found.path, b"x"),  # type: ignore[attr-defined]
        lambda: found.fs.put_file("/etc/hostname", found.path),  # type: ignore[attr-defined]
        lambda: found.fs.rm(found.path),  # type: ignore[attr-defined]
    ):
        with pytest.raises(
            PathError, match=r"a hub is only read, nothing is uploaded; .*private repository: hf upload"
        ):
            write()
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD", "POST"}
    assert all("paths-info" in path for method, path in hub.requests if method == "POST")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such repository": ("hf://lab/nothing/a.ckpt", {}, "there is no such repository, or it is private"),
    "no such revision": ("hf://lab/arm@other/weights/pose.ckpt", {}, "has no such revision"),
    "no such file": ("hf://lab/arm/weights/other.ckpt", {}, "there is no such file in the repository"),
    "private": (CHECKPOINT, {"private": True}, r"refuses access \(401\).*`hf auth login`.*`huggingface-cli login`"),
    "cut": (CHECKPOINT, {"cut_at": 5000}, "broke the connection|bytes arrived"),
    "longer than stated": (CHECKPOINT, {"wrong_size": -7}, "more than its|bytes arrived"),
    "shorter than stated": (CHECKPOINT, {"wrong_size": 7}, "bytes arrived"),
    "larger than the disk": (CHECKPOINT, {"wrong_size": 2**60}, "GB, and .* has"),
    "other bytes": (CHECKPOINT, {"wrong_hash": True}, "its SHA-256 differs from"),
    "no address": ("hf://lab", {}, "expected hf://USER/REPO/FILE"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(hub: Hub, tmp_path: Path, name: str) -> None:
    address, faults, words = REFUSED[name]
    for fault, value in faults.items():
        setattr(hub.repositories["models/lab/arm"], fault, value)
    for opens in (read_checkpoint, inspect_file):
        with pytest.raises(PathError, match=words) as caught:
            opens(address)
        assert "\n" not in str(caught.value)
        assert "lab" in str(caught.value)
    assert not left_over(tmp_path / "cache")


def test_a_token_opens_what_is_private(hub: Hub, monkeypatch: pytest.MonkeyPatch, weights: bytes) -> None:
    hub.repositories["models/lab/arm"].private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert local_copy(CHECKPOINT).read_bytes() == weights


def test_a_missing_hub(hub: Hub) -> None:
    hub.repositories.clear()
    with pytest.raises(PathError, match="there is no such repository"):
        as_path("hf://datasets/lab/demos/set.zarr")


def test_a_name_that_leads_out_of_the_repository(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["models/lab/arm"].escape = "../../../../outside.safetensors"
    with pytest.raises(PathError):
        local_copy("hf://lab/arm/weights")
    assert not list(tmp_path.rglob("outside*"))


def test_a_file_of_a_hub_is_as_untrusted_as_any(hub: Hub, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"cfg": {}, "state_dicts": {"model": Calls(os.system, f"touch {canary}")}}, tmp_path / "bad.ckpt")
    hub.repository("models/lab/bad", {"bad.ckpt": (tmp_path / "bad.ckpt").read_bytes()})
    with pytest.raises(WorkspaceError, match=r"asks for posix\.system"):
        read_checkpoint("hf://lab/bad/bad.ckpt")
    assert not canary.exists()


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_module._read_only.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PathError, match=r"needs a package .*pip install .*hub"):
        read_checkpoint(CHECKPOINT)
    hub_module._read_only.cache_clear()
