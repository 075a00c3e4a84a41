"""Show what would be loaded from a file of weights, why the rest would not, and what a config change costs; then do it.

    python scripts/adapt.py inspect FILE
    python scripts/adapt.py plan SOURCE --target TARGET --rules pose_to_gripper --page ledger.html
    python scripts/adapt.py apply OLD.ckpt --target OLD.ckpt --set policy.n_layer=10 --rules more_layers --out NEW.ckpt
    python scripts/adapt.py whatif groot_n1_5 --set vl_self_attention_cfg.num_layers=8

TARGET: a training config, a checkpoint (with --set, its config changed), a JSON manifest {name: shape}, a GR00T
config.json, or a model such as `vpt`. Rules: files, or names in config/adapt. Exit status: 0 everything is accounted
for (whatif: the model runs), 1 the model cannot run, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.gripper_scale import add_gripper_scale

if TYPE_CHECKING:
    from diffusion_policy.adapt.ledger import Ledger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the four commands."""
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="show what is in a file")
    inspect.add_argument("file")
    plan = commands.add_parser("plan", help="show the ledger of an adaptation; only reports are written")
    apply = commands.add_parser("apply", help="do the same, then write the new file and check it")
    for command in (plan, apply):
        command.add_argument("source")
        command.add_argument("--target", required=True)
        command.add_argument("--rules", nargs="+", action="extend", default=[], metavar="RULES")
        command.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="CHANGE",
            help="change TARGET's config: a.b=v, +a.b=v",
        )
        command.add_argument(
            "--dataset", metavar="ZARR", help="take the statistics of new dimensions from this dataset"
        )
        add_gripper_scale(command)
        command.add_argument("--page", metavar="HTML", help="also write the ledger as a map of the network")
    apply.add_argument("--out", required=True)
    apply.add_argument("--ledger", metavar="JSON", help="where to write the ledger (default: OUT.ledger.json)")
    apply.add_argument("--must-preserve", action="store_true", help="refuse if shared action dimensions change")
    apply.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    whatif = commands.add_parser("whatif", help="show what a config change costs a pretrained model")
    whatif.add_argument("model", help="a training config, vpt, groot_n1_5, groot_n1_6 or groot_n1_7")
    whatif.add_argument("--set", nargs="+", action="extend", required=True, metavar="CHANGE", help="a.b=v, or ~a.b")
    for command in (inspect, plan, apply, whatif):
        command.add_argument("--json", metavar="OUT", help="also write the answer as JSON")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Inspects, finds what a change costs, or makes the ledger and, with apply, the file."""
    from diffusion_policy.adapt.inspection import inspect_file
    from diffusion_policy.whatif.config_change import what_if

    if arguments.command == "whatif":
        report = what_if(arguments.model, arguments.set)
        return CommandResult(report.table(), 0 if report.runs else 1, report.to_json())
    answer = inspect_file(arguments.file) if arguments.command == "inspect" else _ledger(arguments)
    return CommandResult(answer.table(), 0, answer.to_json())


def _ledger(arguments: argparse.Namespace) -> Ledger:
    from diffusion_policy.adapt.files import apply_file, open_target, plan_file, rules_of
    from diffusion_policy.report.ledger_page import write_page

    target = open_target(arguments.target, arguments.dataset, arguments.set, arguments.gripper_scale)
    rules = rules_of(arguments.rules)
    if arguments.command == "plan":
        ledger = plan_file(arguments.source, target, rules)
    else:
        with progress("stages") as show:
            ledger = apply_file(
                arguments.source, target, rules, arguments.out, ledger_path=arguments.ledger,
                must_preserve=arguments.must_preserve, overwrite=arguments.overwrite, on_progress=show,
            )  # fmt: skip
    if arguments.page:
        write_page(arguments.page, ledger, f"{Path(arguments.source).name} -> {target.name}")
    return ledger


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("out", "ledger", "page"))


if __name__ == "__main__":
    sys.exit(main())
