"""Load VPT's weights and print what was loaded, what was dropped, and the model size in the file.

    python scripts/load_vpt.py rl-from-early-game-2x.weights
    python scripts/load_vpt.py foundation-model-1x.weights --model foundation-model-1x.model
    python scripts/load_vpt.py fine_tuned.weights --repair
    python scripts/load_vpt.py RUN/checkpoints/latest.ckpt --out mine.weights

The weights are loaded into a policy of the size given by the file's shapes, all of them or none. --out writes them as
upstream does, as a plain state dict under the released names, including those of a run's checkpoint (its average, if
there is one). Exit status: 0 loaded, 2 refused, with the reason and the remedy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.command_line import CommandResult, run_command

if TYPE_CHECKING:
    from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "weights", type=Path, help="a .weights file from OpenAI or fine-tuned from one, or a run's checkpoint"
    )
    parser.add_argument("--model", type=Path, help="the .model file of that size; its settings are compared")
    parser.add_argument(
        "--repair", action="store_true", help="strip a prefix that a wrapper put before every name (module.policy.)"
    )
    parser.add_argument("--out", type=Path, metavar="NEW.weights", help="write the policy's weights to a new file")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the account as JSON")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Loads, reports what became of every tensor and, if requested, writes the weights."""
    from dataclasses import asdict

    from diffusion_policy.policy.vpt_weights import check_free, write_weights

    if arguments.out is not None:
        check_free(arguments.out)
    policy, account, dropped = _loaded(arguments)
    settings = policy.settings
    lines = [
        account["said"],
        f"size: {settings.release or 'custom'} (hidsize {settings.hidsize}, {settings.n_recurrence_layers} blocks, "
        f"{settings.attention_heads} heads, impala_width {settings.impala_width}, window {settings.window}), "
        f"{sum(parameter.numel() for parameter in policy.parameters()):,} parameters",
        *(f"dropped by rule: {name}" for name in dropped),
    ]
    if arguments.out is not None:
        lines.append(f"wrote {write_weights(policy, arguments.out)} tensors to {arguments.out}")
    return CommandResult(lines, document={"load": account, "settings": asdict(settings)})


def _loaded(arguments: argparse.Namespace) -> tuple[MinecraftAgentPolicy, dict[str, Any], Sequence[str]]:
    """Returns the policy in a weights file or a run's checkpoint, the account of loading it, and the dropped names."""
    from dataclasses import asdict

    from diffusion_policy.adapt.foreign import is_checkpoint
    from diffusion_policy.checkpoint import load_policy, read_checkpoint
    from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy, VPTAgent
    from diffusion_policy.policy.vpt_weights import VPTError
    from diffusion_policy.tensor_file import open_tensor_file

    path = arguments.weights
    if not is_checkpoint(open_tensor_file(path)):
        agent = VPTAgent.from_weights(path, model=arguments.model, repair=arguments.repair)
        report = agent.loaded
        assert report is not None
        return agent.policy, {**asdict(report), "said": str(report)}, report.dropped
    checkpoint = read_checkpoint(path)
    policy = load_policy(checkpoint, which=checkpoint.deployed)
    if not isinstance(policy, MinecraftAgentPolicy):
        raise VPTError(f"{path}: a checkpoint of {type(policy).__name__}; expected one of VPT's policy")
    summary = f"{path}: a run's checkpoint, {checkpoint.deployed}, {len(policy.state_dict())} names"
    return policy, {"path": str(path), "weights": checkpoint.deployed, "said": summary}, ()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
