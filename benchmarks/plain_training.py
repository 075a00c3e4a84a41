"""A training step as the reference describes it, float32 and eager, as the baseline for ours.

It uses our network's layers (the arithmetic is the same) but none of our training code: samples are read one by
one from the zarr array and converted to float32 on the host, crops are cut image by image, AdamW and EMA are torch's
defaults and a Python loop, and each step waits for the loss.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.nn import functional

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy

Batch = dict[str, Tensor]


class PlainSamples(torch.utils.data.Dataset[Batch]):
    """Windows of a dataset, each sliced from the array on disk."""

    def __init__(self, path: Path, windows: CogActImageDataset):
        buffer = ReplayBuffer.open(path)
        self._images, self._windows = buffer["image"], windows
        self._states = {key: np.asarray(buffer[key][:]) for key in ("robot_eef_pose", "robot_gripper_state", "action")}

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Batch:
        steps = self._windows.windows.steps(index)
        observed = steps[: self._windows.n_obs_steps]
        read = np.asarray(self._images[int(observed[0]) : int(observed[-1]) + 1])[observed - observed[0]]
        sample = {"image": torch.from_numpy(np.moveaxis(read, -1, 1).astype(np.float32) / 255.0)}
        for key, values in self._states.items():
            sample[key] = torch.from_numpy(values[steps if key == "action" else observed])
        return sample


class PlainTraining:
    """Trains a copy of a policy; each part of a step is a method, so that it can be timed."""

    def __init__(
        self,
        policy: DiffusionTransformerHybridImagePolicy,
        samples: PlainSamples,
        normalizer: LinearNormalizer,
        batch_size: int,
        workers: int,
        log: Path,
    ):
        self.policy = policy.train()
        self.policy.set_normalizer(normalizer)
        self.average_policy = copy.deepcopy(policy).eval()
        self.device = policy.device
        self._loader = torch.utils.data.DataLoader(
            samples, batch_size, shuffle=True, drop_last=True, num_workers=workers,
            pin_memory=self.device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip
        self._batches = self._endless()
        groups = [
            *policy.model.get_optim_groups(weight_decay=1e-3),
            {"params": list(policy.obs_encoder.parameters()), "weight_decay": 1e-6},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self._log = log.open("w", encoding="ascii")
        self.global_step = 0

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self._loader

    def step(self) -> float:
        """Makes one update; returns its loss."""
        batch = self.data()
        features = self.encode(batch)
        action = self.policy.normalizer["action"].normalize(batch["action"])
        noise = torch.randn(action.shape, device=self.device)
        times = torch.randint(0, 100, (len(action),), device=self.device).long()
        noisy = self.policy.noise_scheduler.add_noise(action, noise, times)  # type: ignore[attr-defined]
        prediction = self.denoise(noisy, times, features)
        loss = functional.mse_loss(prediction, noise, reduction="none").mean(dim=(1, 2)).mean()
        self.backward(loss)
        self.optimize()
        self.average()
        self.global_step += 1
        self.log({"train_loss": loss.item(), "global_step": self.global_step, "lr": self.schedule.get_last_lr()[0]})
        return loss.item()

    def data(self) -> Batch:
        """Returns the next batch, on the device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in next(self._batches).items()}

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns (B, To, Do) features of randomly cropped images and states."""
        obs = self.policy.normalizer.normalize({key: value for key, value in batch.items() if key != "action"})
        flat = {key: value.flatten(0, 1) for key, value in obs.items()}
        images = flat["image"]
        height, width = self.policy.crop_shape or images.shape[-2:]
        crops = []
        for image in images:
            top = int(torch.randint(image.shape[1] - height + 1, ()))
            left = int(torch.randint(image.shape[2] - width + 1, ()))
            crops.append(image[:, top : top + height, left : left + width])
        seen = torch.relu(self.policy.obs_encoder.obs_nets["image"](torch.stack(crops)))
        features = torch.cat((seen, flat["robot_eef_pose"], flat["robot_gripper_state"]), dim=-1)
        return features.reshape(len(batch["action"]), -1, features.shape[-1])

    def denoise(self, noisy: Tensor, times: Tensor, features: Tensor) -> Tensor:
        """Returns the predicted noise."""
        return self.policy.model(noisy, times, features)

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()

    def optimize(self) -> None:
        """Applies AdamW and its schedule."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    @torch.no_grad()
    def average(self) -> None:
        """Updates the EMA, parameter by parameter."""
        decay = min(0.9999, 1 - (1 + self.global_step) ** -0.75)
        for mean, live in zip(self.average_policy.parameters(), self.policy.parameters(), strict=True):
            if live.requires_grad:
                mean.mul_(decay).add_(live, alpha=1 - decay)
            else:
                mean.copy_(live)

    def log(self, line: Mapping[str, Any]) -> None:
        """Writes one line of JSON."""
        self._log.write(json.dumps(dict(line)) + "\n")
        self._log.flush()
