"""Files of named tensors, opened without running code from them and without reading the tensors.

One door, `open_tensor_file`, for what our users have: PyTorch zip archives (`.ckpt`, `.pt`, `.pth`, `.weights`),
safetensors, alone or in shards, and VPT's `.model` pickles. Opening reads headers only, whatever the size; a
tensor is mapped from disk when somebody asks for it, and its bytes are compared with their checksum then. Names that mean the same tensor say so.
"""

from diffusion_policy.tensor_file.opened import TensorFile, TensorFileError, TensorInfo
from diffusion_policy.tensor_file.opening import open_tensor_file
from diffusion_policy.tensor_file.torch_zip import TorchArchive, read_torch_zip

__all__ = ["TensorFile", "TensorFileError", "TensorInfo", "TorchArchive", "open_tensor_file", "read_torch_zip"]
