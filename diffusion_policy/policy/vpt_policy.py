"""VPT's agent: the policy under the names of the released weights, and the agent that plays with it.

    agent = VPTAgent(policy_kwargs, pi_head_kwargs)
    report = agent.load_weights("foundation-model-2x.weights")   # states what was loaded and what was dropped
    agent.reset()
    action = agent.get_action({"pov": frame})                    # {"attack": 0 | 1, ..., "camera": (pitch, yaw)}

``policy_kwargs`` and ``pi_head_kwargs`` are upstream's; whatever shapes tensors is also read off a file
(``settings_of``). Weights are opened without running code.

Legend of shapes: B episodes, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_policy.commands import command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.minecraft.actions import N_BUTTONS, N_CAMERA, to_environment, to_factored
from diffusion_policy.model.vpt.attention import Memory
from diffusion_policy.model.vpt.network import ActionHeads, State, ValueHead, VPTNetwork, VPTSettings
from diffusion_policy.tensor_file import open_tensor_file

FACTORS = {"camera": N_CAMERA, "buttons": N_BUTTONS}
AUXILIARY = "aux_value_head."
# Upstream's arguments that do nothing there, or have one value in every release.
_FIXED = {
    "attention_mask_style": "clipped_causal", "pointwise_use_activation": False, "recurrence_is_residual": True,
    "recurrence_type": "transformer", "use_pointwise_layer": True, "use_pre_lstm_ln": False, "single_output": False,
}  # fmt: skip
_WITHOUT_EFFECT = (
    "impala_kwargs", "init_norm_kwargs", "diff_mlp_embedding", "only_img_input", "active_reward_monitors",
    "obs_processing_width", "conv3d_params",
)  # fmt: skip
# Prefixes that wrappers of other programs put before every name.
KNOWN_PREFIXES = ("module.policy.", "mine_policy.", "policy.", "module.", "_orig_mod.")


class VPTError(WorkspaceError, ValueError):
    """Settings, weights or observations that are not VPT's; says what was found and what was expected."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        path: of the file.
        file_keys: names in the file.
        model_keys: names of the policy.
        dropped: names of the file that the policy does not have, by rule.
        prefix: that was taken off every name; empty for none.
    """

    path: str
    file_keys: int
    model_keys: int
    dropped: tuple[str, ...]
    prefix: str = ""

    def __str__(self) -> str:
        """For people: "file 139, model 134, missing 0, dropped 5 (aux_value_head.*)"."""
        dropped = f"dropped {len(self.dropped)}" + (f" ({AUXILIARY}*)" if self.dropped else "")
        repaired = f"; the prefix {self.prefix!r} was taken off" if self.prefix else ""
        return f"{self.path}: file {self.file_keys}, model {self.model_keys}, missing 0, {dropped}{repaired}"


def read_settings(
    policy_kwargs: Mapping[str, Any] | None = None, pi_head_kwargs: Mapping[str, Any] | None = None
) -> VPTSettings:
    """Upstream's arguments as settings; the 2x model without any.

    Raises:
        VPTError: an unknown argument, or a value that no release has and this class does not build.
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
    """Settings read off the shapes of a file's tensors; only the temperature cannot be.

    Raises:
        VPTError: they are no VPT policy's.
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


class MinecraftAgentPolicy(nn.Module):
    """Network and heads under the released names: 134 tensors at four blocks."""

    def __init__(self, settings: VPTSettings | None = None):
        super().__init__()
        self.settings = settings or VPTSettings()
        self.net = VPTNetwork(self.settings)
        self.value_head = ValueHead(self.settings.hidsize)
        self.pi_head = ActionHeads(self.settings.hidsize, FACTORS, self.settings.temperature)
        self.net.reset_parameters()

    def initial_state(self, batch: int = 1) -> State:
        """The memory before the first frame."""
        weight = self.net.final_ln.weight
        empty = weight.new_zeros(batch, self.settings.window, self.settings.hidsize)
        return [Memory(None, empty, empty) for _ in range(self.settings.n_recurrence_layers)]

    def forward(
        self, observation: Mapping[str, Tensor], first: Tensor, state: Sequence[Memory]
    ) -> tuple[tuple[dict[str, Tensor], Tensor, None], State]:
        """Log-probabilities and values of a chunk of frames, and the memory after it.

        Args:
            observation: {"img": (B, T, 128, 128, 3) uint8 RGB}.
            first: (B, T) bool, true where an episode starts, wherever in the chunk.
            state: of each block.

        Returns:
            (({"camera": (B, T, 1, 121), "buttons": (B, T, 1, 8641)}, (B, T, 1) normalized values, None), state).

        Raises:
            VPTError: frames or ``first`` of another type or shape.
        """
        frames = observation["img"]
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != self.settings.img_shape:
            expected = ", ".join(map(str, self.settings.img_shape))
            raise VPTError(f"img is {frames.dtype} {tuple(frames.shape)}; expected uint8 (B, T, {expected}), RGB")
        if first.dtype != torch.bool or first.shape != frames.shape[:2]:
            raise VPTError(f"first is {first.dtype} {tuple(first.shape)}; expected bool {tuple(frames.shape[:2])}")
        latent, after = self.net(frames, first, state)
        return (self.pi_head(latent), self.value_head(latent), None), after

    def log_prob(self, log_probabilities: Mapping[str, Tensor], action: Mapping[str, Tensor]) -> Tensor:
        """(B, T) log-probability of actions (B, T, 1) by factor: the sum of both factors, as upstream counts it."""
        chosen = (
            log_probabilities[name].gather(-1, action[name][..., None]).squeeze(-1).sum(dim=-1) for name in FACTORS
        )
        return torch.stack(list(chosen)).sum(dim=0)

    def entropy(self, log_probabilities: Mapping[str, Tensor]) -> Tensor:
        """(B, T) entropy, the sum over both factors."""
        return torch.stack([-(part.exp() * part).sum(dim=(-2, -1)) for part in log_probabilities.values()]).sum(dim=0)

    def kl(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
        """(B, T, 1) KL divergence of ``one`` from ``other``, the sum over both factors."""
        parts = [(one[name].exp() * (one[name] - other[name])).sum(dim=-1) for name in FACTORS]
        return torch.stack(parts).sum(dim=0)

    def sample(
        self, log_probabilities: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Actions (B, T, 1) by factor: drawn with the generator, or the most probable without one."""
        drawn = {}
        for name, part in log_probabilities.items():
            if generator is not None:  # Gumbel's trick: the largest of log-probability and noise is a draw
                uniform = torch.rand(part.shape, generator=generator, device=part.device)
                part = part - torch.log(-torch.log(uniform.clamp(min=torch.finfo(part.dtype).tiny)))
            drawn[name] = part.argmax(dim=-1)
        return drawn


class VPTAgent:
    """A policy with its memory, one frame at a time, as users of upstream's agent know it.

    Attributes:
        policy: the network and its heads.
        hidden_state: its memory; replaced by ``reset``.
    """

    def __init__(
        self,
        policy_kwargs: Mapping[str, Any] | None = None,
        pi_head_kwargs: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.device = torch.device(device)
        self.policy = MinecraftAgentPolicy(read_settings(policy_kwargs, pi_head_kwargs)).to(self.device).eval()
        self.hidden_state = self.policy.initial_state()

    @classmethod
    def from_weights(cls, path: str | Path, device: str | torch.device = "cpu") -> VPTAgent:
        """An agent of the size that a file's shapes tell, with its weights."""
        shapes = {name: info.shape for name, info in open_tensor_file(path).tensors.items()}
        prefix = prefix_of(shapes)
        settings = settings_of({name.removeprefix(prefix): shape for name, shape in shapes.items()})
        agent = cls.__new__(cls)
        agent.device = torch.device(device)
        agent.policy = MinecraftAgentPolicy(settings).to(agent.device).eval()
        agent.hidden_state = agent.policy.initial_state()
        agent.load_weights(path, repair=bool(prefix))
        return agent

    def load_weights(self, path: str | Path, *, repair: bool = False) -> LoadReport:
        """Load all weights of a file into the policy, or none.

        Args:
            path: of a ``.weights`` file.
            repair: whether a prefix that a wrapper put before every name is taken off.

        Raises:
            VPTError: names or shapes do not match; says why, and what would settle it.
            WorkspaceError: the file cannot be opened safely.
        """
        report = load_weights(self.policy, path, repair=repair)
        self.reset()
        return report

    def reset(self) -> None:
        """Forget all frames: an episode starts."""
        self.hidden_state = self.policy.initial_state()

    @torch.inference_mode()
    def get_action(
        self, observation: Mapping[str, Any] | NDArray[np.uint8], generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """The action for one frame: {"attack": 0 | 1, ..., "camera": (2,) degrees (pitch, yaw)}.

        Args:
            observation: {"pov": (H, W, 3) uint8 RGB}, or the frame alone, also as (1, H, W, 3).
            generator: of the draw; the most probable action without one.

        Raises:
            VPTError: the frame is of another type or shape.
        """
        frame = torch.from_numpy(self._frame(observation))[None, None].to(self.device)
        first = torch.zeros(1, 1, dtype=torch.bool, device=self.device)
        (found, _, _), self.hidden_state = self.policy({"img": frame}, first, self.hidden_state)
        joint = {name: value[0, 0, 0].cpu().numpy() for name, value in self.policy.sample(found, generator).items()}
        return to_environment(to_factored(joint))

    def _frame(self, observation: Mapping[str, Any] | NDArray[np.uint8]) -> NDArray[np.uint8]:
        if isinstance(observation, Mapping) and "pov" not in observation:
            raise VPTError(f"an observation with {sorted(map(str, observation))}; expected 'pov'")
        frame = np.asarray(observation["pov"] if isinstance(observation, Mapping) else observation)
        if frame.ndim == 4 and len(frame) == 1:
            frame = frame[0]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            hint = "; it is channels first: transpose it" if frame.ndim == 3 and frame.shape[0] == 3 else ""
            raise VPTError(f"the frame is {frame.dtype} {frame.shape}; expected uint8 (H, W, 3), RGB{hint}")
        height, width, _ = self.policy.settings.img_shape
        if frame.shape[:2] != (height, width):
            frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        return np.ascontiguousarray(frame)


def prefix_of(names: Mapping[str, Any]) -> str:
    """The known prefix that stands before every name of the policy; empty for none."""
    for prefix in KNOWN_PREFIXES:
        if any(name.startswith(f"{prefix}net.") for name in names):
            return prefix
    return ""


def load_weights(policy: MinecraftAgentPolicy, path: str | Path, *, repair: bool = False) -> LoadReport:
    """Load all weights of a file into a policy, or leave the policy as it is; see ``VPTAgent.load_weights``."""
    file = open_tensor_file(path)
    prefix = prefix_of(file.tensors)
    if prefix and not repair:
        raise VPTError(f"{path}: every name begins with {prefix!r}, the habit of a wrapper; load it with repair=True")
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
            f"{path}: {len(odd)} tensors have other shapes than this policy; first {odd[0]}: {found}, expected "
            f"{tuple(own[odd[0]].shape)}. Take the size from the file: VPTAgent.from_weights({str(path)!r})"
        )
    file.integrity.check()
    policy.load_state_dict({name: file.load(named[name]) for name in own})
    return LoadReport(str(path), len(file.tensors), len(own), dropped, prefix)


def _why(
    path: str | Path, own: Mapping[str, Tensor], named: Mapping[str, str], missing: list[str], unexpected: list[str]
) -> str:
    counts = f"{path}: {len(missing)} of the policy's {len(own)} names are missing, {len(unexpected)} are unexpected"
    if missing and all(name.removeprefix("net.") in named for name in missing):
        repair = command("adapt", "plan", path, "--target", "vpt", "--rules", "vpt_put_back_net")
        return (
            f"{counts}: 'net.' was stripped from the trunk's names. Loaded with strict=False, the trunk would stay "
            f"random. See which rule puts it back: {repair}"
        )
    shown = ", ".join([*missing[:2], *unexpected[:2]])
    return f"{counts} (such as {shown}); nothing was loaded"
