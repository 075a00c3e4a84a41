"""`safe_pickle`: reads what data needs, refuses the rest by name, and never runs anything."""

import contextlib
import io
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest

from diffusion_policy.safe_pickle import NUMPY_GLOBALS, Recipe, UnsafePickleError, load

PLAIN = {
    "numbers": [0, 1, -5, 300, 70000, -(2**40), 2**100, 1.5, float("inf")],
    "text": ["", "x" * 300, "\u00e9\u4e16"],
    "bytes": [b"", b"\0\xff" * 200],
    "constants": (None, True, False),
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "nested": {"a": {"b": [{}, []]}, 3: "three", (1, "x"): "pair"},
}
ARRAYS = {
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "reversed": np.arange(3, dtype=np.float32)[::-1],
    "big-endian": np.arange(3, dtype=">f4"),
    "none": np.zeros((0, 7), np.int64),
    "scalar array": np.array(2.5),
    "flags": np.array([True, False]),
    "text": np.array(["ab", "c"]),
    "scalar": np.float64(2.0),
    "integer": np.int64(-7),
}


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_plain_python_of_every_protocol(protocol):
    assert load(pickle.dumps(PLAIN, protocol), allowed=NUMPY_GLOBALS, where="data.pkl") == PLAIN


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_reads_numpy_as_pickle_does(name, protocol):
    data = pickle.dumps(ARRAYS[name], protocol)
    expected, found = pickle.loads(data), load(data, allowed=NUMPY_GLOBALS, where="data.pkl")
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_the_names_of_numpy_1(protocol):
    data = pickle.dumps(ARRAYS["columns"], protocol=2).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(load(data, allowed=NUMPY_GLOBALS, where="data.pkl"), ARRAYS["columns"])


def test_reads_the_recorder_s_files_as_pickle_does(shared_data):
    paths = sorted(shared_data.glob("real_trajectories/*/data.pkl"))
    assert paths
    for path in paths:
        expected = pickle.loads(path.read_bytes())
        with path.open("rb") as file:
            found = load(file, allowed=NUMPY_GLOBALS, where=path.name)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_array_equal(found[key], values)


def test_shared_and_cyclic_objects_stay_so():
    shared = [1]
    cyclic = {"twice": [shared, shared]}
    cyclic["self"] = cyclic
    found = load(pickle.dumps(cyclic), allowed={}, where="data.pkl")
    assert found["twice"][0] is found["twice"][1]
    assert found["self"] is found


def test_what_follows_the_end_is_ignored():
    assert load(pickle.dumps(1) + pickle.dumps(Calls(print, "ran")), allowed={}, where="data.pkl") == 1


def test_recipe_builds_and_sets_state():
    def set_state(target, state):
        target.update(state)

    allowed = {("collections", "OrderedDict"): Recipe(OrderedDict, OrderedDict, set_state)}
    data = b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\0\0\0aK\x01sb."
    assert load(data, allowed=allowed, where="data.pkl") == OrderedDict(a=1)


def test_a_constant_on_the_list_is_data_and_not_a_thing_to_call():
    allowed = {("typing", "Any"): "typing.Any"}
    assert load(b"\x80\x02ctyping\nAny\n.", allowed=allowed, where="data.pkl") == "typing.Any"
    with pytest.raises(UnsafePickleError, match="calls a str, which cannot be called"):
        load(b"\x80\x02ctyping\nAny\n)R.", allowed=allowed, where="data.pkl")


@pytest.mark.parametrize("function", [print, eval, __import__, np.load])
def test_refuses_a_name_that_is_not_listed(function):
    data = pickle.dumps({"action": Calls(function, "x")})
    name = rf"asks for [\w.]+\.{function.__name__}, which is not on the allow-list; it was refused and nothing was run"
    with pytest.raises(UnsafePickleError, match=f"data.pkl: the pickle {name}"):
        load(data, allowed=NUMPY_GLOBALS, where="data.pkl")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pickle.dumps(np.array([{}], dtype=object)), "only plain numbers and text"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "only plain numbers and text"),
        (pickle.dumps(np.zeros(2), 2).replace(b"K\x02\x85", b"K\x03\x85"), r"shape \(3,\) and type float64 with 16"),
        (pickle.dumps(np.datetime64("2025-01-01")), "only plain numbers and text"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "cannot be called"),
        (b"\x80\x02K\x01}b.", "sets the state of a int"),
        (b"\x80\x02K\x01K\x02a.", "appends to a int"),
        (b"\x80\x02]K\x01K\x02s.", "sets items of a list"),
        (b"\x80\x04](K\x01\x90.", "adds members to a list"),
        (b"\x80\x02}K\x01\x85\x85K\x01s.", "uses a tuple as a key"),
        (b"\x80\x02}]K\x01s.", "uses a list as a key"),
        (b"\x80\x02\x8b\xff\xff\xff\x00.", "broken near byte"),
        (b"\x80\x02\x8a\x50" + b"\x7f" * 0x50 + b".", "an integer of 639 bits"),
        (b"\x80\x02h\x05.", "broken near byte 2"),
        (b"\x80\x02.", "broken near byte"),
        (b"\x80\x02K\x01\x86.", "too short for a tuple"),
        (b"", "broken near byte 0"),
        (b"garbage", "broken near byte"),
        (b"\x80\x02Pos.system\n.", "instruction PERSID"),
        (b"\x80\x02X\x01\0\0\0aQ.", "refers to outside storage"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"(ios\nsystem\n.", "an instance of os.system"),
    ],
)
def test_refuses_what_data_does_not_need(data, reason):
    with pytest.raises(UnsafePickleError, match=reason):
        load(data, allowed=NUMPY_GLOBALS, where="data.pkl")


def test_refuses_a_file_that_is_too_large():
    with pytest.raises(UnsafePickleError, match="larger than 100 bytes"):
        load(io.BytesIO(pickle.dumps("x" * 200)), allowed={}, where="data.pkl", max_bytes=100)


def test_refuses_what_unfolds_to_far_more_than_its_size():
    text = b"X" + (2**20).to_bytes(4, "little") + b"x" * 2**20
    encode = b"h\0h\x01X\x06\0\0\0latin1\x86R"
    data = b"\x80\x02c_codecs\nencode\nq\x000" + text + b"q\x010(" + encode * 20 + b"l."
    with pytest.raises(UnsafePickleError, match="far more memory than its own size"):
        load(data, allowed=NUMPY_GLOBALS, where="data.pkl")


def test_a_damaged_file_raises_nothing_but_its_own_error():
    rng = random.Random(0)
    whole = pickle.dumps({**PLAIN, **ARRAYS})
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(UnsafePickleError):  # damage to a number or a text is not seen
            load(bytes(damaged[: rng.randint(1, len(damaged))]), allowed=NUMPY_GLOBALS, where="data.pkl")
