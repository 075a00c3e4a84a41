"""`tensor_file`: every format opens by its header, names and identities are right, tensors are read on demand."""

import hashlib
import json
import math
import shutil
import time
from collections import OrderedDict

import dill
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion_policy.safe_pickle import UnsafePickleError
from diffusion_policy.tensor_file import TensorFileError, TensorInfo, open_tensor_file

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def saved(tmp_path, content, **options):
    path = tmp_path / "weights.pt"
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_tensors_of_every_type(tmp_path, dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    file = open_tensor_file(saved(tmp_path, {"w": tensor}))
    assert file.format == "torch"
    name = str(dtype).removeprefix("torch.")
    assert file.tree == {"w": TensorInfo("w", (2, 3), name, 6 * dtype.itemsize, file.tensors["w"].storage)}
    assert file.tensors["w"].numel == 6
    assert file.load("w").dtype == dtype
    assert torch.equal(file.load("w"), tensor)


def test_views_of_every_kind_come_back(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"t": base.t(), "part": base[1:3, 2:], "step": base[:, ::2], "none": base[:0], "number": base[2, 3]}
    file = open_tensor_file(saved(tmp_path, views))
    for name, view in views.items():
        assert torch.equal(file.load(name), view)
        assert file.load(name).stride() == view.stride()


def test_names_of_one_tensor_say_so_and_share_its_memory(tmp_path):
    shared, equal = torch.ones(3), torch.ones(3)
    file = open_tensor_file(saved(tmp_path, {"a": shared, "b": shared.detach(), "c": equal, "d": shared[:2]}))
    storages = {name: info.storage for name, info in file.tensors.items()}
    assert storages["a"] == storages["b"]
    assert len({storages["a"], storages["c"], storages["d"]}) == 3
    assert file.load("a") is file.load("b")
    assert file.load("a").data_ptr() == file.load("d").data_ptr()


def test_writing_into_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = saved(tmp_path, {"w": torch.zeros(3)})
    before = path.read_bytes()
    path.chmod(0o444)
    open_tensor_file(path).load("w").add_(1)
    assert path.read_bytes() == before


def test_paths_are_dotted_and_in_the_file_s_order(tmp_path):
    content = {
        "epoch": 3,
        "state_dicts": {"model": OrderedDict(z=torch.zeros(1), a=torch.zeros(2))},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}, "betas": (0.9, torch.tensor(0.95))},
        "lr": np.float64(1e-4),
        "steps": np.arange(3),
    }
    file = open_tensor_file(saved(tmp_path, content))
    assert list(file.tensors) == [
        "state_dicts.model.z",
        "state_dicts.model.a",
        "optimizer.state.0.exp_avg",
        "optimizer.betas.1",
        "steps",
    ]
    assert file.tree["epoch"] == 3
    assert file.tree["lr"] == 1e-4
    assert file.tree["optimizer"]["betas"] == (0.9, file.tensors["optimizer.betas.1"])
    assert torch.equal(file.load("steps"), torch.arange(3))


def test_a_module_s_own_state_dict_and_parameters(tmp_path):
    layer = torch.nn.BatchNorm1d(3)
    file = open_tensor_file(saved(tmp_path, {"state": layer.state_dict(), "parameter": layer.weight}))
    assert [name.removeprefix("state.") for name in file.tensors] == [*layer.state_dict(), "parameter"]
    assert file.tensors["parameter"].storage == file.tensors["state.weight"].storage


def test_two_tensors_with_one_path_are_refused(tmp_path):
    path = saved(tmp_path, {"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}})
    with pytest.raises(TensorFileError, match=r"two tensors have the path 'a\.b'"):
        open_tensor_file(path)


def test_an_absent_file_and_an_absent_name_are_reported(tmp_path):
    with pytest.raises(TensorFileError, match="there is no such file"):
        open_tensor_file(tmp_path / "nothing.pt")
    with pytest.raises(TensorFileError, match="no tensor 'head' among the 1 in it"):
        open_tensor_file(saved(tmp_path, {"w": torch.zeros(1)})).load("head")


def test_the_reference_s_checkpoint(reference_checkpoint, shared_data):
    file = open_tensor_file(reference_checkpoint)
    keys = json.loads((shared_data / "reference/cogact_7d_tiny.keys.json").read_text())
    listed = keys.get("ema_model", keys)
    prefix = "state_dicts.ema_model."
    weights = {name.removeprefix(prefix): info for name, info in file.tensors.items() if name.startswith(prefix)}
    assert list(weights) == list(listed)
    assert len({info.storage for info in weights.values()}) < len(weights)
    assert file.tree["cfg"]["policy"]["n_action_steps"] == "${eval:'${n_action_steps}+${n_latency_steps}'}"
    assert file.sha256() == hashlib.sha256(reference_checkpoint.read_bytes()).hexdigest()


def test_mapped_tensors_equal_torch_s_own_reading(reference_checkpoint):
    expected = torch.load(reference_checkpoint, pickle_module=dill, weights_only=False)["state_dicts"]["model"]
    file = open_tensor_file(reference_checkpoint)
    for name, tensor in expected.items():
        assert torch.equal(file.load(f"state_dicts.model.{name}"), tensor)


def test_vpt_weights_and_settings(shared_data):
    weights = open_tensor_file(shared_data / "vpt/tiny.weights")
    expected = torch.load(shared_data / "vpt/tiny.weights", weights_only=True)
    assert list(weights.tensors) == list(expected)
    settings = open_tensor_file(shared_data / "vpt/tiny.model")
    assert settings.format == "pickle"
    assert settings.tensors == {}
    assert settings.tree["model"]["args"]["net"]["args"]["hidsize"] == 64
    assert settings.tree["model"]["args"]["pi_head_opts"]["temperature"] == "2.0"
    camera = settings.tree["extra_args"]["ac_space"]["_n2t"]["camera"]
    assert camera["type"] == "gym3.types.TensorType"
    assert camera["eltype"] == {"type": "gym3.types.Discrete", "n": 121, "dtype_name": "int64"}


def test_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"w": torch.randn(2, 3), "half": torch.ones(4, dtype=torch.bfloat16), "one": torch.tensor(1)}
    save_file(tensors, path, metadata={"format": "pt"})
    file = open_tensor_file(path)
    assert file.format == "safetensors"
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    assert file.tensors["half"].dtype == "bfloat16"
    assert file.tensors["half"].nbytes == 8
    for name, tensor in tensors.items():
        assert torch.equal(file.load(name), tensor)


def test_shards_by_index_and_by_folder_equal_the_whole(shared_data):
    golden = shared_data / "groot/golden_small"
    whole = open_tensor_file(golden / "model.safetensors")
    for path in (golden / "sharded", golden / "sharded/model.safetensors.index.json"):
        shards = open_tensor_file(path)
        assert shards.format == "sharded safetensors"
        assert len(shards.files) == 2
        assert len(shards.sha256()) == 64
        assert shards.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(shards.load(name), whole.load(name)) for name in whole.tensors)


def test_shards_that_hold_other_tensors_than_the_index_says(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}))
    with pytest.raises(TensorFileError, match="does not hold the tensors that the index says; 1 differ, first 'b'"):
        open_tensor_file(index)


def test_a_folder_must_tell_which_file(tmp_path):
    with pytest.raises(TensorFileError, match="an empty folder, not a weights file; name the file"):
        open_tensor_file(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert list(open_tensor_file(tmp_path).tensors) == ["a"]


def test_a_type_that_torch_has_no_use_for_here(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(TensorFileError, match="'w' is of type F8_E8M0; expected one of F64"):
        open_tensor_file(path)


@pytest.fixture
def real_groot(shared_data, tmp_path):
    """The real 7.6 GB checkpoint: its headers, with holes instead of the numbers."""
    headers = shared_data / "groot/golden_small/real_headers"
    for number, size in ((1, 4_999_367_032), (2, 2_586_705_312)):
        name = f"model-0000{number}-of-00002.safetensors"
        shutil.copyfile(headers / f"{name}.header", tmp_path / name)
        with (tmp_path / name).open("r+b") as file:
            file.truncate(size)
    shutil.copyfile(headers / "model.safetensors.index.json", tmp_path / "model.safetensors.index.json")
    return tmp_path


def test_a_file_of_7_gigabytes_opens_by_its_headers(real_groot):
    started = time.monotonic()
    file = open_tensor_file(real_groot)
    assert time.monotonic() - started < 2.0
    assert len(file.tensors) == 899
    assert sum(info.numel for info in file.tensors.values()) == 2_724_163_520
    assert file.load("action_head.future_tokens.weight").shape == (32, 1536)


def test_numbers_that_are_not_finite_are_read(tmp_path):
    weight = torch.tensor([1.0, math.nan, math.inf])
    file = open_tensor_file(
        saved(tmp_path, {"a": weight, "b": weight.detach(), "c": torch.ones(2), "d": torch.ones(1).int()})
    )
    for name in "ab":
        torch.testing.assert_close(file.load(name), weight, equal_nan=True, rtol=0, atol=0)


def test_a_model_saved_whole_is_refused_by_the_name_of_its_class(tmp_path):
    with pytest.raises(UnsafePickleError, match=r"asks for torch\.nn\.modules\.linear\.Linear, which is not on the"):
        open_tensor_file(saved(tmp_path, torch.nn.Linear(1, 1)))
