"""Real-time chunking for diffusion: a chunk that continues the previous one, which is still being executed.

While a policy computes, the arm keeps executing. When the new answer arrives, its first steps will already have been
executed from the old one (committed), and both answers cover the steps after them. Black, Galliker and Levine
(Real-Time Execution of Action Chunking Flow Policies, 2025) keep the committed steps of a flow policy and guide the
overlap with weights w that fall from 1 to 0 (their equation 5), using a gradient through the network. Here x0, the
clean sample that a denoising step predicts from x_t, is changed before the scheduler takes its step, which needs no
gradient:

    x0 <- x0 + a C e      e = w (y - x0), y previous steps; C e = (f(x_t + h e) - f(x_t)) / h, f: x_t to x0
    x0 <- w y + (1 - w) x0

The second line is inpainting of the clean sample: where w = 1, x_t continues as y at the scheduler's noise level, with
its existing noise (DDIM) or drawn given y (DDPM). It leaves the steps after y to the network, which often keeps to the
mode that its noise started in, even if y took another. The first line conditions all steps on y: by Tweedie's formula
the covariance of the clean sample given x_t is proportional to the Jacobian of f, which is symmetric for the optimal f,
so the product with e, one pass of the network at a nearby point, says where y leads the other steps (pseudo-inverse
guidance, Song et al. 2023, takes the product from the other side, by a gradient; with causal attention that would be
the wrong side). The factor a, (e e) / (e C e) over the committed steps, is the first step of conjugate gradients for
the equation C z = e. The quarter of the denoising steps with the strongest noise, in which a mode is chosen, is
corrected: two more passes for eight steps.

Legend of shapes: B batch, T steps of a sample, S its width, n previous steps, Da action width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_policy.policy.contract import NoiseScheduler
from diffusion_policy.policy.observation_batch import PolicyError

# Share of the denoising steps that are corrected; root mean square of h e at committed steps, in normalized actions;
# the share of e e that is added to e C e, so that a network that hardly responds is not followed far.
CORRECTED = 0.25
_NEARBY = 0.2
_FIRM = 1e-2


def overlap_weights(count: int, committed: int) -> Tensor:
    """(count,) weight of each previous step: 1 if committed, then c (e^c - 1) / (e - 1), with c falling to 0."""
    falls = [(count - step) / (count - committed + 1) for step in range(committed, count)]
    soft = [share * math.expm1(share) / math.expm1(1.0) for share in falls]
    return torch.tensor([1.0] * committed + soft)


class HeldChunk:
    """The previous chunk within the sample of one request: what is held, and with which weights.

    Args:
        known: (B, n, Da) normalized previous actions.
        committed: how many of them will have been executed.
        first: index in the sample of the first executed step.
        sample: (B, T, S) the request's noise; its first Da columns are the actions.
        scheduler: the denoising scheduler, with its timesteps set.

    Raises:
        PolicyError: the previous actions do not fit the sample.
    """

    def __init__(self, known: Tensor, committed: int, first: int, sample: Tensor, scheduler: NoiseScheduler) -> None:
        batch, count, width = known.shape
        n_left = sample.shape[1] - first
        if batch != len(sample) or not 0 <= committed <= count or count < 1 or not known.isfinite().all():
            raise PolicyError(
                f"previous actions are {tuple(known.shape)}, {committed} of them committed; expected "
                f"({len(sample)}, 1 or more, {width}) finite numbers, and of them 0 to {count} committed"
            )
        config = scheduler.config
        self._predicts_noise = config.prediction_type == "epsilon"
        self._clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else math.inf
        self._levels: Tensor = scheduler.alphas_cumprod
        timesteps = [int(timestep) for timestep in scheduler.timesteps]
        self._corrected = frozenset(timesteps[: int(CORRECTED * len(timesteps))])
        rows, columns = slice(first, first + count), slice(0, width)
        self._known, self._weights = torch.zeros_like(sample), torch.zeros_like(sample)
        self._known[:, rows, columns] = known[:, :n_left].to(sample)
        self._weights[:, rows, columns] = overlap_weights(count, committed)[:n_left, None].to(sample)
        self._committed, self._held = self._weights == 1, self._weights > 0
        # The response is measured at steps that no later step changes, even if only the first steps are denoised.
        self._measured = slice(first, first + max(committed, 1)), columns

    def guided(self, predict: Callable[[Tensor], Tensor], timestep: Tensor | int, sample: Tensor) -> Tensor:
        """The network's prediction for a sample (B, T, S), changed to follow the previous chunk.

        Args:
            predict: the network at this time; its result must outlive the next call.
            timestep: diffusion time, an index of the noise levels.
            sample: input of the scheduler's next step, which uses the result.
        """
        level = self._levels[timestep].to(sample)
        signal, noise = level.sqrt(), (1 - level).sqrt()
        prediction = predict(sample)
        clean = self._clean(prediction, sample, signal, noise)
        own = clean
        if int(timestep) in self._corrected:
            error = self._weights * (self._known - clean)
            size = error[:, *self._measured].square().mean(dim=(1, 2), keepdim=True).sqrt()
            reach = _NEARBY / size.clamp(min=1e-6)
            nearby = sample + reach * error
            response = (self._clean(predict(nearby), nearby, signal, noise) - clean) / reach
            clean = (clean + self._factor(error, response) * response).clamp(-self._clip, self._clip)
        clean = torch.where(self._held, torch.lerp(clean, self._known, self._weights), clean)
        if not self._predicts_noise:
            return clean
        return torch.where(clean == own, prediction, (sample - signal * clean) / noise)

    def settled(self, sample: Tensor) -> Tensor:
        """The denoised sample, with the committed steps exactly as given."""
        return torch.where(self._committed, self._known, sample)

    def _clean(self, prediction: Tensor, sample: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """The clean sample of a prediction, clipped if the scheduler clips it."""
        clean = (sample - noise * prediction) / signal if self._predicts_noise else prediction
        return clean.clamp(-self._clip, self._clip)

    def _factor(self, error: Tensor, response: Tensor) -> Tensor:
        """(B, 1, 1) how far to follow the response; 0 where the network responds in the opposite direction."""
        there = error[:, *self._measured]
        wanted = there.square().sum(dim=(1, 2), keepdim=True)
        answered = (there * response[:, *self._measured]).sum(dim=(1, 2), keepdim=True)
        return torch.where(answered > 0, wanted / (answered + _FIRM * wanted).clamp(min=1e-12), 0.0)
