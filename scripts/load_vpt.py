"""Load VPT's weights and print what was loaded, what was dropped, and the size that the file has.

    python scripts/load_vpt.py rl-from-early-game-2x.weights
    python scripts/load_vpt.py foundation-model-1x.weights --model foundation-model-1x.model
    python scripts/load_vpt.py fine_tuned.weights --repair

The weights go into a policy of the size that the file's shapes tell; all of them do, or none. Exit status: 0 loaded, 2
refused, with the reason and what would settle it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("weights", type=Path, help="a .weights file of OpenAI's, or one that was fine-tuned from it")
    parser.add_argument("--model", type=Path, help="the .model file of that size; its settings are compared")
    parser.add_argument(
        "--repair", action="store_true", help="take off a prefix that a wrapper put before every name (module.policy.)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the account as JSON")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Load, and tell what became of every tensor."""
    from dataclasses import asdict

    from diffusion_policy.policy.vpt_policy import VPTAgent

    agent = VPTAgent.from_weights(arguments.weights, model=arguments.model, repair=arguments.repair)
    settings, report = agent.policy.settings, agent.loaded
    assert report is not None
    lines = [
        str(report),
        f"size: {settings.release or 'of its own'} (hidsize {settings.hidsize}, {settings.n_recurrence_layers} blocks, "
        f"{settings.attention_heads} heads, impala_width {settings.impala_width}, window {settings.window}), "
        f"{sum(parameter.numel() for parameter in agent.policy.parameters()):,} parameters",
        *(f"dropped by rule: {name}" for name in report.dropped),
    ]
    return CommandResult(lines, document={"load": asdict(report), "settings": asdict(settings)})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
