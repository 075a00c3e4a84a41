"""How long VPT takes for a frame, one at a time with its memory, in float32.

    python benchmarks/vpt_forward.py [--quick] [--size 1x|2x|3x] [--rounds N] [--threads N] [--note TEXT] [--json OUT]

Weights are random, of a release's size; both ways read the same tensors and answer the same frames, in turn, in one
call. The baseline is the network written out with torch's functions, channels first, each frame attending over keys
that are kept as lists and concatenated. Seconds are medians by wall clock and by CPU time, which shows what two idle
cores would do if other programs are running. The goal is 0.87 s per frame for the 2x model on two cores, which was
measured for upstream's program. Memory is the peak of the process, including weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from diffusion_policy.command_line import positive_number
from diffusion_policy.model.vpt.network import VPTSettings
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy

SIZES = {
    "1x": VPTSettings(hidsize=1024, impala_width=4, attention_heads=8),
    "2x": VPTSettings(),
    "3x": VPTSettings(hidsize=3072, impala_width=12, attention_heads=24),
}
GOAL_S = 0.87
REMEMBERED = 16  # frames before the first measured one
Remembered = list[tuple[list[Tensor], list[Tensor]]]


class Plain:
    """The policy for one episode, written out; ``state`` is its state_dict."""

    def __init__(self, state: Mapping[str, Tensor], settings: VPTSettings) -> None:
        self.state, self.settings = state, settings
        self.memory: Remembered = [([], []) for _ in range(settings.n_recurrence_layers)]

    def __call__(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (128, 128, 3) uint8 to log-probabilities of camera (121,) and buttons (8641,)."""
        images = (frame.permute(2, 0, 1).float() / 255)[None].contiguous()
        for number in range(3):
            images = self.stack(f"net.img_process.cnn.stacks.{number}", images, first=number == 0)
        x = self.dense("net.img_process.cnn.dense", images.reshape(1, -1))
        x = self.dense("net.img_process.linear", x)
        for number in range(self.settings.n_recurrence_layers):
            x = self.block(f"net.recurrent_layer.blocks.{number}", x, *self.memory[number])
        x = self.norm("net.final_ln", self.dense("net.lastlayer", functional.relu(x)))
        camera, buttons = (
            self.linear(f"pi_head.{name}.linear_layer", x)[0] / self.settings.temperature
            for name in ("camera", "buttons")
        )
        return torch.log_softmax(camera, dim=-1), torch.log_softmax(buttons, dim=-1)

    def stack(self, name: str, images: Tensor, *, first: bool) -> Tensor:
        images = self.conv(f"{name}.firstconv", images, normalizes=not first)
        images = self.group("n", name, functional.max_pool2d(images, 3, stride=2, padding=1))
        for block in range(2):
            inside = self.conv(f"{name}.blocks.{block}.conv0", images)
            images = images + self.conv(f"{name}.blocks.{block}.conv1", inside)
        return images

    def conv(self, name: str, images: Tensor, *, normalizes: bool = True) -> Tensor:
        images = self.group("norm", name, images) if normalizes else images
        bias = self.state.get(f"{name}.layer.bias")
        return functional.relu(functional.conv2d(images, self.state[f"{name}.layer.weight"], bias, padding=1))

    def group(self, part: str, name: str, images: Tensor) -> Tensor:
        weight, bias = (self.state[f"{name}.{part}.{kind}"] for kind in ("weight", "bias"))
        return functional.group_norm(images, 1, weight, bias)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def dense(self, name: str, x: Tensor) -> Tensor:
        return functional.relu(self.linear(f"{name}.layer", self.norm(f"{name}.norm", x)))

    def block(self, name: str, x: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        x = self.norm(f"{name}.pre_r_ln", x)
        attention, heads = f"{name}.r.orc_block", self.settings.attention_heads
        keys.append(self.linear(f"{attention}.k_layer", x))
        values.append(self.linear(f"{attention}.v_layer", x))
        del keys[: -self.settings.window], values[: -self.settings.window]
        query = self.linear(f"{attention}.q_layer", x).reshape(heads, 1, -1)
        key, value = (torch.cat(part).reshape(len(part), heads, -1).transpose(0, 1) for part in (keys, values))
        relative = self.linear(f"{attention}.r_layer", x).reshape(heads, -1) @ self.state[f"{attention}.b_nd"]
        by_age = relative[:, : len(keys)].flip(-1)[:, None]
        weights = functional.softmax(query @ key.transpose(1, 2) / query.shape[-1] + by_age, dim=-1)
        x = x + self.linear(f"{attention}.proj_layer", (weights @ value).reshape(1, -1))
        return x + self.linear(f"{name}.mlp1.layer", self.dense(f"{name}.mlp0", x))


class Ours:
    """The package's policy for one episode."""

    def __init__(self, policy: MinecraftAgentPolicy) -> None:
        self.policy, self.memory = policy, policy.initial_state()
        self.first = torch.zeros(1, 1, dtype=torch.bool)

    def __call__(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (128, 128, 3) uint8 to log-probabilities of camera (121,) and buttons (8641,)."""
        (found, _, _), self.memory = self.policy({"img": frame[None, None]}, self.first, self.memory)
        return found["camera"][0, 0, 0], found["buttons"][0, 0, 0]


def timed(answer: Callable[[Tensor], Any], frame: Tensor) -> tuple[float, float, Any]:
    """Returns seconds by wall clock and of CPU time, and the answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = answer(frame)
    return time.perf_counter() - wall, time.process_time() - cpu, found


@torch.inference_mode()
def measure(settings: VPTSettings, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """Returns each way's medians and fastest times, and the largest difference of log-probabilities."""
    torch.manual_seed(0)
    policy = MinecraftAgentPolicy(settings).eval()
    ways: dict[str, Callable[[Tensor], Any]] = {"plain": Plain(policy.state_dict(), settings), "ours": Ours(policy)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    furthest = 0.0
    generator = torch.Generator().manual_seed(1)
    for number in range(REMEMBERED + rounds):
        frame = torch.randint(0, 256, settings.img_shape, dtype=torch.uint8, generator=generator)
        answers = []
        for name, way in ways.items():
            wall, cpu, found = timed(way, frame)
            answers.append(found)
            if number >= REMEMBERED:
                seconds[name].append((wall, cpu))
        pairs = zip(*answers, strict=True)
        furthest = max(furthest, *(float((one - other).abs().max()) for one, other in pairs))
    rows = {
        name: {
            "wall_s": statistics.median(wall for wall, _ in taken),
            "cpu_s": statistics.median(cpu for _, cpu in taken),
            "fastest_wall_s": min(wall for wall, _ in taken),
            "cpu_against_plain": statistics.median(
                own[1] / plain[1] for own, plain in zip(taken, seconds["plain"], strict=True)
            ),
        }
        for name, taken in seconds.items()
    }
    return rows, furthest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 1x model, 3 rounds")
    parser.add_argument("--size", choices=tuple(SIZES), default="2x")
    parser.add_argument("--rounds", type=positive_number, default=30)
    parser.add_argument("--threads", type=positive_number, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--note", default="", help="note to store with the figures: what else the machine was doing")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    size, rounds = ("1x", 3) if arguments.quick else (arguments.size, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    rows, furthest = measure(SIZES[size], rounds)
    console = Console()
    table = Table(f"{size}, per frame", "s, median", "s, fastest", "CPU s, median", "CPU against plain")
    for name, row in rows.items():
        kinds = ("wall_s", "fastest_wall_s", "cpu_s", "cpu_against_plain")
        table.add_row(name, *(f"{row[kind]:.3f}" for kind in kinds))
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    load = os.getloadavg()[0]
    console.print(
        f"{rounds} frames in turn, {arguments.threads} threads, load {load:.1f}; peak memory {peak:.0f} MB; "
        f"log-probabilities differ by at most {furthest:.1e}; the goal for 2x is {GOAL_S} s"
    )
    if arguments.json:
        about = {"size": size, "rounds": rounds, "threads": arguments.threads, "load": load, "note": arguments.note}
        found = {"rows": rows, "most_difference": furthest, "peak_mb": peak, "goal_s": GOAL_S, **about}
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
