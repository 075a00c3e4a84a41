"""A denoising step as a CUDA graph: recorded once, then launched as a whole.

One step is about two hundred kernels of microseconds each; when they are launched one by one, the CPU is the
bottleneck. A graph replays them in one call, on the memory that they were recorded with. The inputs of a call (sample,
condition, time) are first written to that memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_policy.policy.contract import RecordableDenoiser

# The first calls choose kernels and allocate workspaces, so they must not be recorded.
_WARM_UP_CALLS = 3


class GraphedDenoiser:
    """A denoiser on a CUDA device whose step is replayed as a graph.

    Args:
        denoiser: on a CUDA device; its timesteps are set.
        timestep: any of them, to record with; a replay reads the time from memory, so it works for all of them.

    Raises:
        RuntimeError: the step cannot be recorded on this device.
    """

    def __init__(self, denoiser: RecordableDenoiser, timestep: int) -> None:
        self._denoiser = denoiser
        self._sample = torch.zeros(denoiser.sample_shape, device=denoiser.device)
        denoiser.set_time(timestep)
        stream = torch.cuda.Stream(denoiser.device)
        stream.wait_stream(torch.cuda.current_stream(denoiser.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                denoiser.step(self._sample)
        torch.cuda.current_stream(denoiser.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._noise = denoiser.step(self._sample)

    def set_condition(self, features: Tensor) -> None:
        """Writes the features (To, Do) of one request into the recorded memory."""
        self._denoiser.set_condition(features)

    def predict(self, sample: Tensor, timestep: int) -> Tensor:
        """Predicts the noise in (1, t, Da) at a timestep; the result is valid until the next call."""
        self._denoiser.set_time(timestep)
        self._sample.copy_(sample)
        self._graph.replay()
        return self._noise
