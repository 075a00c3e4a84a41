"""Former names of modules, classes and functions: programs and checkpoints that use them still work.

`import diffusion_policy.cores` imports the module `diffusion_policy.cpu` itself, with a DeprecationWarning; the former
name of a package covers its submodules. `former_names` does the same for names in a module.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
# Former name: present name, both below the package.
MOVED = {
    "adapt.families.project_config": "whatif.project_config",
    "adapt.families": "families",
    "adapt.layout": "adapt.named_axes",
    "dataset.told": "dataset.episode_metadata",
    "places": "paths",
    "policy.quaternion_side": "policy.quaternion_hemisphere",
    "policy.robot_answer": "policy.robot_action",
    "adapt.param_groups": "workspace.param_groups",
    "adapt.whatif": "whatif.config_change",
    "adapt.whatif_report": "whatif.report",
    "cores": "cpu",
    "evaluate.events": "gripper_events",
    "evaluate.intervals": "intervals",
    "model.arithmetic": "model.cpu.arithmetic",
    "model.convolution": "model.cpu.convolution",
    "model.group_norm": "model.cpu.group_norm",
    "model.kernels": "model.cpu.kernels",
    "serve.arrays": "serve.transport.arrays",
    "serve.cameras": "serve.checks.cameras",
    "serve.client_messages": "serve.client.messages",
    "serve.compute_threads": "serve.engine.compute_threads",
    "serve.cuda_graph": "serve.engine.cuda_graph",
    "serve.fast_path": "serve.engine.fast_path",
    "serve.freshness": "serve.checks.freshness",
    "serve.host": "serve.transport.host",
    "serve.images": "serve.transport.images",
    "serve.inbox": "serve.transport.inbox",
    "serve.line_server": "serve.transport.line_server",
    "serve.motion_guard": "serve.checks.motion_guard",
    "serve.parity": "serve.checks.parity",
    "serve.ports": "serve.transport.ports",
    "serve.protocol": "serve.transport.protocol",
    "serve.request": "serve.transport.request",
    "serve.seams": "serve.checks.seams",
    "serve.websocket_server": "serve.transport.websocket_server",
    "serve.log_export": "run_log.exports",
    "serve.log_to_trajectory": "run_log.to_trajectories",
    "serve.session_log": "run_log.session_log",
    "report.run_folder": "run_folder.reading",
    "workspace.resuming": "run_folder.resuming",
    "workspace.measuring": "workspace.evaluator",
    "report.camera_evidence": "diagnose.camera_evidence",
    "report.checkpoint_evidence": "diagnose.checkpoint_evidence",
    "report.checkpoint_findings": "diagnose.checkpoint_findings",
    "report.closed_loop_evidence": "diagnose.closed_loop_evidence",
    "report.closed_loop_findings": "diagnose.closed_loop_findings",
    "report.dataset_evidence": "diagnose.dataset_evidence",
    "report.dataset_findings": "diagnose.dataset_findings",
    "report.dossier": "report.report_page",
    "report.disk_need": "diagnose.disk_need",
    "report.doctor": "diagnose.doctor",
    "report.environment": "diagnose.environment",
    "report.findings": "diagnose.findings",
    "report.gravest": "diagnose.gravest",
    "report.inspection": "diagnose.inspection",
    "report.latency": "diagnose.latency",
    "report.log_evidence": "diagnose.log_evidence",
    "report.log_findings": "diagnose.log_findings",
    "report.playback": "diagnose.playback",
    "report.pose_only": "diagnose.pose_only",
    "report.quaternion_sign": "diagnose.quaternion_sign",
    "report.recordings_gate": "diagnose.recordings_gate",
    "report.sources": "diagnose.sources",
    "report.step_evidence": "diagnose.step_evidence",
    "report.step_findings": "diagnose.step_findings",
    "report.steps": "diagnose.steps",
    "report.training_evidence": "diagnose.training_evidence",
    "report.training_findings": "diagnose.training_findings",
    "report.unit_findings": "diagnose.unit_findings",
    "adapt.ledger_page": "report.ledger_page",
    "evaluate.gripper_page": "report.gripper_page",
}


class _MovedModules(MetaPathFinder):
    """Finds a module by its former name; asked only when there is no module of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a former name, or None."""
        package, _, name = fullname.partition(".")
        if package != _PACKAGE:
            return None
        present = present_name(name)
        return None if present is None else ModuleSpec(fullname, _PresentModule(f"{_PACKAGE}.{present}"))


class _PresentModule(Loader):
    """Loads the module at its present name instead of a copy."""

    def __init__(self, present: str):
        self._present = present
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, imported by its present name."""
        message = f"{spec.name} has moved to {self._present}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self._present)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run. The import system has given it the former name's spec, which is taken back."""
        module.__spec__ = self._spec


def present_name(name: str) -> str | None:
    """Where a module of a former name (below the package) is now; None for a name that has not moved."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        moved = MOVED.get(".".join(parts[:length]))
        if moved is not None:
            return ".".join([moved, *parts[length:]])
    return None


def install() -> None:
    """Let former names be found from now on, behind every other finder."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that returns its renamed classes and functions by their former names, with a warning.

    Args:
        module: `__name__` of the module.
        names: former name: present name.
    """

    def renamed(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return renamed
