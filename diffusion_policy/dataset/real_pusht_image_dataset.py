"""The class that the predecessor's first config names for its dataset: videos and a zarr, in an older layout.

Its seven numbers are position, rotation vector and gripper width or, with `delta_action`, differences of successive
commands, which this project's server never executes. Training on such differences reads the cache that the predecessor
made from the folder (`workspace.older_settings`) and does not use this class. Recordings of that layout are converted
once, with a declared mapping, to poses with quaternions and grippers of 0 to 1.
"""

from __future__ import annotations

from typing import Any

from diffusion_policy.commands import command
from diffusion_policy.dataset.errors import DatasetError


class RealPushTImageDataset:
    """Refuses the dataset, naming the commands that convert its recordings and train on them.

    Args:
        dataset_path: folder with replay_buffer.zarr and videos/.
        shape_meta: as in the predecessor, like all that follow.

    Raises:
        DatasetError: always.
    """

    def __init__(
        self,
        shape_meta: Any,
        dataset_path: str,
        horizon: int = 1,
        pad_before: int = 0,
        pad_after: int = 0,
        n_obs_steps: int | None = None,
        n_latency_steps: int = 0,
        use_cache: bool = False,
        seed: int = 42,
        val_ratio: float = 0.0,
        max_train_episodes: int | None = None,
        delta_action: bool = False,
    ) -> None:
        made = f"{dataset_path.rstrip('/')}.zarr"
        mapping = ("--mapping", "rotation_vector_width")
        convert = command("convert_dataset", "--input", dataset_path, "--output", made, *mapping)
        train = command("train", "--config-name=train_cogact_robot", f"task.dataset_path={made}")
        differences = " and whose actions are differences of commands (delta_action)" if delta_action else ""
        raise DatasetError(
            f"{dataset_path}: recordings of the older layout, whose seven numbers are rotation vector and gripper width"
            f"{differences}; training reads quaternions and grippers of 0 to 1, as absolute poses. Convert them once: "
            f"{convert} and train with the config of this version: {train}"
        )
