"""VPT's policy under the common policy contract: it is trained, saved, opened and judged like any other.

Its tensors have the released names (134 at four blocks), with a ``normalizer.*`` that changes nothing: frames are
bytes, and actions are classes. An action is 22 numbers, ``minecraft.actions.VPT_ACTION``: 20 buttons, 0 or 1, and pitch
and yaw in degrees per step.

Legend of shapes: B episodes, T frames, F features, Da = 22, W window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_policy.minecraft.actions import (
    BUTTONS,
    VPT_ACTION,
    Factored,
    degrees_of,
    quantize,
    to_factored,
    to_joint,
)
from diffusion_policy.minecraft.minedojo import DEFAULT_INTERVAL, MineDojoSpace
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.model.vpt.attention import Memory
from diffusion_policy.model.vpt.network import State, VPTSettings
from diffusion_policy.policy.contract import Capability, Draw, Observations, PolicyMemory, PolicyModule
from diffusion_policy.policy.minedojo_head import MineDojoHead
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.sequences import sequence_loss
from diffusion_policy.policy.tensor_axes import PolicyTensors
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy
from diffusion_policy.policy.vpt_tensors import TENSORS, identity, identity_normalizer
from diffusion_policy.spec import StepSpec, read_shape_meta

LEARNS, HEADS = ("all", "heads"), ("joint", "minedojo")
_OWED = "camera_owed"  # degrees left over from rounding to the slots' interval
# A config beyond these limits is a mistake, or malicious.
_MOST_BLOCKS, _MOST_WIDTH, _MOST_WINDOW = 64, 16_384, 65_536


class VPTImagePolicy(MinecraftAgentPolicy, PolicyModule):
    """Frames in, buttons and camera out, with a memory of earlier frames.

    Every option is an attribute of the same name.

    Args:
        shape_meta: one camera, (3, H, W) with H = W, 128 in every release, and the 22 numbers of ``VPT_ACTION``.
        horizon: frames of a chunk in training; attention reaches ``window`` frames back, across chunks.
        n_obs_steps: frames given to :meth:`predict_action`, which has no memory.
        n_action_steps: 1; VPT answers each frame.
        hidsize, impala_width, impala_chans, n_recurrence_layers, attention_heads, pointwise_ratio: upstream's
            arguments; by default the 2x model.
        window: frames that a frame sees, itself included; upstream's attention_memory_size - timesteps.
        temperature: divisor of the logits.
        learns: "all", or "heads": the trunk gets no gradient, and stays fixed.
        head: the head that learns and answers. "joint": VPT's own, two classes; "minedojo": one linear layer for each
            of MineDojo's slots, under its own names (``minedojo_head``), while VPT's head stays fixed.
        camera_interval: degrees between neighboring choices of a camera slot.

    Raises:
        PolicyError: the camera, the actions or the sizes are not VPT's.
    """

    tensors: ClassVar[PolicyTensors] = TENSORS

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        horizon: int,
        n_obs_steps: int = 1,
        n_action_steps: int = 1,
        hidsize: int = VPTSettings.hidsize,
        impala_width: int = VPTSettings.impala_width,
        impala_chans: Sequence[int] = VPTSettings.impala_chans,
        n_recurrence_layers: int = VPTSettings.n_recurrence_layers,
        attention_heads: int = VPTSettings.attention_heads,
        pointwise_ratio: int = VPTSettings.pointwise_ratio,
        window: int = VPTSettings.attention_memory_size - VPTSettings.timesteps,
        temperature: float = VPTSettings.temperature,
        learns: str = LEARNS[0],
        head: str = HEADS[0],
        camera_interval: float = DEFAULT_INTERVAL,
    ) -> None:
        spec = read_shape_meta(shape_meta)
        side = _checked_side(spec)
        for name, value, known in (("learns", learns, LEARNS), ("head", head, HEADS)):
            if value not in known:
                raise PolicyError(f"{name} is {value!r}; expected {' or '.join(known)}")
        if horizon < 1 or n_obs_steps < 1 or n_action_steps != 1:
            raise PolicyError(
                f"horizon {horizon}, n_obs_steps {n_obs_steps}, n_action_steps {n_action_steps}; expected at least 1, "
                "at least 1, and 1: VPT answers each frame with one action"
            )
        settings = VPTSettings(
            hidsize, impala_width, tuple(impala_chans), n_recurrence_layers, attention_heads, 2 * window, window,
            pointwise_ratio, (side, side, 3), temperature,
        )  # fmt: skip
        super().__init__(_checked_sizes(settings))
        del self._dummy_variable  # released files do not have it
        self.shape_meta, self.spec = shape_meta, spec
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.hidsize, self.impala_width, self.impala_chans = hidsize, impala_width, tuple(impala_chans)
        self.n_recurrence_layers, self.attention_heads = n_recurrence_layers, attention_heads
        self.pointwise_ratio, self.window, self.temperature = pointwise_ratio, window, temperature
        self.learns, self.head, self.camera_interval = learns, head, camera_interval
        self.minedojo_head = MineDojoHead(hidsize, MineDojoSpace(camera_interval)) if head == "minedojo" else None
        self.camera = spec.rgb[0].key
        self.normalizer = identity_normalizer(spec)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.net.final_ln.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.net.final_ln.weight.dtype

    @property
    def sequence_length(self) -> int:
        """One action per answer."""
        return 1

    @property
    def first_executed(self) -> int:
        """The action belongs to the newest frame."""
        return 0

    def lacks(self, capability: Capability) -> str | None:
        """Nothing is denoised, and classes have no numbers to weight."""
        return "actions are classes" if capability == "loss_weights" else "nothing is denoised"

    # ---- memory ----

    def initial_memory(self, n: int) -> PolicyMemory:
        """The memory of n episodes before their first frame: by block (n, 1, W) bool, keys and values (n, W, F)."""
        hidden = torch.zeros(n, 1, self.window, dtype=torch.bool, device=self.device)
        memory = as_memory([Memory(hidden, block.keys, block.values) for block in self.initial_state(n)])
        owed = {} if self.minedojo_head is None else {_OWED: torch.zeros(n, 2, dtype=torch.float64)}
        return {**memory, **owed}

    def _latent(self, obs: Observations, first: Tensor, memory: PolicyMemory) -> tuple[Tensor, PolicyMemory]:
        """Latents (B, T, F) of frames (B, T, 3, H, W) uint8, and the memory after them."""
        if self.camera not in obs:
            raise PolicyError(f"observation lacks {self.camera!r}; it has {sorted(obs)}")
        frames, (height, width, _) = obs[self.camera], self.settings.img_shape
        if frames.dtype != torch.uint8 or frames.ndim != 5 or tuple(frames.shape[2:]) != (3, height, width):
            raise PolicyError(
                f"{self.camera!r} is {frames.dtype} {tuple(frames.shape)}; expected uint8 (B, T, 3, {height}, {width})"
            )
        if first.dtype != torch.bool or first.shape != frames.shape[:2]:
            raise PolicyError(f"first is {first.dtype} {tuple(first.shape)}; expected bool {tuple(frames.shape[:2])}")
        frames = frames.to(self.device).permute(0, 1, 3, 4, 2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns == "all"):
            latent, state = self.net(frames, first.to(self.device), as_state(memory))
        return latent, {**memory, **as_memory(state)}

    def log_probabilities(
        self, obs: Observations, first: Tensor, memory: PolicyMemory
    ) -> tuple[dict[str, Tensor], PolicyMemory]:
        """Log-probabilities of each factor; see `contract.RecurrentPolicy`."""
        latent, memory = self._latent(obs, first, memory)
        if self.minedojo_head is not None:
            return self.minedojo_head(latent), memory
        return {name: part[:, :, 0] for name, part in self.pi_head(latent).items()}, memory

    def classes_of(self, action: Tensor, first: Tensor, memory: PolicyMemory) -> tuple[dict[str, Tensor], PolicyMemory]:
        """Actions (B, T, 22) -> class of each factor (B, T) int64."""
        numbers = action.detach().cpu().numpy()
        if self.minedojo_head is not None:
            starts, owed = first.cpu().numpy(), memory[_OWED].cpu().numpy()
            slots, left = self.minedojo_head.classes_of(numbers, starts, owed)
            found = {name: torch.from_numpy(value).to(self.device) for name, value in slots.items()}
            return found, {**memory, _OWED: torch.from_numpy(left)}
        split = len(BUTTONS)
        joint = to_joint(Factored((numbers[..., :split] > 0.5).astype(np.int64), quantize(numbers[..., split:])))
        return {name: torch.from_numpy(value).to(self.device) for name, value in joint.items()}, memory

    def action_of(self, classes: Mapping[str, Tensor]) -> Tensor:
        """Class of each factor (B, T) -> actions (B, T, 22) float32."""
        if self.minedojo_head is not None:
            return torch.from_numpy(self.minedojo_head.numbers_of(classes)).to(self.device)
        factored = to_factored({name: value.cpu().numpy() for name, value in classes.items()})
        numbers = np.concatenate([factored.buttons, degrees_of(factored.camera)], axis=-1)
        return torch.from_numpy(numbers.astype(np.float32)).to(self.device)

    def answer(
        self, obs: Observations, first: Tensor, memory: PolicyMemory, generator: torch.Generator | None = None
    ) -> tuple[Tensor, PolicyMemory]:
        """Actions (B, T, 22) for frames in order: drawn with the generator, or the most probable without one."""
        with torch.no_grad():
            found, memory = self.log_probabilities(obs, first, memory)
            return self.action_of(self.sample(found, generator)), memory

    # ---- the contract of all policies ----

    @torch.no_grad()
    def predict_action(
        self,
        obs: Observations,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> dict[str, Tensor]:
        """The action for the last of To frames, without memory of any before them; see `contract.Policy`."""
        frames = {self.camera: obs[self.camera][:, : self.n_obs_steps]} if self.camera in obs else obs
        n = len(next(iter(frames.values())))
        if before_step is not None:
            before_step()
        actions, _ = self.answer(frames, self._starts(n, self.n_obs_steps), self.initial_memory(n), generator)
        return {"action": actions[:, -1:], "action_pred": actions[:, -1:]}

    @torch.no_grad()
    def camera_features(self, obs: Observations, generator: torch.Generator) -> dict[str, Tensor]:
        """The latent (B, F) of the first frame."""
        n = len(obs[self.camera])
        latent, _ = self._latent({self.camera: obs[self.camera][:, :1]}, self._starts(n, 1), self.initial_memory(n))
        return {self.camera: latent[:, 0]}

    def _starts(self, n: int, steps: int) -> Tensor:
        """(n, steps) bool: the first frame begins an episode."""
        first = torch.zeros(n, steps, dtype=torch.bool, device=self.device)
        first[:, 0] = True
        return first

    def draw(self, n: int, generator: torch.Generator) -> Draw:
        """Empty: the loss needs no random numbers."""
        return {}

    def loss(self, batch: Mapping[str, Any], draw: Draw, weights: Tensor | None = None) -> Tensor:
        """Mean of -(log p of the buttons + log p of the camera), over chunks that start without memory."""
        n, steps = batch["action"].shape[:2]
        return sequence_loss(self, {**batch, "first": self._starts(n, steps)}, self.initial_memory(n))[0]

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One group of everything that learns; the value head gets no gradient from cloning, so it stays fixed."""
        rests = () if self.learns == "all" else ("net.",)
        learning = [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(rests)]
        betas = tuple(settings["betas"])
        return [{"params": learning, "lr": settings["lr"], "betas": betas, "weight_decay": settings["weight_decay"]}]

    def layers_above(self, name: str) -> int:
        """Heads first, then the last layers, the blocks from last to first, and the convolutions."""
        part, _, rest = name.partition(".")
        if part != "net":
            return 0
        if not rest.startswith(("recurrent_layer.blocks.", "img_process.")):
            return 1
        if rest.startswith("img_process."):
            return self.n_recurrence_layers + 2
        return 1 + self.n_recurrence_layers - int(rest.split(".")[2])

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the convolutions."""
        return list(self.net.img_process.parameters())

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        """Keep the statistics of the data; nothing is scaled."""
        for key in (self.camera, "action"):
            self.normalizer[key] = identity(
                {name: value.detach() for name, value in normalizer[key].get_input_stats().items()}
            )
        self.normalizer.to(self.device)


def _checked_side(spec: StepSpec) -> int:
    """Height and width of the one camera."""
    if spec.action_names != VPT_ACTION:
        raise PolicyError(f"the action is {list(spec.action_names)}; VPT's is {list(VPT_ACTION)}: use task=minecraft")
    if len(spec.obs) != 1 or len(spec.rgb) != 1:
        raise PolicyError(f"it observes {[field.key for field in spec.obs]}; VPT sees one camera and nothing else")
    channels, height, width = spec.rgb[0].shape
    if channels != 3 or height != width:
        raise PolicyError(f"{spec.rgb[0].key!r} is {spec.rgb[0].shape}; expected (3, 128, 128), or another square")
    return height


def _checked_sizes(settings: VPTSettings) -> VPTSettings:
    """The settings, if their sizes are valid."""
    counts = {
        "hidsize": (settings.hidsize, _MOST_WIDTH), "impala_width": (settings.impala_width, _MOST_WIDTH),
        "n_recurrence_layers": (settings.n_recurrence_layers, _MOST_BLOCKS),
        "attention_heads": (settings.attention_heads, settings.hidsize),
        "pointwise_ratio": (settings.pointwise_ratio, _MOST_BLOCKS), "window": (settings.window, _MOST_WINDOW),
    }  # fmt: skip
    for name, (value, most) in counts.items():
        if not 1 <= value <= most:
            raise PolicyError(f"{name} is {value}; expected 1 to {most}")
    if settings.hidsize % settings.attention_heads:
        raise PolicyError(
            f"hidsize {settings.hidsize} cannot be split into {settings.attention_heads} heads; choose "
            "attention_heads that divide it"
        )
    if len(settings.impala_chans) != 3 or not all(1 <= count <= _MOST_WIDTH for count in settings.impala_chans):
        raise PolicyError(f"impala_chans is {list(settings.impala_chans)}; expected channels of three stacks")
    if settings.temperature <= 0:
        raise PolicyError(f"temperature is {settings.temperature}; expected above 0")
    return settings


def as_memory(state: State) -> PolicyMemory:
    """A network's state as named tensors."""
    found: PolicyMemory = {}
    for number, block in enumerate(state):
        assert block.mask is not None
        found |= {f"{number}.mask": block.mask, f"{number}.keys": block.keys, f"{number}.values": block.values}
    return found


def as_state(memory: PolicyMemory) -> State:
    """Inverse of :func:`as_memory`."""
    blocks = sum(name.endswith(".mask") for name in memory)
    return [Memory(*(memory[f"{number}.{part}"] for part in ("mask", "keys", "values"))) for number in range(blocks)]
