"""Ctrl-C in every script while it works: one line states what was kept and what continues, the status is 130, and
nothing is half written.

The scripts are those of the folder: a new one fails here until AT_WORK defines how to start it and what it works on.
"""

import functools
import importlib
import itertools
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import warm_process
from evaluation_factory import write_dataset, write_tiny_checkpoint
from log_factory import write_log
from report_factory import write_run
from script_parsers import refusal_of_line
from serve_factory import ServerThread, observation_message
from trajectory_factory import write_trajectory

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.env_runner.tabletop_runner import SETTINGS
from diffusion_policy.model.vpt.network import VPTSettings
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import read_settings
from diffusion_policy.serve.transport.host import computing_thread

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted([*(path for path in (REPOSITORY / "scripts").iterdir() if path.is_file()), REPOSITORY / "train.py"])
HOOK = REPOSITORY / "tests" / "interrupting"
AFTER_UPDATES = "after 0 epochs, 2 updates, kept in "
NOTHING = "nothing was written; start it again with: "
# Unfinished work that the printed command continues: allowed if the line names it and uses --resume.
TAKEN_UP = "out.zarr.partial"
# The guard lets a policy with random weights through.
LOOSE = ["guard.quaternion_tolerance=0.95", "guard.on_workspace=clip", "guard.max_step_m=9", "guard.max_step_rad=9"]
LOOSE += ["guard.max_chunk_m=9", "guard.max_chunk_rad=9", "max_age_s=30", "deadline_s=30"]


@dataclass(frozen=True)
class Case:
    """How a script is started, and the function during whose call Ctrl-C comes.

    Attributes:
        words: its arguments; {name} is an input of the fixture `bench`.
        at: MODULE:FUNCTION[:N] below `diffusion_policy`, or "os:replace:N", when the N-th file is put in place.
        says: how the line continues after "stopped by SIGINT: ".
    """

    words: str
    at: str
    says: str = NOTHING


# Settings of train.py that the checkpoint of `write_tiny_checkpoint` was trained with.
AS_THE_TINY_POLICY = (
    "horizon=8", "policy.crop_shape=[32,32]", "policy.n_layer=1", "policy.n_cond_layers=0", "policy.n_head=2",
    "policy.n_emb=16", "policy.encoder_stride=32", "policy.encoder_activation=relu",
    "policy.noise_scheduler.num_train_timesteps=20", "policy.noise_scheduler.prediction_type=epsilon",
    "task.image_shape=[3,36,40]", "n_action_steps=4", "policy.num_inference_steps=20",
)  # fmt: skip
# The same for the tiny VPT.
AS_THE_TINY_VPT = (
    "policy.hidsize=16", "policy.impala_width=1", "policy.impala_chans=[2,2,2]", "policy.n_recurrence_layers=1",
    "policy.attention_heads=2", "policy.window=4", "task.image_shape=[3,16,16]",
)  # fmt: skip
ROLLOUT = "{policy} --simulator {simulator} --referee kinematic --steps 1 --threads 1 --scenes 2"
GROWTH = "{pose} --target {policy} --rules pose_to_gripper"
CONVERSION = "--input {recordings} --output out.zarr --resolution 40 36"
SMALL = "--output out --episodes 3 --resolution 64 36"
AT_WORK = {
    "adapt.py": Case(f"apply {GROWTH} --out new.ckpt --page out.html", "adapt.apply:prove"),
    "check_parity.py": Case("{dataset} --ckpt {policy} --server {server}", "serve.client:LineClient.ask:2"),
    "collect_corrections.py": Case(
        "{policy} --output out --referee kinematic --camera-size 64 36 --scenes 1 --threads 1",
        "sim.recorder:_write_frame:9",
        "0 of 1 scenes are kept in out; go on with: ",
    ),
    "compare_runs.py": Case("{run} {other_run} --html out.html --json out.json", "report.comparison:score_run:2"),
    "convert_cogact_to_zarr.py": Case(
        CONVERSION, "convert.staging:Staging.finish:2", "1 episodes are kept in out.zarr.partial; go on with: "
    ),
    "convert_dataset.py": Case(
        CONVERSION, "convert.staging:Staging.finish:2", "1 episodes are kept in out.zarr.partial; go on with: "
    ),
    "convert_logs_to_trajectories.py": Case("{served} --output out", "run_log.to_trajectories:_write"),
    "dagger.py": Case(
        "{policy} --dataset {dataset} --workdir out --referee kinematic --camera-size 64 36 --evaluation-scenes 1 "
        + " ".join(f"--set {setting}" for setting in AS_THE_TINY_POLICY),
        "closed_loop.evaluation:roll_out",
        "0 commands have ended and are kept in out; interrupted: Evaluate the start; go on with: ",
    ),
    "demo.py": Case("--quick --workdir out", "closed_loop.evaluation:roll_out", "interrupted at step 1 of 11"),
    "demo_vpt.py": Case("--quick --workdir out", "closed_loop.evaluation:roll_out", "interrupted at step 2 of 6"),
    "doctor.py": Case("--dataset {dataset} --checkpoint {policy} --json out.json", "diagnose.sources:open_checkpoint"),
    "edit_dataset.py": Case("{dataset} --delete 0 --output out.zarr", "edit.write:_describe:2"),
    "evaluate_closed_loop.py": Case(
        f"{ROLLOUT} --json out.json --output out --video 2", "env_runner.rollout:_Episode.execute:3"
    ),
    "evaluate_open_loop.py": Case(
        "{policy} {dataset} --steps 1 --samples 1 --json out.json", "evaluate.open_loop_report:_episode:2"
    ),
    "evaluate_vpt_zero_shot.sh": Case("2 cpu 3 {vpt}", "env_runner.rollout:_Episode.execute:3"),
    "export_dataset.py": Case("{dataset} --lerobot out --task lift", "export.lerobot_writer:LeRobotWriter.add"),
    "export_policy.py": Case("{policy} out.onnx", "export.onnx_policy:export_onnx"),
    "export_run.py": Case("{served} --vlalab out", "run_log.exports:_vlalab_step:2"),
    "finetune_7d_to_8d.sh": Case("cpu 1", "adapt.apply:prove"),
    "finetune_from_7d_to_8d.py": Case("--old_ckpt {pose} --new_ckpt new.ckpt", "adapt.apply:prove"),
    "inspect_cogact_data.py": Case("{recordings} --output-dir out", "diagnose.inspection:look_at_steps"),
    "load_vpt.py": Case("{vpt} --json out.json", "policy.vpt_policy:load_weights"),
    "join_logs.py": Case("{arm_log} {served} --json out.json", "serve.joined_logs:join"),
    "make_demo_trajectories.py": Case(SMALL, "sim.recorder:_record:2", "1 of 3 episodes are kept in out; go on with: "),
    "pretrain_demo_policy.py": Case(
        "--workdir out --output new.ckpt", "sim.recorder:_write_frame:9", "interrupted at step 1 of 3"
    ),
    "record_grove.py": Case(
        "--output out --task log --episodes 2",
        "minecraft.recorder:_record:2",
        "1 of 2 episodes are kept in out; go on with: ",
    ),
    "pretrain_demo_vpt.py": Case(
        "--workdir out --output new.weights --episodes 1", "minecraft.recorder:_record", "interrupted at step 1 of 4"
    ),
    "replay_log.py": Case("{served} --ckpt {policy} --json out.json", "serve.replay:_ask:2"),
    "report.py": Case("--dataset {dataset} --log {log} --out out.html", "report.report_page:_sections"),
    "run_offline_inference.py": Case(
        "{policy} {dataset} --output out --episodes all --steps 1",
        "evaluate.recorded_inference:predict_chunks:3",
        "logs of 2 of 4 episodes are kept in out; go on with: ",
    ),
    "run_dagger_iteration.sh": Case(
        "--task log --continue-from {vpt} --iterations 1 --workdir out --env max_steps=3 --evaluation-scenes 1 "
        "--device cpu " + " ".join(f"--set {setting}" for setting in AS_THE_TINY_VPT),
        "closed_loop.evaluation:roll_out",
        "0 commands have ended and are kept in out; interrupted: Evaluate the start; go on with: ",
    ),
    "run_robot.py": Case(
        "--replay {recordings}/episode_0000 --server {server} --log out",
        "serve.client.control_loop:ControlLoop.tick:3",
        "the arm was stopped, and what it was sent is kept in out/arm_",
    ),
    "serve.py": Case(
        "ckpt={policy} port=0 log.directory=out", "serve.server:_announce", "nothing was logged: no client was served; "
    ),
    "train.py": Case("{training}", "workspace.updates:Updates.make:2", AFTER_UPDATES),
    "train_cogact_finetune.sh": Case("{training}", "workspace.updates:Updates.make:2", AFTER_UPDATES),
    "tune_inference.py": Case(
        "{policy} {dataset} --candidates ddim:1 ddim:2 --json out.json", "serve.tuning:measure:2"
    ),
    "validate_gripper.py": Case("{log} {log} --json out.json --html out.html", "evaluate.gripper:judge:2"),
    "view_dataset.py": Case("{dataset} --output out.html", "report.dataset_episodes:EpisodeViews.view:2"),
    "verify_converted_data.py": Case("--zarr-path {dataset} --output-dir out", "diagnose.inspection:look_at_steps"),
}

# All except those with their own processes or threads also run in this process.
OWN = {
    "demo.py", "demo_vpt.py", "dagger.py", "pretrain_demo_policy.py", "pretrain_demo_vpt.py",
    "serve.py", "train.py", "check_parity.py", "run_robot.py",
}  # fmt: skip
# They are interrupted as others are: recipes as demo.py, launchers as train_cogact_finetune.sh, recordings as
# make_demo_trajectories.py, looking at recordings as verify_converted_data.py.
TWINS = {
    "demo_vpt.py", "pretrain_demo_policy.py", "pretrain_demo_vpt.py", "run_dagger_iteration.sh", "record_grove.py",
    "inspect_cogact_data.py",
}  # fmt: skip
HERE = [name for name in AT_WORK if name not in OWN and name.endswith(".py")]
# This one starts a new interpreter; the others, and what they start, are copies of a process that has everything
# loaded.
FRESH = {"adapt.py"}
# Of those that also run in this process, these get their own by default: a new one, one with a pool, one with
# a simulator. The rest is exhaustive.
IN_A_PROCESS = {*FRESH, "convert_cogact_to_zarr.py", "evaluate_closed_loop.py"}

# Further moments; "os:replace:N" is the moment before the N-th file is put in place.
FURTHER = {
    "adapt.py": [
        Case("inspect {policy} --json out.json", "os:replace"),
        Case(f"plan {GROWTH} --page out.html --json out.json", "adapt.files:plan_checkpoint"),
        Case(f"plan {GROWTH} --page out.html --json out.json", "os:replace:1"),
        Case(f"plan {GROWTH} --page out.html --json out.json", "os:replace:2", "written: out.html; start it again"),
        Case("whatif train_cogact_robot --set policy.n_head=8 --json out.json", "os:replace"),
        Case(f"apply {GROWTH} --out new.ckpt --page out.html", "os:replace:1"),
        Case(f"apply {GROWTH} --out new.ckpt --page out.html", "os:replace:2"),
        Case(f"apply {GROWTH} --out new.ckpt --page out.html", "os:replace:3", "written: new.ckpt; start it again"),
    ],
    "compare_runs.py": [
        Case("{run} {other_run} --html out.html --json out.json", "os:replace:1"),
        Case("{run} {other_run} --html out.html --json out.json", "os:replace:2", "written: out.html; start it again"),
    ],
    "convert_cogact_to_zarr.py": [
        Case(CONVERSION, "convert.run:survey"),
        Case(CONVERSION, "convert.frames:_small_frames:2", ""),
        Case(CONVERSION, "convert.run:assemble", "3 episodes are kept in out.zarr.partial; go on with: "),
    ],
    "convert_logs_to_trajectories.py": [
        Case("{served} {served} --output out", "os:replace:1"),
        Case("{served} {served} --output out", "os:replace:2", "1 episodes of 1 logs are kept in out; go on with: "),
    ],
    "doctor.py": [Case("--dataset {dataset} --json out.json", "os:replace:1")],
    "evaluate_closed_loop.py": [
        Case(f"{ROLLOUT} --json out.json", "env_runner.rollout:_Episode.execute", NOTHING),
        Case(f"{ROLLOUT}", "env_runner.rollout:_Episode.execute:2", "no scene is kept without --json OUT; start it"),
        Case(f"{ROLLOUT} --output out --video 2", "closed_loop.videos:Video.finish:1", "no scene is kept without"),
        Case(f"{ROLLOUT} --json out.json --output out --picture", "os:replace:1"),
        Case(f"{ROLLOUT} --json out.json", "os:replace:1"),
        Case(
            f"{ROLLOUT} --json out.json --compare {{other_policy}}", "closed_loop.evaluation:roll_out:2",
            "the scenes of {policy} are kept in out.json; go on with: ",
        ),
    ],
    "evaluate_open_loop.py": [Case("{policy} {dataset} --steps 1 --samples 1 --json out.json", "os:replace")],
    "export_dataset.py": [
        Case("{dataset} --lerobot out --task lift", "os:replace"),
        Case("{dataset} --zarr-zip out.zarr.zip", "os:replace"),
    ],
    "export_run.py": [
        Case("{served} --vlalab out", "os:replace"),
        Case("{served} --inference-log out", "run_log.writing:_step_entries"),
        Case("{served} --inference-log out", "os:link"),
    ],
    "finetune_from_7d_to_8d.py": [
        Case("--old_ckpt {pose} --new_ckpt new.ckpt", "os:replace:1"),
        Case("--old_ckpt {pose} --new_ckpt new.ckpt", "os:replace:2"),
    ],
    "inspect_cogact_data.py": [
        Case("{recordings} --output-dir out --json out.json", "os:replace:1"),
        Case("{recordings} --output-dir out", "os:replace:2", "written: out/sample_images.png; start it again with: "),
    ],
    "make_demo_trajectories.py": [Case(SMALL, "sim.recorder:_write_frame:9")],
    "replay_log.py": [Case("{served} --ckpt {policy} --json out.json", "os:replace")],
    "report.py": [Case("--dataset {dataset} --log {log} --out out.html", "os:replace")],
    "run_offline_inference.py": [Case("{policy} {dataset} --output out --episodes all --steps 1", "os:link")],
    "tune_inference.py": [Case("{policy} {dataset} --candidates ddim:1 --json out.json", "os:replace")],
    "validate_gripper.py": [
        Case("{log} --json out.json --html out.html", "os:replace:1"),
        Case("{log} --json out.json --html out.html", "os:replace:2", "written: out.json; start it again with: "),
    ],
    "verify_converted_data.py": [
        Case("--zarr-path {dataset} --output-dir out", "os:replace:3", "written: out/sample_images.png, out/action_"),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Small inputs of every script, by name, and a server."""
    folder = tmp_path_factory.mktemp("inputs")
    policy, dataset = write_tiny_checkpoint(folder / "policy.ckpt"), write_dataset(folder / "set.zarr")
    for episode in range(3):
        write_trajectory(folder / "recordings", episode, 12, (40, 36))
    simulator = SETTINGS.read_text().replace("image_size: [320, 180]", "image_size: [64, 36]\n  max_steps: 12")
    (folder / "small.yaml").write_text(simulator)
    words = [f"ckpt={policy}", "port=0", f"log.directory={folder / 'runs'}", "allow_inspection=true", *LOOSE]
    chosen, worker = read_settings(None, words), computing_thread()
    engine = worker.submit(PolicyEngine.open, chosen.ckpt, chosen.engine, chosen.limits.image_pixels).result()
    with ServerThread(engine, chosen, worker) as server:
        with server.client() as client:
            for step in range(4):
                assert client.ask(observation_message(step))["type"] == "action"
        (served,) = (folder / "runs").glob("run_*")
        yield {
            "policy": policy,
            "other_policy": write_tiny_checkpoint(folder / "other.ckpt", seed=1),
            "pose": write_tiny_checkpoint(folder / "pose.ckpt", width=7),
            "dataset": dataset,
            "recordings": folder / "recordings",
            "run": write_run(folder / "run"),
            "other_run": write_run(folder / "other_run"),
            "log": write_log(folder / "inference_log_20260108_171739.json", [1.0] * 5 + [0.0] * 5 + [1.0] * 5),
            "served": served,
            "vpt": write_vpt(folder / "tiny.weights"),
            "arm_log": write_arm_log(folder / "arm_20260108_171739.jsonl"),
            "server": f"127.0.0.1:{server.ports['line']}",
            "simulator": folder / "small.yaml",
            "training": shlex.join([*tiny_run.OVERRIDES, f"task.dataset_path={dataset}", "pretrained.path=null"]),
        }


@pytest.fixture(scope="module")
def never_stopped() -> dict[tuple[str, ...], tuple[int, list[str]]]:
    """Status and files of uninterrupted commands, by their words."""
    return {}


def write_arm_log(path: Path) -> Path:
    """The log of a control loop that requested nothing."""
    path.write_text('{"event": "start", "format": "arm log", "version": 1, "clock_start": 0.0}\n')
    return path


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def assert_nothing_half_written(folder: Path, line: str) -> None:
    """What is left is where the line says, and is complete: nothing is hidden or marked as unfinished."""
    named = [word for word in re.split(r"[ ,;]+", line.partition(" with: ")[0]) if word]
    for name in left_in(folder):
        # a file may have a companion with its name: new.ckpt.ledger.json
        assert any(name == word or name.startswith((f"{word}/", f"{word}.")) for word in named), f"{name}: {line}"
        if name.startswith(f"{TAKEN_UP}/"):
            assert f" kept in {TAKEN_UP}; go on with: " in line, line
            assert line.endswith(" --resume"), line
            continue
        assert not re.search(r"(^|/)\.|part|unfinished|\.new", name), f"{name}: {line}"


def the_line(errors: str) -> str:
    """The one line about the interruption, the last on stderr."""
    assert "Traceback" not in errors, errors
    (line,) = re.findall(r"^stopped by SIGINT.*$", errors, flags=re.MULTILINE)
    assert errors.endswith(f"{line}\n"), errors
    return line


def write_vpt(path: Path) -> Path:
    settings = VPTSettings(hidsize=16, impala_width=1, impala_chans=(2, 2, 2), n_recurrence_layers=1, attention_heads=2,
                           attention_memory_size=8, timesteps=4, img_shape=(16, 16, 3))  # fmt: skip
    torch.save(MinecraftAgentPolicy(settings).state_dict(), path)
    return path


def every_script() -> list[Any]:
    """Exhaustive: those that `test_the_printed_command_does_the_rest` interrupts at the same moment, and twins."""
    rest = (set(HERE) - IN_A_PROCESS) | TWINS
    return [pytest.param(path, marks=[pytest.mark.exhaustive] * (path.name in rest)) for path in SCRIPTS]


def test_every_script_has_its_case() -> None:
    assert {path.name for path in SCRIPTS} == set(AT_WORK)


@pytest.mark.slow
@pytest.mark.parametrize("script", every_script(), ids=lambda path: path.name)
def test_ctrl_c_at_work(script: Path, bench: dict[str, Any], tmp_path: Path) -> None:
    """In its own process and session, as in a terminal."""
    case = AT_WORK[script.name]
    python = sys.executable if script.name in FRESH else warm_process.python()
    words = ["bash" if script.suffix == ".sh" else python, str(script), *arguments_of(case, bench)]
    launcher = {"INIT_CKPT": tmp_path / "new.ckpt", "OLD_CKPT": bench["pose"], "RUN_DIR": tmp_path / "out"}
    launcher |= {"PYTHON": python, "DATASET": bench["dataset"], "GPU": "cpu", "EPOCHS": 9, "EXPERIMENT": ""}
    if script.name == "train_cogact_finetune.sh":
        (tmp_path / "new.ckpt").touch()
    hook = {"INTERRUPT_AT": f"diffusion_policy.{case.at}", "PYTHONPATH": HOOK}
    environment = os.environ | {name: str(value) for name, value in (hook | launcher).items()}
    ended = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, start_new_session=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 128 + signal.SIGINT, ended.stdout + ended.stderr
    line = the_line(ended.stderr)
    assert line.startswith(f"stopped by SIGINT{' ' if case.says == AFTER_UPDATES else ': '}{case.says}"), line
    assert refusal_of_line(line.rpartition(" with: ")[2]) is None
    if case.says == AFTER_UPDATES:
        (latest,) = tmp_path.rglob("latest.ckpt")
        assert f"kept in {latest}; go on with: " in line
        assert read_checkpoint(latest).run_state["progress"]["global_step"] == 2
        assert not [name for name in left_in(tmp_path) if re.search("part|unfinished", name)]
    elif "all steps run again" not in line:
        assert_nothing_half_written(tmp_path, line)


def arguments_of(case: Case, bench: dict[str, Any]) -> list[str]:
    return shlex.split(case.words.format(**bench))


def every_case() -> list[Any]:
    """Every script at work; the exhaustive ones are twins and further moments."""
    first = [(name, AT_WORK[name]) for name in HERE]
    rest = [(name, case) for name, cases in FURTHER.items() for case in cases]
    rest += [(name, case) for name, case in first if name in TWINS]
    marked = [pytest.param(*case, marks=pytest.mark.exhaustive) for case in rest]
    return [*(case for case in first if case not in rest), *marked]


@pytest.mark.parametrize(("script", "case"), every_case(), ids=lambda value: getattr(value, "at", value))
def test_the_printed_command_does_the_rest(
    script: str,
    case: Case,
    bench: dict[str, Any],
    never_stopped: dict[tuple[str, ...], tuple[int, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = [sys.executable, str(REPOSITORY / "scripts" / script), *arguments_of(case, bench)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with monkeypatch.context() as patched:
        interrupt_at(case.at, tmp_path / "here", patched)
        assert run(words) == 128 + signal.SIGINT
    line = the_line(capfd.readouterr().err)
    assert line.startswith(f"stopped by SIGINT: {case.says.format(**bench)}"), line
    assert refusal_of_line(line.rpartition(" with: ")[2]) is None
    assert_nothing_half_written(tmp_path / "here", line)
    again = shlex.split(line.rpartition(" with: ")[2])
    found = run(again), names_of(tmp_path / "here")
    if tuple(words) not in never_stopped:
        (tmp_path / "whole").mkdir()
        monkeypatch.chdir(tmp_path / "whole")
        never_stopped[tuple(words)] = run(words), names_of(tmp_path / "whole")
    assert found == never_stopped[tuple(words)], capfd.readouterr().err


def run(words: list[str]) -> int:
    """A command in this process, with its own arguments and signal handlers; returns its status."""
    listened = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", words[1:])
        patched.setattr(sys, "orig_argv", words)
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(words[1], run_name="__main__")
        finally:
            for number, handler in listened.items():
                signal.signal(number, handler)
    return int(ended.value.code or 0)


def interrupt_at(at: str, folder: Path, patched: pytest.MonkeyPatch) -> None:
    """SIGINT to this process at the N-th call; for functions of `os`, calls that concern a file in the folder count."""
    module, function, number = [*at.split(":"), "1"][:3]
    *holders, name = function.split(".")
    holder = importlib.import_module(module if module == "os" else f"diffusion_policy.{module}")
    holder = functools.reduce(getattr, holders, holder)
    original, calls = getattr(holder, name), itertools.count(1)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        counts = module != "os" or folder in Path(arguments[1]).absolute().parents
        if counts and next(calls) == int(number):
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    patched.setattr(holder, name, interrupted)


def names_of(folder: Path) -> list[str]:
    """Returns hashes of all files, without the time in an inference log."""
    return [re.sub(r"\d{8}_\d{6}", "TIME", name) for name in left_in(folder)]
