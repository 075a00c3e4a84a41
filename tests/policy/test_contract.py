"""The policy contract, tested with a policy that shares nothing with diffusion and answers the mean action."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_factory import tiny_config, write_dataset, write_tiny_checkpoint
from omegaconf import OmegaConf
from serve_factory import parsed
from torch import Tensor, nn

from diffusion_policy.checkpoint import CheckpointError, build_policy, load_policy
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes, Sampling, predict_chunks
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.policy import registry
from diffusion_policy.policy.contract import AcceleratedPolicy, Capability, DenoisingPolicy, PolicyModule
from diffusion_policy.policy.diffusion_image_policy import DiffusionImagePolicy
from diffusion_policy.policy.noise import initial_noise
from diffusion_policy.policy.registry import POLICY_TARGETS, policy_class, policy_classes
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.policy.transformer_tensors import TENSORS
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings, ServeError
from diffusion_policy.serve.stages import Stages
from diffusion_policy.spec import read_shape_meta
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.losses import BatchLoss, NoiseSampler
from diffusion_policy.workspace.optimization import make_optimizer, roles_of
from diffusion_policy.workspace.validation import FixedNoise, count_active_features, deployed_sampler

RATES = OmegaConf.create({"inherited": 1.0, "grown": 1.0, "fresh": 1.0, "layer_decay": 0.5, "obs_encoder": 1.0})
LOSS = OmegaConf.create({"gripper_weight": 1.0, "event_weight": 1.0, "event_radius": 0})
HIDING = OmegaConf.create({"gripper": 0.0, "key": "robot_gripper_state"})


class MeanAction(PolicyModule):
    """Has the contract and nothing more: no sampler, no noise, no images' features."""

    tensors = TENSORS

    def __init__(self, shape_meta: Mapping[str, Any], horizon: int, n_action_steps: int, n_obs_steps: int) -> None:
        super().__init__()
        self.shape_meta, self.spec = shape_meta, read_shape_meta(shape_meta)
        self.horizon, self.n_action_steps, self.n_obs_steps = horizon, n_action_steps, n_obs_steps
        self.action = nn.Parameter(torch.zeros(horizon, self.spec.action_dim))
        self.normalizer = LinearNormalizer()

    sequence_length = property(lambda self: self.horizon)
    first_executed = property(lambda self: self.n_obs_steps - 1)

    def lacks(self, capability: Capability) -> str | None:
        return f"there is no {capability}"

    @torch.no_grad()
    def predict_action(
        self, obs: Any, initial_noise: Any = None, generator: Any = None, before_step: Any = None
    ) -> dict[str, Tensor]:
        assert initial_noise is None
        if before_step is not None:
            before_step()
        n = len(next(iter(obs.values())))
        answer = self.normalizer["action"].unnormalize(self.action).expand(n, -1, -1)
        return {"action_pred": answer, "action": answer[:, self.first_executed :][:, : self.n_action_steps]}

    def camera_features(self, obs: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def loss(self, batch: Mapping[str, Any], draw: Mapping[str, Tensor], weights: Tensor | None = None) -> Tensor:
        assert not draw
        return (self.normalizer["action"].normalize(batch["action"]) - self.action).square().mean()

    def parameter_groups(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"params": [self.action], "lr": settings["lr"], "betas": (0.9, 0.999), "weight_decay": 0.0}]

    def layers_above(self, name: str) -> int:
        return 0

    def encoder_parameters(self) -> list[nn.Parameter]:
        return []

    def set_normalizer(self, normalizer: LinearNormalizer) -> None:
        self.normalizer.load_state_dict(normalizer.state_dict())


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The config of that policy, registered for the test."""
    target = f"{__name__}.MeanAction"
    monkeypatch.setattr(registry, "POLICY_TARGETS", (*POLICY_TARGETS, target))
    monkeypatch.setattr("diffusion_policy.checkpoint.POLICY_TARGETS", (*POLICY_TARGETS, target))
    cfg: dict[str, Any] = tiny_config()
    kept = ("shape_meta", "horizon", "n_action_steps", "n_obs_steps")
    return {**cfg, "policy": {"_target_": target, **{key: cfg["policy"][key] for key in kept}}}


@pytest.fixture
def policy(config: dict[str, Any], tmp_path: Path) -> PolicyModule:
    built = build_policy(OmegaConf.create(config)).eval()
    built.set_normalizer(load_policy(write_tiny_checkpoint(tmp_path / "other.ckpt")).normalizer)
    return built


def test_a_policy_without_a_sampler_is_built_and_keeps_the_allow_list(config: dict[str, Any]) -> None:
    assert isinstance(build_policy(OmegaConf.create(config)), MeanAction)
    config["policy"]["noise_scheduler"] = {}
    with pytest.raises(CheckpointError, match="noise_scheduler is not an option of MeanAction"):
        build_policy(OmegaConf.create(config))
    with pytest.raises(ValueError, match=r"_target_ is 'os\.system'; expected"):
        policy_class("os.system")


def test_it_has_no_sampler_and_no_noise(policy: PolicyModule) -> None:
    set_sampler(policy, "ddim", 8)
    assert initial_noise(policy, [1, 2]) is None
    assert not isinstance(policy, DenoisingPolicy)
    assert all(issubclass(kind, PolicyModule) and kind.tensors.marker for kind in policy_classes())


def test_it_learns(policy: PolicyModule) -> None:
    n, settings = 4, OmegaConf.create({"lr": 0.5})
    action = torch.rand(n, policy.horizon, 8)
    batch = Batch({"obs": {"robot_eef_pose": torch.rand(n, 2, 7)}, "action": action}, list(range(n)), range(n), 0)
    loss, optimizer = BatchLoss(policy, LOSS, HIDING), make_optimizer(policy, settings, RATES, roles_of(policy, None))
    losses = []
    for step in range(60):
        draw = NoiseSampler(policy, 0).draw(batch, 0, step)
        found = loss(batch.data, draw.sampled, draw.hidden)
        losses.append(float(found))
        found.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    assert FixedNoise(policy, n).of(torch.arange(2), torch.device("cpu")) == {}
    assert count_active_features(policy, batch.data["obs"]) is None
    weighted = OmegaConf.merge(LOSS, {"gripper_weight": 2.0})
    with pytest.raises(TrainingError, match="for this one there is no loss_weights"):
        BatchLoss(policy, weighted, HIDING)  # type: ignore[arg-type]


def test_it_is_served_by_the_plain_engine(policy: PolicyModule, caplog: pytest.LogCaptureFixture) -> None:
    engine = PolicyEngine(policy, EngineSettings(steps=3))
    assert "served by the plain path: there is no fast_engine" in caplog.text
    answer = engine.infer(parsed(), 0, None, Stages())
    expected = policy.predict_action({"robot_eef_pose": torch.zeros(1, 2, 7)})["action"][0]
    np.testing.assert_array_equal(answer.actions, expected.double().numpy())
    with pytest.raises(ServeError, match="need the fast path; this policy has none: there is no fast_engine"):
        PolicyEngine(policy, EngineSettings(steps=3, warm_start=0.5))


def test_it_is_judged_on_recordings(policy: PolicyModule, tmp_path: Path) -> None:
    class Settings:
        scheduler, steps = "ddim", 2

    recorded = RecordedEpisodes(policy, write_dataset(tmp_path / "set.zarr"))
    with deployed_sampler(policy, Settings()), torch.no_grad():  # type: ignore[arg-type]
        chunks, _ = predict_chunks(recorded, recorded.steps(0, 4), Sampling(steps=2))
    assert chunks.shape[1:] == (policy.n_action_steps, 8)
    assert (chunks == chunks[:1]).all()


def test_the_denoising_policies_of_the_registry_offer_what_the_fast_engine_asks() -> None:
    asked = {*AcceleratedPolicy.__annotations__, "denoises_in_part", "make_denoiser", "sample_shape"}
    denoising = [kind for kind in policy_classes() if issubclass(kind, DiffusionImagePolicy)]
    assert len(denoising) == 2
    for kind in denoising:
        missing = [name for name in asked if not hasattr(kind, name) and name not in _annotations(kind)]
        assert not missing, f"{kind.__name__} lacks {missing}"


def _annotations(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
