"""The commands from a checkpoint to logs, and to open-loop errors."""

import json
import runpy
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint

from diffusion_policy.evaluate import open_loop_report, recorded_inference
from diffusion_policy.evaluate.open_loop_report import evaluate_open_loop
from diffusion_policy.run_log import read_log
from diffusion_policy.serve import tuning
from diffusion_policy.serve.settings import EngineSettings

ScriptMain = Callable[[Sequence[str]], int]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    return str(write_tiny_checkpoint(folder / "latest.ckpt")), str(write_dataset(folder / "set.zarr"))


def script_main(repository: Path, name: str) -> ScriptMain:
    return runpy.run_path(str(repository / "scripts" / name))["main"]


def test_logs_are_written(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script_main(repository, "run_offline_inference.py")
    assert main([*inputs, "--output", str(tmp_path), "--episodes", "0", "1", "--steps", "1", "--stride", "4"]) == 0
    assert sorted(read_log(path).meta["episode"] for path in tmp_path.glob("inference_log_*.json")) == [0, 1]
    assert "2 logs in" in capsys.readouterr().out


def test_bad_input_is_one_line(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script_main(repository, "run_offline_inference.py")
    assert main([*inputs, "--output", str(tmp_path), "--episodes", "some"]) == 2
    assert "error: --episodes some: expected held-out" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.ckpt"), inputs[1], "--output", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_open_loop(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = script_main(repository, "evaluate_open_loop.py")
    out = tmp_path / "errors.json"
    arguments = [*inputs, "--steps", "1", "--samples", "1", "--against", inputs[0], "--json", str(out)]
    assert main(arguments) == 1, "a policy with random weights beats nothing"
    shown = capsys.readouterr().out
    assert "does not beat" in shown
    assert "no difference can be claimed" in shown
    found = json.loads(out.read_text())
    assert len(found["reports"]) == 2
    assert found["comparison"]["position_mm"]["difference"] == 0.0
    assert main([*inputs, "--episodes", "9"]) == 2


@pytest.mark.parametrize("after", [0, 1, 3], ids=lambda n: f"after {n} logs")
def test_an_interruption_says_what_was_kept_and_its_command_does_the_rest(
    repository: Path,
    inputs: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    main, write = script_main(repository, "run_offline_inference.py"), recorded_inference.write_inference_log
    written: list[Path] = []

    def interrupted(*arguments: object) -> Path:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(write(*arguments))  # type: ignore[arg-type]
        return written[-1]

    monkeypatch.setattr(recorded_inference, "write_inference_log", interrupted)
    asked = [*inputs, "--output", str(tmp_path / "the logs"), "--episodes", "all", "--steps", "1", "--stride", "4"]
    assert main(asked) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("stopped by SIGINT: ")
    kept = f"logs of {after} of 4 episodes are kept in {tmp_path / 'the logs'}" if after else "nothing was written"
    assert kept in line
    words = shlex.split(line.rpartition(" with: ")[2])
    monkeypatch.setattr(recorded_inference, "write_inference_log", write)
    assert main(words[1:]) == 0
    logs = (tmp_path / "the logs").glob("inference_log_*.json")
    assert sorted(read_log(path).meta["episode"] for path in logs) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("script", "options", "module", "name"),
    [
        ("evaluate_open_loop.py", ["--samples", "1"], open_loop_report, "predict_chunks"),
        ("tune_inference.py", ["--candidates", "ddim:1", "ddim:2"], tuning, "measure"),
    ],
)
def test_an_interruption_of_what_writes_at_its_end_starts_anew(
    repository: Path,
    inputs: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    options: list[str],
    module: ModuleType,
    name: str,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    out = tmp_path / "out.json"
    assert script_main(repository, script)([*inputs, *options, "--json", str(out)]) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("stopped by SIGINT: nothing was written; start it again with: ")
    assert not out.exists()


def test_progress_counts_to_the_end(inputs: tuple[str, str], tmp_path: Path) -> None:
    """For every script with a bar: it begins at 0, never goes back, and ends complete."""
    calls: dict[str, list[tuple[int, int]]] = {"open loop": [], "inference": [], "tuning": []}
    checkpoint, dataset = inputs
    sampling = recorded_inference.Sampling(steps=1)
    evaluate_open_loop(
        checkpoint, dataset, "all", sampling, 2, on_progress=lambda *seen: calls["open loop"].append(seen)
    )
    recorded_inference.run_recorded_inference(
        checkpoint,
        dataset,
        tmp_path,
        "all",
        steps=1,
        stride=5,
        on_progress=lambda *seen: calls["inference"].append(seen),
    )
    tuning.tune(
        checkpoint, dataset, [tuning.Candidate("ddim", 1), tuning.Candidate("ddim", 2)], tuning.Budget(),
        EngineSettings(), "all", stride=4, on_progress=lambda *seen: calls["tuning"].append(seen),
    )  # fmt: skip
    totals = {"open loop": 2 * 4 * 12, "inference": 4 * 3, "tuning": 2 * 4 * 3}
    for name, seen in calls.items():
        assert seen[0] == (0, totals[name])
        assert seen[-1] == (totals[name], totals[name])
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert len(seen) > 3
