"""Weights and settings of VPT's files: read without running code, loaded all or not at all, and accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diffusion_policy.commands import command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.model.vpt.network import VPTSettings
from diffusion_policy.tensor_file import open_tensor_file
from diffusion_policy.tensor_file.saving import save_torch_zip

AUXILIARY = "aux_value_head."
# Parts of the policy by their released names.
RELEASED = ("net.", "pi_head.", "value_head.")
# Upstream arguments that have no effect there, or have one value in every release.
_FIXED = {
    "attention_mask_style": "clipped_causal", "pointwise_use_activation": False, "recurrence_is_residual": True,
    "recurrence_type": "transformer", "use_pointwise_layer": True, "use_pre_lstm_ln": False, "single_output": False,
}  # fmt: skip
_WITHOUT_EFFECT = (
    "impala_kwargs", "init_norm_kwargs", "diff_mlp_embedding", "only_img_input", "active_reward_monitors",
    "obs_processing_width", "conv3d_params",
)  # fmt: skip
# Prefixes that other programs' wrappers put before every name.
KNOWN_PREFIXES = ("module.policy.", "mine_policy.", "policy.", "module.", "_orig_mod.")


class VPTError(WorkspaceError, ValueError):
    """Settings, weights or observations are not VPT's; says what was found and what was expected."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        path: of the file.
        file_keys: names in the file.
        model_keys: names of the policy.
        dropped: names in the file that the policy does not have, dropped by rule.
        prefix: removed from every name; may be empty.
    """

    path: str
    file_keys: int
    model_keys: int
    dropped: tuple[str, ...]
    prefix: str = ""

    def __str__(self) -> str:
        """For people: "file 139, model 134, missing 0, dropped 5 (aux_value_head.*)"."""
        dropped = f"dropped {len(self.dropped)}" + (f" ({AUXILIARY}*)" if self.dropped else "")
        repaired = f"; the prefix {self.prefix!r} was removed" if self.prefix else ""
        return f"{self.path}: file {self.file_keys}, model {self.model_keys}, missing 0, {dropped}{repaired}"


def read_settings(
    policy_kwargs: Mapping[str, Any] | None = None, pi_head_kwargs: Mapping[str, Any] | None = None
) -> VPTSettings:
    """Upstream's arguments as settings; without any, the 2x model.

    Raises:
        VPTError: an unknown argument, or a value that no release uses and this class cannot build.
    """
    known = {field.name for field in fields(VPTSettings)} - {"temperature"}
    given = dict(policy_kwargs or {})
    for name, value in list(given.items()):
        if name in _FIXED and value != _FIXED[name]:
            raise VPTError(f"{name} is {value!r}; expected {_FIXED[name]!r}, as in every release")
        if name in _FIXED or name in _WITHOUT_EFFECT:
            del given[name]
    unknown = sorted(set(given) - known) + sorted(set(pi_head_kwargs or {}) - {"temperature"})
    if unknown:
        raise VPTError(f"VPT has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))} and temperature")
    given |= {name: tuple(given[name]) for name in ("impala_chans", "img_shape") if name in given}
    temperature = float((pi_head_kwargs or {}).get("temperature", VPTSettings.temperature))
    settings = VPTSettings(**given, temperature=temperature)
    if settings.hidsize % settings.attention_heads or settings.window < 1:
        raise VPTError(
            f"hidsize {settings.hidsize} and {settings.attention_heads} attention_heads, window {settings.window}; "
            "expected a multiple, and attention_memory_size above timesteps"
        )
    return settings


def settings_of(shapes: Mapping[str, Sequence[int]], temperature: float = VPTSettings.temperature) -> VPTSettings:
    """Settings read from the shapes of a file's tensors; all but the temperature.

    Raises:
        VPTError: they are not a VPT policy's.
    """
    block = "net.recurrent_layer.blocks.0."
    try:
        hidden = shapes["net.lastlayer.layer.weight"][0]
        first = "net.img_process.cnn.stacks.{}.firstconv.layer.weight"
        stacks = [shapes[first.format(index)][0] for index in range(3)]
        bases, window = shapes[f"{block}r.orc_block.b_nd"]
        heads = shapes[f"{block}r.orc_block.r_layer.weight"][0] // bases
        layers = len({name.split(".")[3] for name in shapes if name.startswith("net.recurrent_layer.blocks.")})
        ratio = shapes[f"{block}mlp0.layer.weight"][0] // hidden
        pixels = shapes["net.img_process.cnn.dense.layer.weight"][1] // stacks[-1]
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise VPTError(f"not the tensors of a VPT policy: {error!r}; expected names such as {block}*") from error
    side = round(pixels**0.5) * 2 ** len(stacks)
    width = max(1, stacks[0] // VPTSettings.impala_chans[0])
    return VPTSettings(
        hidsize=hidden, impala_width=width, impala_chans=tuple(count // width for count in stacks),
        n_recurrence_layers=layers, attention_heads=heads, attention_memory_size=2 * window, timesteps=window,
        pointwise_ratio=ratio, img_shape=(side, side, 3), temperature=temperature,
    )  # fmt: skip


def read_model_file(path: str | Path) -> VPTSettings:
    """The settings in a released ``.model`` file, a pickle that is read without running code.

    Raises:
        VPTError: it holds no policy settings, or settings that no release has.
        WorkspaceError: it cannot be opened safely.
    """
    tree: Any = open_tensor_file(path).tree
    try:
        arguments = tree["model"]["args"]
        network, head = arguments["net"]["args"], arguments["pi_head_opts"]
        if not isinstance(network, Mapping) or not isinstance(head, Mapping):
            raise TypeError(f"{type(network).__name__} and {type(head).__name__}")
        return read_settings(network, {"temperature": float(head["temperature"])})
    except VPTError as error:
        raise VPTError(f"{path}: {error}") from error
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise VPTError(
            f"{path}: no settings of a VPT policy ({error!r}); expected model.args.net.args and pi_head_opts, as in "
            "the released .model files"
        ) from error


def check_settings(found: VPTSettings, from_file: VPTSettings, path: str | Path) -> None:
    """Check that weights have the size given by a ``.model`` file.

    Args:
        found: read from the weights' shapes.
        from_file: from the ``.model`` file.
        path: of that file.

    Raises:
        VPTError: they differ in what the shapes determine.
    """
    unstored = {"temperature", "attention_memory_size", "timesteps"}  # only the difference of the latter two is known
    pairs = {field.name: (getattr(from_file, field.name), getattr(found, field.name)) for field in fields(VPTSettings)}
    pairs = {name: pair for name, pair in pairs.items() if name not in unstored} | {
        "window": (from_file.window, found.window)
    }
    odd = [f"{name} {one} and not {other}" for name, (one, other) in pairs.items() if one != other]
    if odd:
        raise VPTError(f"{path} says {', '.join(odd)} as in the weights: it is the .model file of another size")


def check_trunk(path: str | Path, names: Mapping[str, Any]) -> None:
    """Check that the trunk's names in a file have their ``net.``.

    Raises:
        VPTError: it was stripped; says how to restore it.
    """
    if "lastlayer.layer.weight" in names and "net.lastlayer.layer.weight" not in names:
        raise VPTError(f"{path}: {_stripped(path)}")


def _stripped(path: str | Path) -> str:
    repair = command("adapt", "plan", path, "--target", "vpt", "--rules", "vpt_put_back_net")
    return (
        "'net.' was stripped from the trunk's names. Loaded with strict=False, the trunk would stay random. See which "
        f"rule puts it back: {repair}"
    )


def prefix_of(names: Mapping[str, Any]) -> str:
    """The known prefix of every policy name in the file; empty if there is none."""
    for prefix in KNOWN_PREFIXES:
        if any(name.startswith(f"{prefix}net.") for name in names):
            return prefix
    return ""


def load_weights(policy: nn.Module, path: str | Path, *, repair: bool = False) -> LoadReport:
    """Load all weights of a file into a policy, or leave the policy unchanged; see ``VPTAgent.load_weights``."""
    file = open_tensor_file(path)
    prefix = prefix_of(file.tensors)
    if prefix and not repair:
        raise VPTError(
            f"{path}: every name begins with {prefix!r}, added by a wrapper; load it with --repair (repair=True)"
        )
    own = policy.state_dict()
    named = {name.removeprefix(prefix): name for name in file.tensors}
    dropped = tuple(name for name in named if name.startswith(AUXILIARY))
    missing = [name for name in own if name not in named]
    unexpected = [name for name in named if name not in own and name not in dropped]
    if missing or unexpected:
        raise VPTError(_why(path, own, named, missing, unexpected))
    odd = [name for name in own if tuple(file.tensors[named[name]].shape) != tuple(own[name].shape)]
    if odd:
        found = tuple(file.tensors[named[odd[0]]].shape)
        raise VPTError(
            f"{path}: {len(odd)} tensors differ in shape from this policy; first {odd[0]}: {found}, expected "
            f"{tuple(own[odd[0]].shape)}. Take the size from the file: VPTAgent.from_weights({str(path)!r})"
        )
    file.integrity.check()
    policy.load_state_dict({name: file.load(named[name]) for name in own})
    return LoadReport(str(path), len(file.tensors), len(own), dropped, prefix)


def check_free(path: Path) -> None:
    """Refuse to replace a file.

    Raises:
        VPTError: there is one.
    """
    if path.exists():
        raise VPTError(f"{path} exists; give another name")


def write_weights(policy: nn.Module, path: Path) -> int:
    """Write a policy's tensors as upstream does, under the released names only; return their number.

    Raises:
        TensorFileError: it cannot be written.
    """
    state = policy.state_dict()
    released = {name: state[name].detach().cpu() for name in state if name.startswith(RELEASED)}
    save_torch_zip(path, released)
    return len(released)


def _why(
    path: str | Path, own: Mapping[str, Tensor], named: Mapping[str, str], missing: list[str], unexpected: list[str]
) -> str:
    counts = f"{path}: {len(missing)} of the policy's {len(own)} names are missing, {len(unexpected)} are unexpected"
    if missing and all(name.removeprefix("net.") in named for name in missing):
        return f"{counts}: {_stripped(path)}"
    shown = ", ".join([*missing[:2], *unexpected[:2]])
    return f"{counts} (such as {shown}); nothing was loaded"
