"""Every --seed of every script is a whole number, 0 or more, and every count of a benchmark 1 or more."""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_policy.command_line import positive_number, seed_number, whole_number

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
BENCHMARKS = sorted((REPOSITORY / "benchmarks").glob("*.py"))


def parser_of(script: Path) -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parser = argparse.ArgumentParser()
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    return parser


def test_every_seed_is_checked() -> None:
    seeds = {
        f"{script.stem} {action.option_strings[0]}": action.type
        for script in SCRIPTS
        if "--" in script.read_text()
        for action in parser_of(script)._actions
        if any(option.endswith("seed") for option in action.option_strings)
    }
    assert len(seeds) >= 15
    assert [name for name, kind in seeds.items() if kind is not seed_number] == []


def test_every_count_of_a_benchmark_is_checked() -> None:
    own = [
        path for path in BENCHMARKS if path.name != "exported_engine.py"
    ]  # started by exported.py, which has checked
    counts = [line for path in own for line in path.read_text().split("add_argument(") if "type=int" in line]
    assert counts == []


@pytest.mark.parametrize("word", ["-1", "1.5", "nan", "", "x", "1e3"])
@pytest.mark.parametrize(("kind", "least"), [(seed_number, 0), (whole_number, 0), (positive_number, 1)])
def test_what_is_no_such_number_is_refused_in_one_line(
    kind: Callable[[str], int], least: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=kind)
    for refused in {word, str(least - 1)}:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([f"--number={refused}"])
        assert ended.value.code == 2
        message = f"argument --number: {refused!r}; expected a whole number, {least} or more"
        assert message in capsys.readouterr().err
    assert parser.parse_args(["--number", str(least)]).number == least
