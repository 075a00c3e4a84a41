"""data.pkl as written by others: read correctly, or refused in one sentence with a remedy."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import subprocess
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.trajectory import open_trajectory

STEPS = 6
ARRAYS = recorded_arrays(STEPS)


def everything(change: Callable[[Any], Any]) -> bytes:
    return pickle.dumps({key: change(values) for key, values in ARRAYS.items()})


def one(key: str, change: Callable[[Any], Any]) -> bytes:
    return pickle.dumps({**ARRAYS, key: change(ARRAYS[key])})


def python_2(protocol: int) -> bytes:
    """As written by Python 2's cPickle with NumPy 1: texts and contents of arrays are `str`."""

    def text(value: bytes) -> bytes:
        if protocol == 0:
            quoted = repr(value)[1:].encode()
            return b"S" + quoted + b"\n"
        return b"T" + struct.pack("<I", len(value)) + value

    def array(values: np.ndarray) -> bytes:
        kind = values.dtype.str[1:].encode()
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + text(kind) + b"I0\nI1\ntR(I3\n" + text(b"<") + b"NNNI-1\nI-1\nI0\ntb"
        shape = b"(" + b"".join(b"I%d\n" % side for side in values.shape) + b"t"
        return made + b"(I1\n" + shape + dtype + b"I00\n" + text(values.tobytes()) + b"tb"

    items = b"".join(text(key.encode()) + array(values) + b"s" for key, values in ARRAYS.items())
    return (b"" if protocol == 0 else b"\x80\x02") + b"(d" + items + b"."


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **ARRAYS)
    return file.getvalue()


READ: dict[str, bytes] = {
    **{f"protocol {protocol}": pickle.dumps(ARRAYS, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)},
    **{
        f"protocol {protocol} of NumPy 1": pickle.dumps(ARRAYS, protocol).replace(b"numpy._core", b"numpy.core")
        for protocol in (0, 1, 2)
    },
    "Python 2, protocol 0": python_2(0),
    "Python 2, protocol 2": python_2(2),
    "Fortran order": everything(np.asfortranarray),
    "big-endian": everything(lambda values: values.astype(values.dtype.newbyteorder(">"))),
    "float64": everything(lambda values: values.astype(np.float64) if values.dtype.kind == "f" else values),
    "small integers": one("robot_gripper", lambda values: values.astype(np.uint8)),
    "booleans": one("action_gripper", lambda values: values.astype(bool)),
    "an ordered dict": pickle.dumps(OrderedDict(ARRAYS)),
    "more than is needed": pickle.dumps({**ARRAYS, "task": "pick", "rate": 10.0}),
}


@pytest.mark.parametrize("name", READ)
def test_read(tmp_path: Path, name: str) -> None:
    folder = write_trajectory(tmp_path, n_steps=STEPS, size=(32, 18))
    (folder / "data.pkl").write_bytes(READ[name])
    found = open_trajectory(folder)
    np.testing.assert_array_equal(found.pose, ARRAYS["robot_eef_pose"])
    np.testing.assert_array_equal(found.action, ARRAYS["action"])
    np.testing.assert_array_equal(found.action_gripper, ARRAYS["action_gripper"])
    np.testing.assert_array_equal(found.timestamp, ARRAYS["timestamp"])
    np.testing.assert_array_equal(found.image_index, ARRAYS["image_index"])


def test_python_2_is_written_here_as_it_is_there() -> None:
    for protocol in (0, 2):
        read = pickle.loads(python_2(protocol), encoding="latin1")
        for key, values in ARRAYS.items():
            np.testing.assert_array_equal(read[key], values)


def masked(values: np.ndarray) -> Any:
    return np.ma.masked_array(values)


REFUSED: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(pickle.dumps(ARRAYS)), "compressed with gzip; expected a pickled dict of NumPy arrays"),
    "bzip2": (bz2.compress(pickle.dumps(ARRAYS)), "compressed with bzip2"),
    "xz": (lzma.compress(pickle.dumps(ARRAYS)), "compressed with xz"),
    "zlib, as joblib": (zlib.compress(pickle.dumps(ARRAYS)), "compressed with zlib"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "compressed with zstd"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(50), "compressed with lz4"),
    "npz": (npz(), r"a NumPy archive \(npz\)"),
    "npy": (b"\x93NUMPY\x01\0" + bytes(50), r"a NumPy array \(npy\)"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(99), "99 bytes, all zero"),
    "JSON": (b'{"action": []}', "a JSON document"),
    "a web page": (b"<!DOCTYPE html>", "an HTML or XML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer.*: git lfs pull"),
    "lists": (
        everything(lambda values: values.tolist()),
        r"a list; expected a NumPy array: write np\.asarray\(.*float32",
    ),
    "tensors": (everything(torch.from_numpy), r"torch\._utils\._rebuild_tensor_v2.*expected a pickled dict of NumPy"),
    "objects": (one("action", lambda values: values.astype(object)), "Python objects .*expected a pickled dict of Num"),
    "masked": (one("action", masked), r"numpy\.ma.*expected a pickled dict of NumPy arrays"),
    "half precision": (one("action", lambda values: values.astype(np.float16)), "float16; expected .*such as float32"),
    "a gripper of floats": (one("action_gripper", lambda values: values.astype(float)), "--gripper-scale NAME"),
    "a gripper in a column": (
        one("action_gripper", lambda v: v[:, None]),
        r"expected \(N\): write action_gripper\[:, 0\]",
    ),
    "two pickles in a list": (pickle.dumps([ARRAYS]), "holds a list; expected a dict of arrays"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    folder = write_trajectory(tmp_path, n_steps=STEPS, size=(32, 18))
    (folder / "data.pkl").write_bytes(content)
    with pytest.raises(WorkspaceError, match=message) as refused:
        open_trajectory(folder)
    assert str(refused.value).startswith(str(folder / "data.pkl"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zlib, as joblib", "npz"])
def test_the_command_that_is_named_makes_a_pickle(tmp_path: Path, name: str) -> None:
    folder = write_trajectory(tmp_path / "a folder's", n_steps=STEPS, size=(32, 18))
    (folder / "data.pkl").write_bytes(REFUSED[name][0])
    with pytest.raises(WorkspaceError) as refused:
        open_trajectory(folder)
    command = str(refused.value).split("pickle.dump writes: ")[1]
    subprocess.run(["bash", "-c", command], check=True)
    np.testing.assert_array_equal(open_trajectory(folder).pose, ARRAYS["robot_eef_pose"])


@pytest.mark.parametrize(
    ("name", "is_read"),
    [
        *((name, True) for name in ("numpy1", "proto0", "proto5", "fortran", "bigendian")),
        *((name, False) for name in ("lists", "floatgripper", "objectarray", "float16", "gzip", "npz", "colgripper")),
    ],
)
def test_the_flavours_of_the_trial(trial: Callable[..., Path], name: str, is_read: bool) -> None:
    folder = trial("12") / name / "episode_0000"
    if is_read:
        assert open_trajectory(folder).n_steps == 40
        return
    with pytest.raises(WorkspaceError, match=r"data\.pkl: .*expected .*write|data\.pkl: .*expected .*such as"):
        open_trajectory(folder)
