"""Several processes: the same run as with one, from the same batches, with weights that never diverge."""

import hashlib
import multiprocessing
import os
import socket
import subprocess

import pytest
import tiny_run
import torch
import warm_process

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.processes import Processes, find_device
from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

# Without dropout, and with crops of the whole image, the only random numbers are those that all processes draw alike.
# 17 windows in batches of 8: the last batch has one window, so one process has none.
SETTINGS = (
    "policy.p_drop_attn=0",
    "policy.crop_shape=null",
    "training.threads=1",  # more would hang in a copy of a process that has had threads
    "training.sample_every=0",
    "training.checkpoint_every=50",
    "checkpoint.topk.k=0",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def run_together(dataset, cwd, world_size, *overrides):
    """`torchrun --nproc-per-node N train.py ...`, as torchrun would start it."""
    door = tiny_run.CONFIG.parent / "train.py"
    return start([door, *tiny_run.OVERRIDES, f"task.dataset_path={dataset}", *SETTINGS, *overrides], cwd, world_size)


def start(arguments, cwd, world_size):
    """Returns what each of the processes printed."""
    command = [warm_process.python(), *map(str, arguments)]
    running = [
        subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | variables,
        )
        for variables in variables_of(world_size)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * world_size, outputs
    return outputs


def variables_of(world_size):
    """Returns what torchrun passes to each of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def copies(world_size, cfg, folder):
    """Returns digests of each process's state after the run; the processes are copies of this one."""
    context = multiprocessing.get_context("fork")
    found = [context.Pipe(duplex=False) for _ in range(world_size)]
    running = [
        context.Process(target=train_and_digest, args=(variables, cfg, folder, sending))
        for variables, (_, sending) in zip(variables_of(world_size), found, strict=True)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0] * world_size
    return [receiving.recv() for receiving, _ in found]


def train_and_digest(variables, cfg, folder, sending):
    os.environ.update(variables)
    run = TrainDiffusionTransformerHybridWorkspace(cfg, folder)
    run.run()
    moments = [state[name] for state in run._updates.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    sending.send([digest(each) for each in (run.model.parameters(), run.ema_model.parameters(), moments)])


def digest(tensors):
    """Returns a digest of all their bits."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_either_can_continue(dataset, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *SETTINGS), alone).run()
    first, second = run_together(dataset, tmp_path, 2, "hydra.run.dir=together", "training.gradient_accumulate_every=1")
    assert "finished after 2 epochs" in first
    assert second == ""
    lines = [read_metrics(folder / "logs.json.txt") for folder in (alone, together)]
    assert len(lines[0]) == len(lines[1])
    for one, two in zip(*lines, strict=True):
        assert one["global_step"] == two["global_step"]
        for key in ("train_loss", "val_loss", "train_loss_before_first_update", "val_loss_before_first_update"):
            assert one.get(key, 0.0) == pytest.approx(two.get(key, 0.0), rel=1e-4), (one, two)
    states = [read_checkpoint(folder / "checkpoints" / LATEST) for folder in (alone, together)]
    for part in ("model", "ema_model"):
        for key, tensor in states[0].state_dicts[part].items():
            assert torch.allclose(tensor, states[1].state_dicts[part][key], atol=1e-4), (part, key)
    assert len(states[1].run_state["generators"]) == 2

    settings = tiny_run.settings(dataset, *SETTINGS, "training.num_epochs=3")
    summary = TrainDiffusionTransformerHybridWorkspace(settings, together).run()
    assert summary.updates == 9
    digests = copies(2, settings, alone)  # and vice versa
    one, two = (read_metrics(folder / "logs.json.txt")[-1] for folder in (together, alone))
    assert one["global_step"] == two["global_step"] == 9
    for key in ("train_loss", "val_loss", "val_loss_model"):
        assert one[key] == pytest.approx(two[key], rel=1e-3), key
    # Weights, average and moments are the same bits in both, so gradients were: each makes its own step.
    assert len(set(digests[0])) == 3
    assert digests[0] == digests[1]


def test_a_process_alone_is_all_there_is():
    alone = Processes(torch.device("cpu"))
    assert alone.writes
    assert alone.gather("x") == ["x"]
    assert alone.from_first(3) == 3
    assert alone.sum(torch.tensor(2.0)) == 2


def test_missing_devices():
    assert find_device("cpu", local_rank=3, world_size=8) == torch.device("cpu")
    with pytest.raises(TrainingError, match="no such kind of device; expected cpu, cuda or cuda:N"):
        find_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match=r"sees no CUDA GPU\); set training\.device=cpu"):
            find_device("cuda:0")
