"""Where config/, the scripts and the demo's pose policy are, and what runs them.

In a checkout they are next to the package; once installed, inside it: the wheel has copies (made by setup.py) and a
command for each script, so that everything runs in any folder.
"""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
IS_INSTALLED = (PACKAGE / "scripts").is_dir()
CONFIG = (PACKAGE if IS_INSTALLED else CHECKOUT) / "config"
SCRIPTS = (PACKAGE if IS_INSTALLED else CHECKOUT) / "scripts"
PRETRAINED = (PACKAGE if IS_INSTALLED else CHECKOUT / "data") / "pretrained"

# Shell command -> script.
ENTRY_POINTS = {
    "dp-adapt": "adapt",
    "dp-check-parity": "check_parity",
    "dp-closed-loop": "evaluate_closed_loop",
    "dp-collect-corrections": "collect_corrections",
    "dp-compare": "compare_runs",
    "dp-convert": "convert_cogact_to_zarr",
    "dp-convert-dataset": "convert_dataset",
    "dp-dagger": "dagger",
    "dp-demo": "demo",
    "dp-demo-vpt": "demo_vpt",
    "dp-doctor": "doctor",
    "dp-edit": "edit_dataset",
    "dp-export": "export_run",
    "dp-export-dataset": "export_dataset",
    "dp-export-policy": "export_policy",
    "dp-grow": "finetune_from_7d_to_8d",
    "dp-infer": "run_offline_inference",
    "dp-inspect": "inspect_cogact_data",
    "dp-join-logs": "join_logs",
    "dp-load-vpt": "load_vpt",
    "dp-logs-to-trajectories": "convert_logs_to_trajectories",
    "dp-open-loop": "evaluate_open_loop",
    "dp-pretrain-demo": "pretrain_demo_policy",
    "dp-pretrain-demo-vpt": "pretrain_demo_vpt",
    "dp-record-demo": "make_demo_trajectories",
    "dp-record-grove": "record_grove",
    "dp-replay": "replay_log",
    "dp-report": "report",
    "dp-run-robot": "run_robot",
    "dp-serve": "serve",
    "dp-train": "train",
    "dp-tune": "tune_inference",
    "dp-validate": "validate_gripper",
    "dp-verify": "verify_converted_data",
    "dp-view": "view_dataset",
}


def script_path(script: str) -> Path:
    """The file of a script by its name without suffix; `train` is at the top of a checkout."""
    folder = CHECKOUT if script == "train" and not IS_INSTALLED else SCRIPTS
    return folder / f"{script}.py"


def run_entry_point() -> None:
    """Run the script that the command of this process is for, as `python scripts/NAME.py` would."""
    path = script_path(ENTRY_POINTS[Path(sys.argv[0]).stem])
    loader = SourceFileLoader("__main__", str(path))
    spec = spec_from_file_location("__main__", path, loader=loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["__main__"] = module
    loader.exec_module(module)
