"""Files of named tensors, opened without running code from them and without reading the tensors.

One way in, `open_tensor_file`, for what our users have: PyTorch's archives (`.ckpt`, `.pt`, `.pth`, `.weights`) of
today and from before 1.6, safetensors, alone or in shards, and VPT's `.model` pickles. Opening reads headers only,
whatever the size; a tensor is mapped from disk when somebody asks for it, and its bytes are compared with their
checksum then. Names that mean the same tensor say so. Anything else is named for what it is.
"""

from diffusion_policy.tensor_file.opened import TensorFile, TensorFileError, TensorInfo
from diffusion_policy.tensor_file.opening import open_tensor_file, read_torch
from diffusion_policy.tensor_file.torch_zip import TorchArchive, read_torch_zip

__all__ = [
    "TensorFile",
    "TensorFileError",
    "TensorInfo",
    "TorchArchive",
    "open_tensor_file",
    "read_torch",
    "read_torch_zip",
]
