"""The compiled functions of the C++ files in this folder, taking tensors as arguments.

They are built when the package is installed, if a C++ compiler with OpenMP is available, and share torch's threads.
Callers check :func:`why_unavailable` first. All tensors are float32 (matrices may be bf16) on the CPU,
contiguous, channels last: images (N, H, W, C). Points are (Q, P, C): Q numbers of each of P tiles and C channels (see
:mod:`convolution`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

GROUP = 16  # channels in each group of GroupNorm
LANES = 8  # the channels of points and the rows of attention are multiples of it
STRIP = 16  # the columns of a product are a multiple of it
NO_AVX2 = "this CPU has no AVX2"
THEN = ("write", "add", "gelu")  # what happens with a product


@cache
def why_unavailable() -> str | None:
    """Why this installation or this CPU cannot use them; None if it can."""
    library = _library_path()
    if library is None:
        return "they were not built when diffusion_policy was installed, because there was no C++ compiler with OpenMP"
    sources = [*library.parent.glob("*.cpp"), *library.parent.glob("*.h")]
    if any(source.stat().st_mtime > library.stat().st_mtime for source in sources):
        return f"{library.name} is older than its sources; install diffusion_policy again (make setup)"
    if platform.machine() in ("x86_64", "AMD64") and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return NO_AVX2
    return None


def _library_path() -> Path | None:
    built = importlib.util.find_spec("diffusion_policy.model.cpu.kernels._compiled")
    return None if built is None or built.origin is None else Path(built.origin)


@cache
def _library() -> ctypes.CDLL:
    path = _library_path()
    assert path is not None, why_unavailable()
    return ctypes.CDLL(str(path))


def _address(tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> ctypes.c_void_p:
    """The address of a tensor's numbers.

    Raises:
        ValueError: its shape, type or memory order is not what the function reads.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        order = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise ValueError(
            f"found {order} {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; expected contiguous {dtype} "
            f"{shape} on the CPU"
        )
    return ctypes.c_void_p(tensor.data_ptr())


def _check_vectors(size: int) -> None:
    """Check that a size, which is processed in whole vectors, is a multiple of their length.

    Raises:
        ValueError: it is not.
    """
    if size % LANES:
        raise ValueError(f"found rows of {size} numbers; expected a multiple of {LANES}")


def channels_last(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), contiguous; without a copy if memory is already in that order."""
    return images.permute(0, 2, 3, 1).contiguous()


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def group_norm(
    images: Tensor, weight: Tensor, bias: Tensor, eps: float, shortcut: Tensor | None = None, *, rectify: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """GroupNorm over groups of 16 channels, then the shortcut is added, then ReLU.

    Returns:
        The result (N, H, W, C); means and 1 / standard deviations (N, C / 16), which the gradients need.
    """
    n, height, width, channels = images.shape
    y = torch.empty_like(images)
    mean, rstd = (images.new_empty(n, channels // GROUP) for _ in range(2))
    _library().group_norm(
        _address(images, *y.shape), _address(weight, channels), _address(bias, channels), _address(shortcut, *y.shape),
        _address(y, *y.shape), _address(mean, *mean.shape), _address(rstd, *mean.shape),
        *_sizes(n, height * width, channels), ctypes.c_double(eps), int(rectify),
    )  # fmt: skip
    return y, mean, rstd


def group_norm_gradients(
    incoming: Tensor, images: Tensor, y: Tensor | None, weight: Tensor, mean: Tensor, rstd: Tensor, *, shortcut: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of images, of the shortcut (None without one), weight (C,) and bias (C,) of :func:`group_norm`.

    ``y`` is its result after ReLU, or None if there was no ReLU.
    """
    n, height, width, channels = images.shape
    of_images = torch.empty_like(images)
    of_shortcut = torch.empty_like(images) if shortcut else None
    of_weight, of_bias = (images.new_empty(n, channels) for _ in range(2))
    shape, groups = images.shape, (n, channels // GROUP)
    _library().group_norm_gradients(
        _address(incoming, *shape), _address(images, *shape), _address(y, *shape), _address(weight, channels),
        _address(mean, *groups), _address(rstd, *groups), _address(of_images, *shape), _address(of_shortcut, *shape),
        _address(of_weight, n, channels), _address(of_bias, n, channels), *_sizes(n, height * width, channels),
    )  # fmt: skip
    return of_images, of_shortcut, of_weight.sum(0), of_bias.sum(0)


def group_norm_pool(images: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """GroupNorm over groups of 16 channels, ReLU, maximum over 3x3 pixels at stride 2 (padding 1).

    Returns:
        The maxima (N, ceil(H/2), ceil(W/2), C); from which of the nine pixels each came, 9 for none above zero (uint8);
        means and 1 / standard deviations (N, C / 16).
    """
    n, height, width, channels = images.shape
    pooled = images.new_empty(n, (height + 1) // 2, (width + 1) // 2, channels)
    origin = torch.empty_like(pooled, dtype=torch.uint8)
    mean, rstd = (images.new_empty(n, channels // GROUP) for _ in range(2))
    _library().group_norm_pool(
        _address(images, *images.shape), _address(weight, channels), _address(bias, channels),
        _address(pooled, *pooled.shape), _address(origin, *pooled.shape, dtype=torch.uint8),
        _address(mean, *mean.shape), _address(rstd, *mean.shape), *_sizes(n, height, width, channels),
        ctypes.c_double(eps),
    )  # fmt: skip
    return pooled, origin, mean, rstd


def group_norm_pool_gradients(
    incoming: Tensor, images: Tensor, origin: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images, weight (C,) and bias (C,) of :func:`group_norm_pool`."""
    n, height, width, channels = images.shape
    of_images = torch.empty_like(images)
    of_weight, of_bias = (images.new_empty(n, channels) for _ in range(2))
    small, groups = (n, (height + 1) // 2, (width + 1) // 2, channels), (n, channels // GROUP)
    _library().group_norm_pool_gradients(
        _address(incoming, *small), _address(images, *images.shape), _address(origin, *small, dtype=torch.uint8),
        _address(weight, channels), _address(mean, *groups), _address(rstd, *groups),
        _address(of_images, *images.shape), _address(of_weight, n, channels), _address(of_bias, n, channels),
        *_sizes(n, height, width, channels),
    )  # fmt: skip
    return of_images, of_weight.sum(0), of_bias.sum(0)


def cpu_has(*instructions: str) -> bool:
    """Whether the CPU has one of these instruction sets, by torch's names; older torch does not say."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(capabilities.get(name)) for name in instructions)


@cache
def multiplies_bf16() -> bool:
    """Whether products can use bf16: the CPU has instructions for it, and the compiler knew them."""
    return cpu_has("avx512_bf16") and why_unavailable() is None and hasattr(_library(), "bf16_product")


def strips_of(weight: Tensor) -> Tensor:
    """Matrices (..., K, N) in the order in which products read them: (..., N / 16, K, 16).

    bf16 matrices, for which K is even, have two rows interleaved: (..., N / 16, K / 2, 16, 2).
    """
    if weight.dtype == torch.bfloat16:
        pairs = weight.unflatten(-1, (-1, STRIP)).unflatten(-3, (-1, 2))  # (..., K / 2, 2, N / 16, 16)
        return pairs.movedim((-2, -4, -1, -3), (-4, -3, -2, -1)).contiguous()
    return weight.unflatten(-1, (-1, STRIP)).movedim(-2, -3).contiguous()


@dataclass(frozen=True)
class Prepared:
    """A call with all arguments bound. It works on these very tensors, with their contents at the time of the call."""

    run: Callable[[], object]
    tensors: tuple[Tensor | None, ...]

    def __call__(self) -> None:
        """Run it."""
        self.run()


def prepare_product(
    x: Tensor, strips: Tensor, out: Tensor, bias: Tensor | None = None, *, then: str = "write"
) -> Prepared:
    """A call that writes x (..., M, K) times matrices in strips, plus bias (N,), to ``out`` (..., M, N).

    ``then`` "add" adds it there instead, and "gelu" writes its GELU. With strips of bf16, x is rounded to bf16 as well,
    and K is a multiple of 16; sums are of float32.

    For few rows: each matrix is read once, in memory order. A row's sums do not depend on the
    number of rows.
    """
    *number, rows, depth = x.shape
    halves = strips.dtype == torch.bfloat16
    columns = strips.shape[len(number)] * STRIP
    in_strip = (depth // 2, STRIP, 2) if halves else (depth, STRIP)
    rounded = torch.empty_like(x, dtype=torch.bfloat16) if halves else None
    if halves and depth % STRIP:
        raise ValueError(f"found products of {depth} numbers; expected a multiple of {STRIP} in bf16")
    run = partial(
        _library().bf16_product if halves else _library().product, _address(x, *x.shape),
        _address(strips, *number, columns // STRIP, *in_strip, dtype=strips.dtype), _address(bias, columns),
        _address(out, *number, rows, columns), *_sizes(math.prod(number), rows, depth, columns), THEN.index(then),
        *([] if rounded is None else [_address(rounded, *x.shape, dtype=torch.bfloat16)]),
    )  # fmt: skip
    return Prepared(run, (x, strips, out, bias, rounded))


def product(x: Tensor, strips: Tensor) -> Tensor:
    """x (..., M, K) times matrices in strips (..., N / 16, K, 16) -> (..., M, N)."""
    out = x.new_empty(*x.shape[:-1], strips.shape[x.ndim - 2] * STRIP)
    prepare_product(x, strips, out)()
    return out


def prepare_normalization(x: Tensor, out: Tensor, eps: float) -> Prepared:
    """A call that writes the rows of x (M, N), each at mean 0 and variance 1, to ``out`` (M, N)."""
    _check_vectors(x.shape[1])
    run = partial(
        _library().normalize_rows, _address(x, *x.shape), _address(out, *x.shape), *_sizes(*x.shape),
        ctypes.c_double(eps),
    )  # fmt: skip
    return Prepared(run, (x, out))


def prepare_self_attention(qkv: Tensor, mask: Tensor, out: Tensor) -> Prepared:
    """A call that writes attention over t tokens, ``qkv`` (t, 3, H, d), to ``out`` (t, H, d); mask (t, t) is added."""
    rows, _, heads, size = qkv.shape
    _check_vectors(size)
    run = partial(
        _library().self_attention, _address(qkv, rows, 3, heads, size), _address(mask, rows, rows),
        _address(out, rows, heads, size), *_sizes(rows, heads, size), ctypes.c_double(size**-0.5),
    )  # fmt: skip
    return Prepared(run, (qkv, mask, out))


def prepare_cross_attention(
    x: Tensor, keys: Tensor, key_bias: Tensor, mask: Tensor, values: Tensor, bias: Tensor, out: Tensor
) -> Prepared:
    """A call that adds to ``out`` (t, E) the result of x (t, E) attending to S tokens, and bias (E,).

    Keys and values (H, S, E) include the projections around them; key_bias (H, S) and mask (t, H, S) are added to the
    scores.
    """
    rows, width = x.shape
    heads, tokens, _ = keys.shape
    _check_vectors(width)
    run = partial(
        _library().cross_attention, _address(x, rows, width), _address(keys, heads, tokens, width),
        _address(key_bias, heads, tokens), _address(mask, rows, heads, tokens), _address(values, heads, tokens, width),
        _address(bias, width), _address(out, rows, width), *_sizes(rows, width, heads, tokens),
    )  # fmt: skip
    return Prepared(run, (x, keys, key_bias, mask, values, bias, out))


def input_points(images: Tensor, tile: int) -> Tensor:
    """The input of a 3x3 convolution with padding 1 on images (N, H, W, C), at the (tile + 2)^2 points of each tile."""
    return _to_points("input_points", images, tile)


def gradient_points(gradient: Tensor, tile: int) -> Tensor:
    """The gradient of :func:`write_output`: of images (N, H, W, C) to that of points."""
    return _to_points("gradient_points", gradient, tile)


def _to_points(name: str, images: Tensor, tile: int) -> Tensor:
    n, height, width, channels = images.shape
    points = images.new_empty((tile + 2) ** 2, n * -(-height // tile) * -(-width // tile), channels)
    getattr(_library(), name)(
        _address(images, *images.shape), _address(points, *points.shape), tile, *_sizes(n, height, width, channels)
    )
    return points


def write_output(points: Tensor, images: Tensor, tile: int) -> None:
    """Write the images (N, H, W, K) of points (Q, P, K)."""
    n, height, width, channels = images.shape
    shape = (tile + 2) ** 2, n * -(-height // tile) * -(-width // tile), channels
    _library().output_pixels(
        _address(points, *shape), _address(images, *images.shape), tile, *_sizes(n, height, width, channels)
    )
