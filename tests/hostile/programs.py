"""Pickles that would run something, or take unlimited memory or time."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable

import numpy as np
from hostile.assembling import Calls, Case, archive, assemble, call, named, text

CASES: list[Case] = []

# Programs, named outright.

PROGRAMS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os_system": (lambda c: call("os.system", text(c)), "asks for os.system"),
    "posix_system": (lambda c: call("posix.system", text(c)), "asks for posix.system"),
    "subprocess_popen": (lambda c: call("subprocess.Popen", text(c)), "asks for subprocess.Popen"),
    "builtins_eval": (lambda c: call("builtins.eval", text(f"__import__('os').system({c!r})")), "builtins.eval"),
    "python_2_eval": (lambda c: call("__builtin__.eval", text(f"__import__('os').system({c!r})")), "__builtin__.eval"),
    "builtins_exec": (lambda c: call("builtins.exec", text(f"import os; os.system({c!r})")), "builtins.exec"),
    "builtins_getattr": (lambda c: call("builtins.getattr", named("os.path"), text("os")), "builtins.getattr"),
    "import_module": (lambda c: call("importlib.import_module", text("antigravity")), "importlib.import_module"),
    "code_from_bytes": (lambda c: call("marshal.loads", text("x")), "asks for marshal.loads"),
    "nested_pickle": (lambda c: call("pickle.loads", text("x")), "asks for pickle.loads"),
    "torch_load": (lambda c: call("torch.load", text("/tmp/other.pt")), "asks for torch.load"),
    "torch_hub": (lambda c: call("torch.hub.load", text("a/b"), text("c")), "asks for torch.hub.load"),
    "numpy_load": (lambda c: call("numpy.load", text("/tmp/x.npy")), "asks for numpy.load"),
    "hydra_instantiate": (lambda c: call("hydra.utils.instantiate", b"}"), "asks for hydra.utils.instantiate"),
    "resolver_registered": (
        lambda c: call("omegaconf.omegaconf.OmegaConf.register_new_resolver", text("eval"), named("builtins.eval")),
        "asks for omegaconf.omegaconf.OmegaConf.register_new_resolver",
    ),
    "dill_function": (lambda c: call("dill._dill._create_function", b"N"), "asks for dill._dill._create_function"),
    "dill_code": (lambda c: call("dill._dill._create_code", b"N"), "asks for dill._dill._create_code"),
    "dill_import": (lambda c: call("dill._dill._import_module", text("os")), "asks for dill._dill._import_module"),
    "dill_eval": (lambda c: call("dill._dill._eval_repr", text("1")), "asks for dill._dill._eval_repr"),
    "dill_odd_type": (lambda c: call("dill._dill._load_type", text("CodeType")), "the type 'CodeType'"),
    "dill_type_of_types": (lambda c: call("dill._dill._load_type", text("type")), "the type 'type'"),
    "dill_type_called": (
        lambda c: call("dill._dill._load_type", text("dict")) + b")R",
        "calls a str, which cannot be called",
    ),
    "constant_called": (lambda c: call("typing.Any", text(c)), "calls a str"),
    "storage_type_called": (lambda c: call("torch.FloatStorage", b"K\x05"), "calls a StorageType"),
    "call_inside_arguments": (lambda c: call("collections.OrderedDict", call("os.system", text(c))), "os.system"),
    "filled_dictionary_called": (lambda c: call("collections.OrderedDict", b"]"), "takes 0 positional arguments"),
    "tensor_with_hooks": (
        lambda c: call("torch._utils._rebuild_tensor_v2", b"N", b"K\x00", b")", b")", b"\x89", named("os.system")),
        "asks for os.system",
    ),
    "class_patched": (
        lambda c: named("omegaconf.dictconfig.DictConfig") + b"}" + text("__setstate__") + b"K\x01sb",
        "sets the state of a Recipe",
    ),
    "class_patched_by_slots": (
        lambda c: named("collections.OrderedDict") + b"N}" + text("get") + b"K\x01s\x86b",
        "sets the state of a Recipe",
    ),
    "dictionary_with_attributes": (
        lambda c: call("collections.OrderedDict") + b"}" + text("__class__") + b"K\x01sb",
        "OrderedDict with its own attributes",
    ),
    "instance": (lambda c: b"(" + text(c) + b"ios\nsystem\n", "an instance of os.system"),
    "object_opcode": (lambda c: b"(" + named("os.system") + text(c) + b"o", "asks for os.system"),
    "object_of_a_listed_class": (lambda c: b"(" + named("collections.OrderedDict") + b"o", "the instruction OBJ"),
    "new_object": (lambda c: named("subprocess.Popen") + b"(" + text(c) + b"t\x81", "asks for subprocess.Popen"),
    "new_object_with_keywords": (
        lambda c: named("collections.OrderedDict") + b")}\x92",
        "the instruction NEWOBJ_EX",
    ),
    "stacked_name": (lambda c: text("os") + text("system") + b"\x93" + text(c) + b"\x85R", "asks for os.system"),
    "stacked_name_of_numbers": (lambda c: b"K\x01K\x02\x93", "asks for 1.2"),
    "dotted_attribute": (
        lambda c: text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
        "asks for torch._utils._rebuild_tensor_v2.__globals__",
    ),
    "extension_registry": (lambda c: b"\x82\x01" + text(c) + b"\x85R", "the instruction EXT1"),
    "extension_registry_of_4_bytes": (lambda c: b"\x84\x01\x02\x03\x04", "the instruction EXT4"),
    "persistent_name": (lambda c: text(c) + b"Q", "outside storage that is not one of PyTorch's"),
    "persistent_kind": (
        lambda c: b"(" + text("storage") + text("os.system") + text("0") + text("cpu") + b"K\x01tQ",
        "of an unknown kind",
    ),
    "persistent_line": (lambda c: b"Pos.system\n", "the instruction PERSID"),
    "array_of_objects": (
        lambda c: pickle.dumps(np.array([Calls(os.system, c)], dtype=object), 2)[2:-1],
        "only plain numbers and text",
    ),
    "array_of_another_class": (
        lambda c: call("numpy._core.multiarray._reconstruct", named("collections.OrderedDict"), b")", b"N"),
        "a class other than numpy.ndarray",
    ),
    "array_without_its_bytes": (
        lambda c: (
            call("numpy._core.multiarray._reconstruct", named("numpy.ndarray"), b"K\x00\x85", text("b"))
            + b"(K\x01J\xff\xff\xff\x7f\x85"
            + call("numpy.dtype", text("f8"), b"\x89", b"\x88")
            + b"\x89"
            + call("_codecs.encode", text("abcdefgh"), text("latin1"))
            + b"tb"
        ),
        "with 8 bytes of data",
    ),
    # Bombs: small programs that ask for large amounts of memory or time.
    "nested_100000_deep": (lambda c: b"]" * 100_000 + b"a" * 99_999, "expands to more than 64 levels"),
    "hash_bomb": (lambda c: b"}" + b")" + b"2\x86" * 60 + b"K\x01s", "the instruction DUP"),
    "hash_bomb_by_memo": (lambda c: b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01s", "uses a tuple as a key"),
    "laughing_lists": (lambda c: b"]" + b"q\x00](h\x00h\x00h\x00h\x00e" * 30, "expands to more than 500000 entries"),
    "integer_of_a_megabyte": (
        lambda c: b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20,
        "an integer of 8388607 bits",
    ),
    "integer_of_negative_length": (lambda c: b"\x8b" + struct.pack("<i", -1), "broken near byte"),
    "integer_of_a_million_digits": (lambda c: b"L" + b"9" * 10**6 + b"L\n", "broken near byte"),
    "text_of_an_exabyte": (lambda c: b"\x8d" + struct.pack("<Q", 2**60), "broken near byte"),
    "bytes_of_2_gigabytes": (lambda c: b"B" + struct.pack("<I", 2**31 - 1) + b"x", "broken near byte"),
    "byte_array_of_an_exabyte": (lambda c: b"\x96" + struct.pack("<Q", 2**60), "broken near byte"),
    "too_many_instructions": (lambda c: b"0".join([b"}"] * 1_100_000), "more than 2000000 instructions"),
    "bytes_multiplied": (
        lambda c: (
            named("_codecs.encode")
            + b"q\x000"
            + text("x" * 2**20)
            + b"q\x010]("
            + (b"h\x00h\x01" + text("latin1") + b"\x86R") * 1000
            + b"e"
        ),
        "far more memory than its own size",
    ),
    "memo_index_of_2_billion": (lambda c: b"}r\xff\xff\xff\x7f", "not a checkpoint of the policy"),
    "empty_program": (lambda c: b"", "broken near byte"),
    "recalls_what_it_never_saw": (lambda c: b"h\x07", "broken near byte"),
    "unknown_instruction": (lambda c: b"\xfe", "broken near byte"),
    "unbalanced": (lambda c: b"t", "broken near byte"),
}


def _program_case(name: str, make: Callable[[str], bytes], refusal: str) -> Case:
    return Case(name, lambda folder, command: archive(folder, assemble(make(command))), refusal)


CASES.extend(_program_case(name, make, refusal) for name, (make, refusal) in PROGRAMS.items())


# Tensors with absurd shapes over a storage of eight numbers.


def tensor(offset: bytes, shape: bytes, stride: bytes, *, count: int = 8, key: str = "0") -> bytes:
    reference = (
        b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu") + b"J" + struct.pack("<i", count)
    )
    return call("torch._utils._rebuild_tensor_v2", reference + b"tQ", offset, shape, stride, b"\x89", b"N")


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


SHAPES: dict[str, tuple[bytes, str]] = {
    "larger_than_its_storage": (tensor(b"K\x00", b"K\x09\x85", b"K\x01\x85"), "does not fit into the storage '0' of 8"),
    "a_terabyte_by_stride_0": (
        tensor(b"K\x00", integer(2**38) + b"\x85", b"K\x00\x85"),
        "does not fit into the storage",
    ),
    "offset_beyond_the_end": (tensor(b"K\x05", b"K\x04\x85", b"K\x01\x85"), "does not fit into the storage"),
    "stride_beyond_the_end": (tensor(b"K\x00", b"K\x02K\x02\x86", b"K\x08K\x01\x86"), "does not fit into the storage"),
    "negative_offset": (tensor(integer(-4), b"K\x04\x85", b"K\x01\x85"), "offset -4"),
    "negative_size": (tensor(b"K\x00", integer(-1) + b"\x85", b"K\x01\x85"), r"shape \(-1,\)"),
    "negative_stride": (tensor(b"K\x07", b"K\x02\x85", integer(-1) + b"\x85"), r"strides \(-1,\)"),
    "size_of_10_to_40": (tensor(b"K\x00", integer(10**40) + b"\x85", b"K\x01\x85"), "a tensor with shape"),
    "size_that_is_a_fraction": (
        tensor(b"K\x00", pickle.dumps(1.5, 2)[2:-1] + b"\x85", b"K\x01\x85"),
        r"shape \(1.5,\)",
    ),
    "size_that_is_true": (tensor(b"K\x00", b"\x88\x85", b"K\x01\x85"), r"shape \(True,\)"),
    "sizes_without_strides": (tensor(b"K\x00", b"K\x02K\x02\x86", b"K\x01\x85"), "a tensor with shape"),
    "a_thousand_dimensions": (tensor(b"K\x00", b"(" + b"K\x01" * 1000 + b"t", b"(" + b"K\x01" * 1000 + b"t"), "shape"),
    "storage_of_another_size": (tensor(b"K\x00", b"K\x08\x85", b"K\x01\x85", count=2**31 - 1), "but has 32 bytes"),
    "storage_of_negative_size": (tensor(b"K\x00", b"K\x08\x85", b"K\x01\x85", count=-8), "but has 32 bytes"),
    "storage_that_is_missing": (tensor(b"K\x00", b"K\x08\x85", b"K\x01\x85", key="7"), "storage '7' is missing"),
    "storage_outside": (tensor(b"K\x00", b"K\x08\x85", b"K\x01\x85", key="../../etc/passwd"), "is missing"),
    "tensor_without_storage": (call("torch._utils._rebuild_tensor_v2", b"NNNN"), "a tensor without a storage"),
    "parameter_without_tensor": (call("torch._utils._rebuild_parameter", b"K\x01"), "a parameter without a tensor"),
}


def _shape_case(name: str, program: bytes, refusal: str) -> Case:
    entries = {"archive/data/0": bytes(32)}
    return Case(name, lambda folder, _: archive(folder, assemble(program), entries), refusal)


CASES.extend(_shape_case(name, *entry) for name, entry in SHAPES.items())
