"""Files of named tensors, opened without running code from them and without reading the tensors.

`open_tensor_file` opens PyTorch's archives (`.ckpt`, `.pt`, `.pth`, `.weights`), current and from before 1.6,
safetensors, alone or in shards, and VPT's `.model` pickles. Opening reads only headers, for any size of file; a tensor
is memory-mapped on access, and its bytes are then compared with their checksum. Names of the same tensor have the same
`storage`. For any other file the error states what kind of file was found.
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
