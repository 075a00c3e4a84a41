"""Files of other programs with harm in their nesting: each is refused in one sentence, or inspected quickly.

`REFUSED` and `BORNE` map names to a writer and, if refused, to words of the refusal.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_checkpoints as others
import torch
from hostile.assembling import Calls, archive, assemble, call, named, text
from safetensors.torch import save_file

Writer = Callable[[Path, str], Path]  # (folder, shell command that creates the canary) -> the file

ONE = {"w": torch.ones(2)}


def saved(content: Any, name: str = "hostile.pth") -> Writer:
    def write(folder: Path, command: str) -> Path:
        torch.save(content(command) if callable(content) else content, folder / name)
        return folder / name

    return write


def program(make: Callable[[str], bytes]) -> Writer:
    """A pickle by hand as the hyperparameters of a file of Lightning's."""

    def write(folder: Path, command: str) -> Path:
        return archive(folder, assemble(b"}", text("hyper_parameters"), make(command), b"s"))

    return write


def stacked(module: str, name: str) -> bytes:
    """A name by STACK_GLOBAL, which may have any characters."""
    return text(module) + text(name) + b"\x93"


def nested(levels: int) -> Writer:
    """Nested dictionaries, deeper than any recursion limit."""
    program = assemble(b"".join(b"}" + text("model") for _ in range(levels)), b"}", b"s" * levels)
    return lambda folder, command: archive(folder, program)


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {"state_dict": dict(ONE)}
    found["state_dict"]["again"] = found
    return found


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch is about to remove them
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def laughs() -> Any:
    found: Any = [torch.ones(1)]
    for _ in range(40):
        found = [found, found]
    return {"model": found}


def lerobot(change: Callable[[Path, str], None]) -> Writer:
    def write(folder: Path, command: str) -> Path:
        policy = folder / "pretrained_model"
        policy.mkdir()
        (policy / "config.json").write_text(json.dumps(others.LEROBOT_CONFIG))
        save_file({"diffusion.unet.final_conv.1.weight": torch.ones(8, 16, 1)}, policy / "model.safetensors")
        change(policy, command)
        return policy

    return write


def processors(state_file: Any) -> Writer:
    listing = json.dumps({"steps": [{"registry_name": "normalizer_processor", "state_file": state_file}]})
    return lerobot(lambda policy, command: void((policy / "policy_preprocessor.json").write_text(listing)))


def void(value: object) -> None:
    return None


def with_config(**changes: Any) -> Writer:
    config = {**others.LEROBOT_CONFIG, **changes}
    return lerobot(lambda policy, command: void((policy / "config.json").write_text(json.dumps(config))))


def program_as_statistics(policy: Path, command: str) -> None:
    name = "statistics.safetensors"
    torch.save({"action.min": Calls(os.system, command)}, policy / name)
    step = {"registry_name": "normalizer_processor", "state_file": name}
    (policy / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))


CAMERAS = {f"observation.images.{n}": {"type": "VISUAL", "shape": [3, 8, 8]} for n in range(5000)}

REFUSED: dict[str, tuple[Writer, str]] = {
    "nested 100 levels": (nested(100), "expands to more than 64 levels"),
    "nested 200000 levels": (nested(200_000), "expands to more than 64 levels|more than"),
    "circle": (saved(circle()), "expands to more than"),
    "laughs": (saved(laughs()), "expands to more than"),
    "two of one name": (saved({"model": {0: torch.ones(1), "0": torch.ones(1)}}), "two tensors have the path"),
    "two of one dotted name": (saved({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}), "two tensors have the path"),
    "sparse": (saved({"state_dict": {"w": torch.eye(3).to_sparse()}}), "asks for torch._utils._rebuild_sparse_tensor"),
    "quantized": (
        saved(lambda command: {"state_dict": {"w": quantized()}}),
        "asks for torch",
    ),
    "meta": (saved({"state_dict": {"w": torch.ones(3, device="meta")}}), "asks for torch._utils._rebuild_meta_tensor"),
    "a model itself": (saved({"model": torch.nn.Linear(2, 2)}), "asks for torch.nn.modules.linear.Linear"),
    "hyper parameters that call": (
        saved(lambda command: others.lightning(ONE, hyper_parameters={"x": Calls(os.system, command)})),
        "asks for posix.system",
    ),
    "hyper parameters that call what is not here": (
        program(lambda command: call("other_program.load", text(command))), "asks for other_program.load"),
    "a function that is not called": (program(lambda command: named("posix.system")), "asks for posix.system"),
    "an object of a class of code": (
        program(lambda command: named("subprocess.Popen") + text(command) + b"\x85\x81"), "asks for subprocess.Popen"),
    "an object whose class is a part of one": (
        program(lambda command: stacked("os.path", "os.system") + b")\x81"), "asks for os.path.os.system"),
    "a name that is none": (program(lambda command: stacked("a b", "c()") + b")\x81"), r"asks for a b\.c\(\)"),
    "a name of a megabyte": (program(lambda command: stacked("a" * 2**20, "c") + b")\x81"), "asks for aaa"),
    "a class that is changed": (program(lambda _: named("other_program.C") + b"}b"), "sets the state of a StandIn"),
    "an object as a key": (program(lambda command: b"}" + named("other_program.C") + b")\x81Ns"), "as a key"),
    "a call in the state of an object": (
        program(lambda command: named("other_program.C") + b")\x81" + call("posix.system", text(command)) + b"b"),
        "asks for posix.system",
    ),
    "a call among the items of an object": (
        program(lambda c: named("other_program.C") + b")\x81" + text("k") + call("posix.system", text(c)) + b"s"),
        "asks for posix.system",
    ),
    "statistics outside the folder": (processors("../model.safetensors"), "which is not in the same folder"),
    "statistics by an absolute path": (processors("/etc/passwd"), "which is not in the same folder"),
    "statistics by number": (processors(7), "which is not in the same folder"),
    "statistics that call": (lerobot(program_as_statistics), "asks for posix.system|is not"),
    "processors that are no list": (
        lerobot(lambda policy, command: void((policy / "policy_preprocessor.json").write_text('{"steps": 3}'))),
        "cannot be read as a list of processors",
    ),
    "processors nested deep": (
        lerobot(lambda policy, command: void((policy / "policy_preprocessor.json").write_text("[" * 100_000))),
        "cannot be read as a list of processors",
    ),
    "five thousand encoders": (
        with_config(input_features=CAMERAS, use_separate_rgb_encoder_per_camera=True),
        "describes more than 100000 tensors",
    ),
    "widths that are none": (with_config(down_dims=[16, -32]), "does not describe a diffusion policy"),
}  # fmt: skip

VIEWED = torch.arange(6.0)
ODD_META = {"obs": {"x": {"shape": ["a"]}, "y": 3}, "action": {"shape": [10**150] * 9, "rotation_rep": "rotation_6d"}}

BORNE: dict[str, Writer] = {
    "keys that are no text": saved({"model": {0: torch.ones(1), (1, 2): torch.ones(1), None: torch.ones(1), 1.5: ONE}}),
    "a class of nothing else": program(lambda command: named("other_program.C") + b")\x81}b"),
    "many classes": program(
        lambda command: b"]" + b"".join(named(f"other_program.C{n}") + b")\x81a" for n in range(20_000))
    ),
    "empty keys": saved({"": {"": torch.ones(1), "a": {"": torch.ones(1)}}}),
    "names that move the cursor": saved({"state_dict": {"\x1b[2J\x1b[31mw\r\n": torch.ones(1)}}),
    "names of a megabyte": saved({"w" * 2**20: torch.ones(1)}),
    "names that are patterns": saved({"*.conv1.weight": torch.ones(4, 3, 7, 7), "[a-z].w": torch.ones(1)}),
    "many beginnings of encoders": saved({f"{n}.conv1.weight": torch.ones(1, 1, 1, 1) for n in range(4000)}),
    "an encoder in an encoder": saved({f"{'a.' * n}conv1.weight": torch.ones(1, 1, 1, 1) for n in range(60)}),
    "views of one storage": saved({"a": VIEWED, "b": VIEWED, "c": VIEWED[1:4], "d": VIEWED.view(2, 3).T}),
    "complex, empty and single numbers": saved({"z": torch.ones(2, dtype=torch.complex64), "e": torch.zeros(0, 3),
                                                "s": torch.tensor(1)}),
    "nothing": saved({}),
    "a number": saved(7),
    "a tensor": saved(torch.ones(3)),
    "only an optimizer": saved({"optimizer": others.optimizer()}),
    "a version that is a tensor": saved(others.lightning(dict(ONE), **{"pytorch-lightning_version": torch.ones(2)})),
    "shapes that are none": saved(others.lightning(dict(ONE), hyper_parameters={"shape_meta": ODD_META})),
    "references in a circle": saved({"cfg": {"policy": {"_target_": "x", "shape_meta": "${a}"}, "a": "${a}"},
                                     "state_dicts": {"model": ONE}}),
    "a config that is a number": saved({"cfg": {"policy": {"_target_": "os.system"}, "shape_meta": 3},
                                        "state_dicts": 3}),
}  # fmt: skip
