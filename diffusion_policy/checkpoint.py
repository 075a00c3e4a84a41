"""Checkpoints of the robot policy, in the reference's file format, read without running code and written atomically.

    {"cfg": DictConfig,
     "state_dicts": {"model": {...}, "ema_model": {...}, "optimizer": {...}},
     "pickles": {"_output_dir": ..., "global_step": ..., "epoch": ...},     # dill dumps of a string and two ints
     "run_state": {...}, "provenance": {...}}                             # added here; the reference ignores them

A checkpoint is untrusted: its pickle goes through `safe_pickle`, its config may refer to its own entries and use
arithmetic, and only the classes of `policy.registry` and the samplers listed here are built.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dill
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from diffusion_policy import safe_pickle
from diffusion_policy.commands import command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.hub import address_of, local_copy
from diffusion_policy.model.shapes_only import shapes_only
from diffusion_policy.policy import SCHEDULER_PATHS
from diffusion_policy.policy.registry import POLICY_TARGETS, described_weights, policy_class, with_a_place
from diffusion_policy.resolvers import check_interpolations, register_resolvers
from diffusion_policy.shape_meta import find_step_spec
from diffusion_policy.tensor_file import TensorFileError, read_torch
from diffusion_policy.tensor_file.saving import Portable, save_torch_zip
from diffusion_policy.tensor_file.wrapped_names import wrapping_of

if TYPE_CHECKING:
    from diffusion_policy.policy.contract import PolicyModule

logger = logging.getLogger(__name__)

WEIGHTS = ("model", "ema_model")
NORMALIZER = "normalizer."
ACTION_SCALE = f"{NORMALIZER}params_dict.action.scale"
SCHEDULER_TARGETS = tuple(SCHEDULER_PATHS[name] for name in ("ddpm", "ddim", "dpm-solver++"))
# Sizes that would take much time or memory before any tensor could be compared with the file.
LARGEST = {"num_train_timesteps": 100_000, "num_inference_steps": 100_000, "n_layer": 1000, "n_cond_layers": 1000}

JITTER_NOTE = (
    "the public predecessor reads this setting but never applied the jitter: its policies were trained without it. "
    "Here it is applied to the share `p` of the images, by default to all"
)


class CheckpointError(WorkspaceError):
    """A checkpoint that is missing, damaged, not of this project's policies, or that cannot be written or built.

    Attributes:
        command: the command that fixes it; "" if there is none.
    """

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


@dataclass
class Checkpoint:
    """The content of a checkpoint file. Tensors are mapped from the file; names with shared storage share one tensor.

    Weights are float32, whatever dtype the file has; `notes` lists conversions.
    """

    path: Path
    cfg: DictConfig
    state_dicts: dict[str, dict[str, Any]]  # "model", "ema_model", "optimizer", in the file's order of keys
    pickles: dict[str, Any]  # decoded: "_output_dir", "global_step", "epoch"
    run_state: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)  # in another program's file: everything but weights

    @property
    def where(self) -> str:
        """The path; for a copy from a hub, the address with its commit."""
        return address_of(self.path) or str(self.path)

    @property
    def deployed(self) -> str:
        """The name of the weights that are deployed: the average, if there is one."""
        return next((which for which in reversed(WEIGHTS) if which in self.state_dicts), WEIGHTS[0])

    def state_dict(self, which: str) -> dict[str, Tensor]:
        """The weights named `which`, usually "model" or "ema_model".

        Raises:
            CheckpointError: it is missing; the message lists what is there.
        """
        if which not in self.state_dicts:
            raise CheckpointError(
                f"{self.path}: it holds no {which!r}; its state_dicts are {', '.join(self.state_dicts) or 'empty'}."
            )
        return self.state_dicts[which]


def read_checkpoint(path: str | Path, *, wrapped: bool = False) -> Checkpoint:
    """Read a checkpoint. No code in it is run; checksums of its records are verified.

    Args:
        path: of the file; an address of a repository (``hf://USER/REPO/FILE``) is copied into the user's cache.
        wrapped: accept names with parts that a wrapper such as torch.compile inserted; for callers that rename them.

    Raises:
        CheckpointError: missing, another kind of file (which is named), damaged (a record of the archive fails its
            CRC-32), not of this layout, or with wrapped names.
        UnsafePickleError: its pickles need something that is not on the allow-list.
        InterpolationError: its config contains more than references and arithmetic.
    """
    path = local_copy(path)
    try:
        content = read_torch(path).content
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error
    described = described_weights(content, str(path))
    if described is not None:
        content = {"cfg": dict(described.cfg), "state_dicts": {"model": described.state}}
    _check_layout(content, path)
    if not wrapped:
        _check_names(content["state_dicts"], path)
    cfg = config_of(content["cfg"], path)
    state_dicts, notes = in_float32(content["state_dicts"])
    if not {"run_state", "provenance"} & content.keys() and OmegaConf.select(cfg, "policy.color_jitter"):
        notes = (*notes, f"its config has policy.color_jitter: {JITTER_NOTE}")
    for note in notes:
        logger.warning("%s: %s", path, note)
    if described is not None:
        logger.info("%s: %s", path, described.note)
        notes = (*notes, described.note)
    return Checkpoint(
        path=path,
        cfg=cfg,
        state_dicts=state_dicts,
        pickles={name: _decoded(name, value, path) for name, value in content.get("pickles", {}).items()},
        run_state=content.get("run_state"),
        provenance=content.get("provenance"),
        notes=notes,
    )


def _check_names(state_dicts: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Refuse names with parts of a wrapper, with the command that removes them."""
    for which in WEIGHTS:
        wrapping = wrapping_of(state_dicts.get(which, ()), ACTION_SCALE)
        if wrapping is not None:
            out = path.with_name(f"{path.stem}.bare.ckpt")
            fix = command("adapt", "apply", path, "--target", path, "--rules", *wrapping.rules, "--out", out)
            raise CheckpointError(
                f"{path}: in {which} {wrapping.describe()}; the weights are intact. Remove these parts from the names: "
                f"{fix}",
                fix,
            )


def in_float32(state_dicts: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Weights as float32, with shared tensors still shared; and notes on conversions."""
    made: dict[int, Tensor] = {}
    types: dict[str, dict[str, int]] = {}
    states: dict[str, Any] = dict(state_dicts)
    for which in states.keys() & set(WEIGHTS):
        for key, tensor in (state := dict(states[which])).items():
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                counts = types.setdefault(which, {})
                name = str(tensor.dtype).removeprefix("torch.")
                counts[name] = counts.get(name, 0) + 1
                state[key] = made.setdefault(id(tensor), tensor.to(torch.float32))
        states[which] = state
    notes = tuple(
        f"{which} holds {' and '.join(f'{count} tensors of {name}' for name, count in types[which].items())}; they are "
        "read as float32"
        for which in WEIGHTS
        if which in types
    )
    return states, notes


def _check_layout(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or not {"cfg", "state_dicts"} <= content.keys():
        names = ", ".join(map(str, content))[:200] if isinstance(content, dict) else f"a {type(content).__name__}"
        look = command("adapt", "inspect", path)
        raise CheckpointError(
            f"{path}: it is {_what_instead(content)}, not a checkpoint of the policy: expected cfg, state_dicts and "
            f"pickles at its top level, found {names}. See what is in it: {look}"
        )
    state_dicts = content["state_dicts"]
    if not isinstance(state_dicts, dict) or not all(isinstance(state, dict) for state in state_dicts.values()):
        raise CheckpointError(f"{path}: its state_dicts are not dictionaries of tensors by name.")
    for which in state_dicts.keys() & set(WEIGHTS):
        for key, value in state_dicts[which].items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {which}[{key!r}] is a {type(value).__name__}, not a tensor.")
    for part in ("pickles", "run_state", "provenance"):
        if not isinstance(content.get(part), (dict, type(None))):
            raise CheckpointError(f"{path}: its {part} is a {type(content[part]).__name__}, not a dictionary.")


def _what_instead(content: Any) -> str:
    """Describes the content of a PyTorch file that is not a checkpoint of a policy."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__} that torch.save wrote"
    if "pytorch-lightning_version" in content:
        return "a checkpoint of PyTorch Lightning, with weights but no config of this project"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "a plain state_dict, weights without the config of their policy"
    if set(WEIGHTS) & content.keys():
        return "a dictionary of tensors without a config"
    return "a file of another program"


def config_of(content: Any, path: Path) -> DictConfig:
    """The `cfg` entry of a file as a config, after a check that it contains only references and arithmetic.

    Raises:
        CheckpointError: it is not a config.
        InterpolationError: it contains more.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its cfg is a {type(content).__name__}, not a config.")
    check_interpolations(content, str(path))
    try:
        return OmegaConf.create(content)
    except OmegaConfBaseException as error:
        raise CheckpointError(f"{path}: its cfg is not a valid config ({error}).") from error


def _decoded(name: str, dump: Any, path: Path) -> Any:
    if not isinstance(dump, bytes):
        raise CheckpointError(f"{path}: its pickles entry {name!r} is a {type(dump).__name__}, not bytes.")
    return safe_pickle.load(dump, allowed={}, where=f"{path}, entry {name!r}", max_bytes=2**20)


def write_checkpoint(
    path: str | Path,
    *,
    cfg: DictConfig,
    state_dicts: Mapping[str, Mapping[str, Any]],
    pickles: Mapping[str, Any],
    run_state: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint atomically, in a form that the reference reads too.

    `pickles` holds plain values ("_output_dir" text or None, "global_step", "epoch"). Everything but `cfg` must be
    plain containers, numbers, text and tensors. Tensors are saved from the CPU, each once, however many names it has.
    `check` is called with the finished temporary file; if it raises, `path` is not changed.

    Raises:
        CheckpointError: other content was given, the config could not be read back, or writing failed (a full disk);
            an existing file is then untouched.
    """
    path = Path(path)
    portable = Portable()
    try:
        plain_cfg = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
        content: dict[str, Any] = {
            "cfg": config_of(portable.of(plain_cfg, "cfg"), path),
            "state_dicts": portable.of(dict(state_dicts), "state_dicts"),
            "pickles": {name: dill.dumps(portable.of(value, f"pickles.{name}")) for name, value in pickles.items()},
        }
        for name, part in (("run_state", run_state), ("provenance", provenance)):
            if part is not None:
                content[name] = portable.of(dict(part), name)
        save_torch_zip(path, content, check)
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error


def build_policy(cfg: DictConfig | Mapping[str, Any], *, values: bool = True) -> PolicyModule:
    """The policy that `cfg.policy` describes, with fresh weights and an empty normalizer.

    Args:
        cfg: its config.
        values: False for a policy that has names and shapes only; see `shapes_only`.

    Raises:
        CheckpointError: a class that is neither in the registry nor a listed sampler, an option that the class does not
            have (with the closest one), a missing option, or invalid values.
    """
    kind, options = _policy_options(cfg)
    with nullcontext() if values else shapes_only():
        return _constructed(kind, options)


def load_policy(
    source: str | Path | Checkpoint, which: str = "ema_model", device: str | torch.device = "cpu"
) -> PolicyModule:
    """The policy of a checkpoint with the weights `which`, on `device`, in eval mode.

    Args:
        source: the file, or the result of `read_checkpoint`.
        which: "model" or "ema_model".
        device: of the policy.

    Raises:
        CheckpointError: see `read_checkpoint` and `build_policy`; or keys and shapes that differ from the config's, or
            a device that does not exist.
        SpecError: the config has two different shape_meta.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    state = checkpoint.state_dict(which)
    kind, options = _policy_options(checkpoint.cfg)
    find_step_spec(checkpoint.cfg)
    with shapes_only():  # so that an absurd size in the config takes no memory
        expected = _constructed(kind, options).state_dict()
    state = with_a_place(state, policy_class(checkpoint.cfg.policy._target_).tensors)
    _check_fit(state, expected, f"{checkpoint.path}, {which}")
    policy = _constructed(kind, options)
    policy.load_state_dict(state, strict=True)
    try:
        return policy.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise CheckpointError(f"the policy cannot be put on the device {str(device)!r}: {error}.") from error


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected and not key.startswith(NORMALIZER)]
    if missing or extra:
        raise CheckpointError(
            f"{where}: the weights do not fit the checkpoint's own config: {len(missing)} keys are missing "
            f"{missing[:2]}, {len(extra)} are unexpected {extra[:2]}."
        )
    for key, tensor in expected.items():
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{where}: {key} holds {state[key].dtype} where {tensor.dtype} is expected; quantized weights "
                "are not supported; use the original checkpoint."
            )
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {key} has shape {tuple(state[key].shape)}, but the checkpoint's own config makes it "
                f"{tuple(tensor.shape)}."
            )
    if ACTION_SCALE not in state:
        raise CheckpointError(f"{where}: it holds no normalizer for the action, so the policy cannot answer in meters.")


def _policy_options(cfg: DictConfig | Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The policy's class and its constructor's arguments, with the sampler built if it has one."""
    register_resolvers()
    config = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    try:
        options = OmegaConf.to_container(config.policy, resolve=True) if "policy" in config else None
    except OmegaConfBaseException as error:
        raise CheckpointError(f"cfg.policy cannot be resolved ({str(error).splitlines()[0]}).") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"the config has no section 'policy'; it has {', '.join(map(str, config))}.")
    target, scheduler = options.get("_target_"), options.get("noise_scheduler")
    if target in POLICY_TARGETS and "noise_scheduler" not in inspect.signature(policy_class(target)).parameters:
        return _allowed_class(options, POLICY_TARGETS, "cfg.policy")  # a policy that does not denoise
    if not isinstance(scheduler, dict):
        raise CheckpointError("cfg.policy.noise_scheduler is missing; expected a sampler of diffusers by its _target_.")
    kind, options = _allowed_class(options, POLICY_TARGETS, "cfg.policy")
    sampler = _allowed_class(scheduler, SCHEDULER_TARGETS, "cfg.policy.noise_scheduler")
    return kind, {**options, "noise_scheduler": _constructed(*sampler)}


def _allowed_class(entry: Mapping[Any, Any], targets: tuple[str, ...], where: str) -> tuple[type, dict[str, Any]]:
    """The class of an allow-listed `_target_`, and the options that go with it, checked."""
    from diffusion_policy.model.diffusion.noise_schedulers import scheduler_class  # files are read without it

    options = {str(option): value for option, value in entry.items() if option != "_target_"}
    target = entry.get("_target_")
    if target not in targets:
        raise CheckpointError(f"{where}._target_ is {target!r}; a checkpoint may only name {' or '.join(targets)}.")
    kind = policy_class(target) if target in POLICY_TARGETS else scheduler_class(target)
    known = dict(list(inspect.signature(kind.__init__).parameters.items())[1:])
    for option, value in options.items():
        if option not in known:
            closest = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {closest[0]!r}?" if closest else f"it has {', '.join(known)}."
            raise CheckpointError(f"{where}.{option} is not an option of {kind.__name__}; {hint}")
        if isinstance(value, int) and value > LARGEST.get(option, 2**31):
            raise CheckpointError(f"{where}.{option} is {value}, beyond {LARGEST.get(option, 2**31)}.")
    missing = [option for option, spec in known.items() if spec.default is spec.empty and option not in options]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}, which {kind.__name__} needs.")
    return kind, options


def _constructed(kind: type, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{kind.__name__} cannot be built from its options: {error}.") from error
