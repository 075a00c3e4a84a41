"""How image chunks are packed on disk, by name, for zarr formats 2 and 3.

`blosc` and `none` preserve the pixels exactly; `jpeg2k`, `jpeg` and `jpegxl` need not (their `level` is a quality), and
conversions report how much they change. Format 2 takes numcodecs objects; format 3 has no image codecs, so importing
this module registers `ImageChunkCodec` for them: datasets that use one open wherever this package is imported, and so
do old files packed with `imagecodecs_jpeg2k`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import imagecodecs.numcodecs
import numcodecs
import numpy as np
from numcodecs.abc import Codec
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs import BloscCodec
from zarr.registry import register_codec

from diffusion_policy.errors import WorkspaceError

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.common import JSON

imagecodecs.numcodecs.register_codecs(verbose=False)
# The decoder of lossy frames: other versions may give other last bits.
DECODER = f"imagecodecs {imagecodecs.__version__}"
LOSSLESS = ("blosc", "none")


class _Sparse:
    """Writes into a dataset only those arguments of an image codec that differ from their defaults.

    Releases of imagecodecs add arguments, and older ones refuse names that they do not know, whatever their values.
    """

    def get_config(self) -> dict[str, Any]:
        """The codec's name and its non-default arguments."""
        usual = vars(type(self)())
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return {key: value for key, value in config.items() if key == "id" or value != usual.get(key)}


class _Jpeg(_Sparse, imagecodecs.numcodecs.Jpeg):
    pass


class _Jpeg2k(_Sparse, imagecodecs.numcodecs.Jpeg2k):
    pass


class _Jpegxl(_Sparse, imagecodecs.numcodecs.Jpegxl):
    pass


for _kind in (_Jpeg, _Jpeg2k, _Jpegxl):
    numcodecs.register_codec(_kind)


class CodecError(WorkspaceError):
    """An unknown codec, or a level outside its range."""


@dataclass(frozen=True)
class ImageCodec:
    """A way to pack one frame.

    Attributes:
        name: its name on the command line.
        level: its compression level or quality, within `levels`.
    """

    name: str
    level: int

    @property
    def lossless(self) -> bool:
        """Whether the pixels are preserved exactly."""
        return is_lossless(self.name)


def is_lossless(name: str) -> bool:
    """Whether the codec of that name preserves the pixels exactly."""
    return name in LOSSLESS


LEVELS: dict[str, tuple[int, int, int]] = {
    "blosc": (0, 9, 1),
    "none": (0, 0, 0),
    "jpeg2k": (1, 100, 50),
    "jpeg": (1, 100, 95),
    "jpegxl": (1, 100, 90),
}
"""Per codec the lowest, highest and default level: Blosc's effort, JPEG 2000's PSNR in dB, the others' quality."""


def image_codec(name: str = "blosc", level: int | None = None) -> ImageCodec:
    """The codec of that name, at its default level if none is given.

    Raises:
        CodecError: no such codec, or a level outside its range.
    """
    if name not in LEVELS:
        raise CodecError(f"no codec {name!r}; there are {', '.join(LEVELS)}")
    lowest, highest, default = LEVELS[name]
    level = default if level is None else level
    if not lowest <= level <= highest:
        raise CodecError(f"codec {name!r} has no level {level}; expected {lowest} to {highest}")
    return ImageCodec(name, level)


def zarr_arguments(codec: ImageCodec, zarr_format: int) -> dict[str, Any]:
    """Arguments of `zarr.Group.create_array` that pack chunks (1, H, W, 3) uint8 with `codec`.

    Blosc is zstd behind a bit shuffle: the smallest on frames of a real robot that unpacks in 0.3 ms (docs/data.md).
    """
    if codec.name == "none":
        return {"compressors": None}
    if codec.name == "blosc":
        if zarr_format == 2:
            return {"compressors": numcodecs.Blosc("zstd", clevel=codec.level, shuffle=numcodecs.Blosc.BITSHUFFLE)}
        return {"compressors": BloscCodec(cname="zstd", clevel=codec.level, shuffle="bitshuffle", typesize=1)}
    if zarr_format == 2:
        return {"compressors": numcodecs.get_codec(_image_configuration(codec))}
    return {"serializer": ImageChunkCodec(_image_configuration(codec)), "compressors": None}


def _image_configuration(codec: ImageCodec) -> dict[str, JSON]:
    """numcodecs configuration; one thread per frame, since frames are packed and unpacked in parallel."""
    configurations: dict[str, dict[str, JSON]] = {
        "jpeg2k": {"level": codec.level, "numthreads": 1},
        "jpeg": {"level": codec.level},
        "jpegxl": {"level": codec.level, "lossless": False, "numthreads": 1},
    }
    return {"id": f"imagecodecs_{codec.name}", **configurations[codec.name]}


class ImageChunkCodec(ArrayBytesCodec):
    """A numcodecs image codec as the serializer of a format-3 array whose chunks are single frames (1, H, W, 3)."""

    NAME = "diffusion_policy.image"
    is_fixed_size = False

    def __init__(self, configuration: dict[str, JSON]) -> None:
        self.configuration = configuration
        self._codec: Codec = numcodecs.get_codec(configuration)

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Build the codec from the entry in an array's metadata."""
        configuration = data.get("configuration")
        if not isinstance(configuration, dict):
            raise CodecError(f"codec {cls.NAME!r} has no configuration; the array's metadata is damaged")
        return cls(configuration)

    def to_dict(self) -> dict[str, JSON]:
        """The entry in an array's metadata."""
        return {"name": self.NAME, "configuration": self.configuration}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageChunkCodec) and other.configuration == self.configuration

    def __hash__(self) -> int:
        return hash(repr(self.configuration))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before packing; zarr needs it only for fixed-size codecs."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        frame = await asyncio.to_thread(self._codec.decode, chunk_data.to_bytes())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(np.asarray(frame).reshape(chunk_spec.shape))

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        packed = await asyncio.to_thread(self._codec.encode, np.ascontiguousarray(chunk_data.as_numpy_array()))
        return chunk_spec.prototype.buffer.from_bytes(packed)


register_codec(ImageChunkCodec.NAME, ImageChunkCodec)
