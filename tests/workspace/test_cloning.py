"""Behavior cloning with VPT: the order of sequences, the update, the memory, resuming, the pull, and refusals."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vpt_factory
from omegaconf import OmegaConf
from same_runs import assert_same_runs
from torch.nn import functional
from vpt_factory import actions, frames, tiny_policy

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.minecraft.actions import BUTTONS, Factored, quantize, to_joint
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy, load_weights, settings_of
from diffusion_policy.policy.vpt_weights import RELEASED, write_weights
from diffusion_policy.report.comparison import compare
from diffusion_policy.report.report_page import Sources, make_report
from diffusion_policy.tensor_file import open_tensor_file
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.losses import NoiseSampler
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.optimization import Stages, make_optimizer, roles_of
from diffusion_policy.workspace.processes import join_processes
from diffusion_policy.workspace.schedule import make_schedule
from diffusion_policy.workspace.sequence_batches import SequenceOrder
from diffusion_policy.workspace.sequence_loss import SequenceLoss
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)
from diffusion_policy.workspace.updates import Updates

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vpt"
LATEST = Path("checkpoints", "latest.ckpt")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vpt_factory.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrained") / "tiny.weights"
    write_weights(tiny_policy(5), path)
    return path


def train(dataset: Path, folder: Path, *overrides: str) -> TrainDiffusionTransformerHybridWorkspace:
    run = TrainDiffusionTransformerHybridWorkspace(vpt_factory.settings(dataset, *overrides), folder)
    run.run()
    return run


def test_loader_workers_end_with_the_run(dataset: Path, tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    train(dataset, tmp_path, "training.num_epochs=1", "training.max_train_steps=1", "dataloader.num_workers=1")
    assert set(multiprocessing.active_children()) <= before


# ---- the order of sequences ----


@pytest.mark.parametrize(("rows", "horizon"), [(1, 4), (2, 4), (3, 5), (2, 100), (9, 3)])
def test_each_row_continues_where_it_ended_and_each_frame_comes_once(rows: int, horizon: int) -> None:
    episodes = [(0, 9), (9, 15), (15, 26), (26, 33), (33, 38)]
    order = SequenceOrder(episodes, rows, horizon, seed=1, shuffle=True)
    lengths = set()
    orders = []
    for epoch in range(3):
        chunks = order.chunks(epoch)
        lengths.add(len(chunks))
        seen = [step for chunk in chunks for step in chunk.steps[chunk.valid].tolist()]
        assert sorted(seen) == list(range(38))
        streams = [np.concatenate([getattr(chunk, part) for chunk in chunks], axis=1) for part in chunks[0]._fields]
        for steps, first, valid in zip(*streams, strict=True):
            assert set(steps[first]) <= {start for start, _ in episodes}
            assert first[0]
            assert not first[~valid].any()
            goes_on = np.diff(steps) == 1
            assert (goes_on | first[1:])[valid[1:]].all(), "a frame follows the one before, or starts an episode"
            assert np.array_equal(valid, np.arange(len(valid)) < valid.sum()), "padding is at the end"
        orders.append(seen)
    assert lengths == {len(order)}
    assert orders[0] != orders[1] or rows >= len(episodes)
    again = SequenceOrder(episodes, rows, horizon, seed=1, shuffle=True)
    assert all(np.array_equal(a.steps, b.steps) for a, b in zip(order.chunks(2), again.chunks(2), strict=True))


# ---- one update ----


def upstream_update(
    policy: MinecraftAgentPolicy, chunks: list[dict[str, Any]], lr: float, decay: float
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Upstream's update written out in plain torch: gradients stop at the chunk, and L2 is in the gradient."""
    moments: dict[str, list[torch.Tensor]] = {}
    state, losses = policy.initial_state(len(chunks[0]["first"])), []
    for count, chunk in enumerate(chunks, start=1):
        for parameter in policy.parameters():
            parameter.grad = None
        (found, _, _), state = policy({"img": chunk["img"]}, chunk["first"], state)
        state = [type(block)(*(part.detach() for part in block)) for block in state]
        loss = torch.zeros(())
        for name, classes in chunk["classes"].items():
            flat = found[name].flatten(0, 2)
            loss = loss + functional.nll_loss(flat, torch.from_numpy(classes).flatten())
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if parameter.grad is None:
                    continue
                gradient = parameter.grad + decay * parameter
                first, second = moments.setdefault(name, [torch.zeros_like(parameter) for _ in range(2)])
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                step = lr * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
                parameter -= step
    return losses, dict(policy.state_dict())


def chunks_of(side: int, n: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(4)
    made = []
    for number in range(n):
        images = torch.randint(0, 256, (2, 4, 3, side, side), dtype=torch.uint8, generator=generator)
        first = torch.zeros(2, 4, dtype=torch.bool)
        first[:, 0] = number == 0
        first[1, 2] = number == 1
        done = actions(2, 4, seed=number)
        split = len(BUTTONS)
        joint = to_joint(Factored(done[..., :split].numpy().astype(int), quantize(done[..., split:].numpy())))
        made.append(
            {"img": images.permute(0, 1, 3, 4, 2), "pov": images, "first": first, "action": done, "classes": joint}
        )
    return made


def updates_of(policy: VPTImagePolicy, cfg: Any, total: int) -> Updates:
    roles = roles_of(policy, None)
    optimizer = make_optimizer(policy, cfg.optimizer, cfg.learning_rates, roles)
    stages, schedule = Stages((), policy, roles, optimizer), make_schedule(optimizer, cfg.training, total)
    with join_processes("cpu") as processes:
        loss = SequenceLoss(policy, cfg, 2)
        return Updates(loss, optimizer, schedule, stages, None, NoiseSampler(policy, 0), cfg.training, processes)


def both_update(ours: VPTImagePolicy, theirs: MinecraftAgentPolicy, side: int) -> None:
    cfg = vpt_factory.settings(Path("absent"), "optimizer.lr=1.81e-4", "training.max_gradient_norm=null")
    chunks = chunks_of(side, 3)
    expected, state = upstream_update(theirs, chunks, lr=1.81e-4, decay=0.039428)
    updates, valid = updates_of(ours.train(), cfg, 3), torch.ones(2, 4, dtype=torch.bool)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for number, chunk in enumerate(chunks):
        data = {"obs": {"pov": chunk["pov"]}, "action": chunk["action"], "first": chunk["first"], "valid": valid}
        found = updates.make([Batch(data, list(range(8)), range(8), number)], 0, number)
        assert float(found.loss) == pytest.approx(expected[number], rel=1e-5)
    for name, value in state.items():
        after = ours.state_dict()[name]
        torch.testing.assert_close(after, value, atol=2e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal(after, before[name]) == name.startswith("value_head."), name


def test_three_updates_equal_upstreams_definition() -> None:
    """Loss, gradients, Adam with L2, the memory across chunks; no step changes a number by more than 1.81e-4."""
    ours = tiny_policy(3)
    theirs = MinecraftAgentPolicy(ours.settings)
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name.startswith(RELEASED)})
    both_update(ours, theirs, vpt_factory.SIDE)


@pytest.mark.skipif(not SHARED.is_dir(), reason="weights that upstream wrote are not on this machine")
def test_three_updates_equal_upstreams_definition_on_its_weights() -> None:
    path = SHARED / "tiny.weights"
    theirs = MinecraftAgentPolicy(settings_of({n: i.shape for n, i in open_tensor_file(path).tensors.items()}))
    load_weights(theirs, path)
    ours = load_policy(path, "model")
    assert isinstance(ours, VPTImagePolicy)
    both_update(ours, theirs, 128)


def test_long_gradients_are_clipped_and_the_norm_before_is_reported() -> None:
    norms = {}
    for most in ("null", "0.001"):
        policy = tiny_policy(3).train()
        # Plain SGD would show it in the weights; Adam shows it in its first moment.
        cfg = vpt_factory.settings(Path("absent"), f"training.max_gradient_norm={most}", "optimizer.weight_decay=0")
        updates, chunk = updates_of(policy, cfg, 1), chunks_of(vpt_factory.SIDE, 1)[0]
        data = {"obs": {"pov": chunk["pov"]}, "action": chunk["action"], "first": chunk["first"]}
        found = updates.make([Batch({**data, "valid": torch.ones(2, 4, dtype=torch.bool)}, [0], range(1), 0)], 0, 0)
        moments = [state["exp_avg"].flatten() for state in updates.optimizer.state.values()]
        norms[most] = (float(found.norm), 10 * float(torch.cat(moments).norm()))
    assert norms["null"][0] == norms["0.001"][0] > 1
    assert norms["null"][1] == pytest.approx(norms["null"][0], rel=1e-4)
    assert norms["0.001"][1] == pytest.approx(0.001, rel=1e-3)


# ---- the memory ----


def test_the_loss_of_parts_with_the_memory_carried_is_that_of_one_long_chunk() -> None:
    policy, seen, done = tiny_policy(), frames(2, 12)["pov"], actions(2, 12)
    cfg = vpt_factory.settings(Path("absent"))
    first, valid = torch.zeros(2, 12, dtype=torch.bool), torch.ones(2, 12, dtype=torch.bool)
    first[:, 0] = first[1, 7] = True

    def mean(length: int) -> float:
        loss, parts = SequenceLoss(policy, cfg, 2), range(0, 12, length)
        cuts = [slice(start, start + length) for start in parts]
        losses = [
            loss(
                {"obs": {"pov": seen[:, c]}, "action": done[:, c], "first": first[:, c], "valid": valid[:, c]},
                {},
                valid,
            )
            for c in cuts
        ]
        assert not any(part.requires_grad for part in loss.memory["policy"].values())
        return float(torch.stack(losses).mean().detach())

    whole = mean(12)
    assert mean(4) == pytest.approx(whole, abs=1e-4)
    assert mean(3) == pytest.approx(whole, abs=1e-4)


def test_null_actions_weigh_what_the_setting_says() -> None:
    policy, seen = tiny_policy(), frames(1, 4)
    first, valid = torch.tensor([[True, False, False, False]]), torch.ones(1, 4, dtype=torch.bool)
    done = actions(1, 4)
    done[0, 1] = 0  # nothing pressed
    done[0, 2] = 0
    done[0, 2, -1] = 0.1  # a turn that rounds to none
    data = {"obs": seen, "action": done, "first": first, "valid": valid}
    found = {
        weight: float(SequenceLoss(policy, vpt_factory.settings(Path("a"), f"cloning.null_action_weight={weight}"), 1)(
            data, {}, valid
        ).detach())
        for weight in (0, 0.5, 1)
    }  # fmt: skip
    counted = {**data, "valid": torch.tensor([[True, False, False, True]])}
    loud = float(SequenceLoss(policy, vpt_factory.settings(Path("a")), 1)(counted, {}, valid).detach())
    assert found[0] == pytest.approx(loud * 2 / 4, rel=1e-5)
    assert found[0.5] == pytest.approx((found[0] + found[1]) / 2, rel=1e-5)


# ---- whole runs ----


class KilledError(RuntimeError):
    pass


@pytest.fixture(scope="module")
def straight(dataset: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    train(dataset, folder, *pulled(pretrained))
    return folder


def pulled(pretrained: Path) -> tuple[str, ...]:
    return (
        f"pretrained.path={pretrained}", "cloning.kl.weight=0.5", "cloning.kl.decay=0.9", "training.threads=1",
        "training.checkpoint_every_steps=2", "training.use_ema=true",
    )  # fmt: skip


@pytest.mark.parametrize("at", [3, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_a_run_that_ends_within_an_epoch_continues_as_if_nothing_had_happened(
    at: int, dataset: Path, pretrained: Path, straight: Path, tmp_path: Path
) -> None:
    class Ends(TrainDiffusionTransformerHybridWorkspace):
        def _count(self, metrics: Any) -> dict[str, Any]:
            if metrics.result.global_step == at:
                raise KilledError
            return super()._count(metrics)

    with pytest.raises(KilledError):
        Ends(vpt_factory.settings(dataset, *pulled(pretrained)), tmp_path).run()
    before = read_checkpoint(tmp_path / LATEST)
    assert before.pickles["global_step"] == at - 1
    assert before.run_state is not None
    assert before.run_state["memory"].keys() == {"policy", "reference"}
    train(dataset, tmp_path, *pulled(pretrained))
    assert_same_runs(tmp_path, straight)


def test_frames_in_memory_make_the_same_run(dataset: Path, pretrained: Path, straight: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, *pulled(pretrained), "training.cache=memory")
    assert_same_runs(tmp_path, straight)


def test_other_rows_are_not_resumed_within_an_epoch(dataset: Path, straight: Path, tmp_path: Path) -> None:
    overrides = (f"training.resume={straight}", "dataloader.batch_size=3", "training.num_epochs=3")
    with pytest.raises(TrainingError, match=r"memory in the checkpoint does not match this run's rows"):
        train(dataset, tmp_path, *overrides)


def test_held_out_episodes_are_measured_beside_policies_that_see_nothing(straight: Path) -> None:
    lines = read_metrics(straight / "logs.json.txt")
    assert lines[0]["start"] == "pretrained"
    assert {"train_loss_before_first_update", "val_loss_before_first_update"} <= lines[0].keys()
    last = lines[-1]
    for name in ("accuracy_buttons", "accuracy_camera", "accuracy_camera_yaw", "f1_attack", "f1"):
        assert {f"val_{name}", f"val_{name}_majority", f"val_{name}_previous"} <= last.keys(), name
    assert last["val_loss"] == pytest.approx(last["val_loss_buttons"] + last["val_loss_camera"])
    measured = read_checkpoint(straight / LATEST).provenance["measured"]  # type: ignore[index]
    assert measured["with"]["episodes"] == 2
    assert measured["figures"]["val_loss"] == last["val_loss"]


def test_its_page_and_its_comparison_have_the_held_out_actions(straight: Path, tmp_path: Path) -> None:
    _, page = make_report(Sources(run=straight))
    assert "always the most frequent" in page
    assert "accuracy_camera_yaw" in page
    shutil.copytree(straight, tmp_path / "again")
    comparison = compare([straight, tmp_path / "again"])
    best = min(line["val_loss"] for line in read_metrics(straight / "logs.json.txt") if "val_loss" in line)
    assert {score.val_loss for score in comparison.scores} == {best}


def test_a_run_opens_as_a_policy_and_starts_the_next(
    dataset: Path, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = read_checkpoint(straight / LATEST)
    assert checkpoint.deployed == "ema_model"
    policy = load_policy(checkpoint, "model")
    assert isinstance(policy, VPTImagePolicy)
    assert policy.predict_action(frames(1, 1))["action"].shape == (1, 1, 22)
    caplog.set_level(logging.INFO)
    run = train(dataset, tmp_path, f"pretrained.path={straight / LATEST}", "training.num_epochs=0")
    assert "start: pretrained" in caplog.text
    assert "grown 0 (0 new parameters), fresh 0" in caplog.text
    for name, value in policy.state_dict().items():
        if not name.startswith("normalizer."):
            assert torch.equal(run.model.state_dict()[name], value), name


def test_weights_files_with_a_second_value_head_start_a_run_and_say_so(
    dataset: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(pretrained, weights_only=True)
    extra = {f"aux_value_head.{number}": torch.zeros(2) for number in range(5)}
    torch.save({**state, **extra}, tmp_path / "a.weights")
    caplog.set_level(logging.INFO)
    train(dataset, tmp_path / "run", f"pretrained.path={tmp_path / 'a.weights'}", "training.num_epochs=0")
    assert "dropped 5 keys" in caplog.text
    assert "with sizes read from the shapes" in caplog.text


# ---- the pull ----


def test_the_pull_is_nothing_at_first_and_keeps_the_policy_near(
    dataset: Path, pretrained: Path, tmp_path: Path
) -> None:
    distance, first = {}, {}
    start = load_policy(pretrained, "model").state_dict()
    for weight in (0, 100):
        folder = tmp_path / str(weight)
        options = (
            "optimizer.lr=0.0005",
            "optimizer.weight_decay=0",
            "training.num_epochs=4",
            "training.val_every=null",
        )
        run = train(dataset, folder, f"pretrained.path={pretrained}", f"cloning.kl.weight={weight}", *options)
        first[weight] = read_metrics(folder / "logs.json.txt")[1]["train_loss"]
        found = run.model.state_dict()
        distance[weight] = _divergence(run.model, pretrained)
        assert not torch.equal(found["net.final_ln.weight"], start["net.final_ln.weight"])
    assert first[0] == first[100]
    assert distance[100] < 0.5 * distance[0]


def _divergence(model: Any, pretrained: Path) -> float:
    from diffusion_policy.policy.sequences import divergence

    before = load_policy(pretrained, "model")
    assert isinstance(before, VPTImagePolicy)
    seen, first = frames(2, 6, seed=9), torch.tensor([[True] + [False] * 5] * 2)
    with torch.no_grad():
        pair = [one.log_probabilities(seen, first, one.initial_memory(2))[0] for one in (before, model.eval())]
    return float(divergence(*pair).mean())


# ---- the trunk ----


def test_heads_learn_while_the_trunk_rests(dataset: Path, pretrained: Path, tmp_path: Path) -> None:
    run = train(dataset, tmp_path, f"pretrained.path={pretrained}", "policy.learns=heads")
    start, end = load_policy(pretrained, "model").state_dict(), run.model.state_dict()
    moved = {name for name in start if not torch.equal(start[name], end[name]) and not name.startswith("normalizer.")}
    assert moved == {name for name in start if name.startswith("pi_head.")}


def test_the_head_of_minedojo_is_fresh_beside_inherited_weights_and_measured_alike(
    dataset: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    overrides = (f"pretrained.path={pretrained}", "policy.head=minedojo", "policy.learns=heads")
    with pytest.raises(WorkspaceError, match=r"policy\.head joint \(here minedojo\)"):
        train(dataset, tmp_path / "refused", *overrides)
    run = train(dataset, tmp_path / "run", *overrides, "pretrained.min_coverage=0.5", "stages=new_first")
    assert "fresh 16 " in caplog.text
    start, end = load_policy(pretrained, "model").state_dict(), run.model.state_dict()
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith(RELEASED))
    last = read_metrics(tmp_path / "run" / "logs.json.txt")[-1]
    assert {"val_loss_fore_back", "val_accuracy_yaw", "val_accuracy_buttons", "val_f1_attack"} <= last.keys()
    checkpoint = read_checkpoint(tmp_path / "run" / LATEST)
    assert isinstance(load_policy(checkpoint, "model"), VPTImagePolicy)


# ---- refusals ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("task.image_shape=[3,128,128]",), r"convert with --resolution 128 128"),
        (("task=cogact_robot_8d", "task.dataset_path={data}"), r"VPT's is .*use task=minecraft"),
        (("cloning.kl.weight=1",), r"starts from scratch: there is no pretrained policy to stay near"),
        (("cloning.kl.decay=2",), r"cloning\.kl\.decay 2\.0; expected at least 0"),
        (("training.max_gradient_norm=0",), r"max_gradient_norm is 0; expected above 0"),
        (("loss=gripper_events",), r"weights a gripper.*loss=plain"),
        (("observation_dropout=gripper",), r"observation_dropout hides states"),
        (("pretrained.path={weights}", "policy.hidsize=32"), r"policy\.hidsize 16 \(here 32\)"),
        (("+task.dataset.weights={others: 1}",), r"sequences are read once each"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    overrides: tuple[str, ...], message: str, dataset: Path, pretrained: Path, tmp_path: Path
) -> None:
    filled = [one.replace("{data}", str(dataset)).replace("{weights}", str(pretrained)) for one in overrides]
    with pytest.raises(WorkspaceError, match=message):
        train(dataset, tmp_path, *filled)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def test_a_reference_that_was_replaced_is_refused(
    dataset: Path, pretrained: Path, straight: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.weights"
    write_weights(tiny_policy(6), other)
    overrides = (
        *pulled(pretrained),
        f"pretrained.path={other}",
        f"training.resume={straight}",
        "training.num_epochs=3",
    )
    with pytest.raises(TrainingError, match=r"is not the file that the run started from \(tiny\.weights"):
        train(dataset, tmp_path / "run", *overrides)
    assert OmegaConf.select(vpt_factory.settings(dataset), "optimizer.weight_decay") == 0.039428
