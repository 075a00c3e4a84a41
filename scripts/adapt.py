"""Say what would be loaded of a file of weights, why the rest would not, and what a config change costs; then do it.

    python scripts/adapt.py inspect FILE
    python scripts/adapt.py plan SOURCE --target TARGET --rules pose_to_gripper --page ledger.html
    python scripts/adapt.py apply OLD.ckpt --target OLD.ckpt --set policy.n_layer=10 --rules more_layers --out NEW.ckpt
    python scripts/adapt.py whatif groot_n1_5 --set vl_self_attention_cfg.num_layers=8

TARGET: a training config, a checkpoint (with --set: its config, changed), a JSON manifest {name: shape}, a GR00T
config.json, or a model such as `vpt`. Rules: files, or names of config/adapt. Exit status: 0 everything is accounted
for (whatif: the model runs), 1 the model cannot run, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from diffusion_policy.adapt.apply import write_json
from diffusion_policy.adapt.files import apply_file, open_target, plan_file, rules_of
from diffusion_policy.adapt.inspection import Inspection, inspect_file
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.ledger_page import write_page
from diffusion_policy.adapt.whatif import WhatIfReport, what_if
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, call one function, print its answer once."""
    arguments = _parser().parse_args(argv)
    try:
        shown, status = _answer(arguments)
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(shown)
    return status


def _answer(arguments: argparse.Namespace) -> tuple[RenderableType, int]:
    answer: Inspection | WhatIfReport | Ledger
    if arguments.command == "inspect":
        answer = inspect_file(arguments.file)
    elif arguments.command == "whatif":
        answer = what_if(arguments.model, arguments.set)
    else:
        answer = _ledger(arguments)
    if arguments.json:
        write_json(arguments.json, answer.to_json())
    cannot_run = isinstance(answer, WhatIfReport) and not answer.runs
    return answer.table(), int(cannot_run)


def _ledger(arguments: argparse.Namespace) -> Ledger:
    target, rules = open_target(arguments.target, arguments.dataset, arguments.set), rules_of(arguments.rules)
    if arguments.command == "plan":
        ledger = plan_file(arguments.source, target, rules)
    else:
        ledger = apply_file(
            arguments.source, target, rules, arguments.out,
            ledger_path=arguments.ledger, must_preserve=arguments.must_preserve, overwrite=arguments.overwrite,
        )  # fmt: skip
    if arguments.page:
        write_page(arguments.page, ledger, f"{Path(arguments.source).name} -> {target.name}")
    return ledger


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="what is in a file")
    inspect.add_argument("file")
    plan = commands.add_parser("plan", help="the ledger of an adaptation; nothing is written but reports")
    apply = commands.add_parser("apply", help="the same, then write the new file and check it")
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
        command.add_argument("--dataset", metavar="ZARR", help="statistics of new dimensions come from this dataset")
        command.add_argument("--page", metavar="HTML", help="also write the ledger as a map of the network")
    apply.add_argument("--out", required=True)
    apply.add_argument("--ledger", metavar="JSON", help="where the ledger goes (default: OUT.ledger.json)")
    apply.add_argument("--must-preserve", action="store_true", help="refuse if shared action dimensions change")
    apply.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    whatif = commands.add_parser("whatif", help="what a config change costs a pretrained model")
    whatif.add_argument("model", help="a training config, vpt, or groot_n1_5")
    whatif.add_argument("--set", nargs="+", action="extend", required=True, metavar="CHANGE", help="a.b=v, or ~a.b")
    for command in (inspect, plan, apply, whatif):
        command.add_argument("--json", metavar="OUT", help="also write the answer as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
