"""The command for training, as typed by users."""

import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import warm_process
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from diffusion_policy.training_config import ConfigError, checked_arguments
from diffusion_policy.workspace.summary import resume_command

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def command(*overrides):
    return [sys.executable, str(REPOSITORY / "train.py"), "--config-name=train_cogact_robot", *overrides]


def train(*overrides, cwd):
    return warm_process.run(command(*overrides)[1:], cwd)


def check(*arguments):
    checked_arguments(arguments)


@pytest.mark.slow
def test_the_line_that_users_type_trains_into_a_dated_folder_and_can_be_interrupted(dataset, tmp_path):
    overrides = [
        *tiny_run.OVERRIDES,
        f"task.dataset_path={dataset}",
        "training.resume=False",
        "training.num_epochs=200",
    ]
    running = subprocess.Popen(
        [warm_process.python(), *command(*overrides)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 200
    pattern = "data/outputs/*/*_train_diffusion_transformer_hybrid_cogact_robot_8d/logs.json.txt"
    while time.monotonic() < deadline:
        logs = list(tmp_path.glob(pattern))
        if logs and logs[0].read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 128 + signal.SIGINT, output
    (log,) = tmp_path.glob(pattern)
    assert (log.parent / "checkpoints" / "latest.ckpt").is_file()
    assert "SIGINT: the update or validation under way is finished, then a checkpoint is saved; once more" in output
    start = f"go on with: python {REPOSITORY / 'train.py'} --config-name=train_cogact_robot"
    assert f"{start} 'task.image_shape=[3,36,40]' " in output
    assert f"training.resume=True hydra.run.dir={log.parent}" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_finished_run_ends_with_its_findings_the_best_checkpoint_and_the_next_command(dataset, tmp_path):
    overrides = [*tiny_run.OVERRIDES, f"task.dataset_path={dataset}", "training.num_epochs=1", "hydra.run.dir=run"]
    ended = train(*overrides, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    findings, summary = ended.stdout.split("finished after 1 epochs, ")
    assert "starts from scratch" in findings
    assert "held-out gripper events found (95 % interval " in findings
    assert findings.index("What to do: ") < findings.index("next: ")
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert f"checkpoint: {checkpoint} (after epoch 1, " in summary
    assert findings.count("next: ") + summary.count("next: ") == 1
    script = REPOSITORY / "scripts" / "run_offline_inference.py"
    following = f"python {script} {checkpoint} {dataset} --output "
    assert f"see what it does in held-out episodes: {following}" in summary


def test_a_refusal_is_one_line_and_status_two(tmp_path):
    ended = train("task.dataset_path=absent.zarr", "training.device=cpu", cwd=tmp_path)
    assert ended.returncode == 2
    script = REPOSITORY / "scripts" / "convert_cogact_to_zarr.py"
    todo = f"convert recordings to one first: python {script} --input TRAJECTORIES --output absent.zarr"
    assert ended.stderr == f"error: absent.zarr: no zarr dataset there; {todo}\n"


def test_a_misspelled_setting_names_the_closest_one_before_anything_starts(tmp_path):
    ended = train("training.num_epoch=3", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: training.num_epoch=3: no such setting; did you mean training.num_epochs?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainig.device=cpu"], r"trainig.device=cpu: no such setting; did you mean training.device\?"),
        (["task=cogact_robot_9d"], r"did you mean task=cogact_robot_8d\? there are task=cogact_robot_10d"),
        (["experiment=finetune8d"], r"did you mean experiment=finetune_8d\?"),
        (["--config-name=train_cogact"], "no such config; there are .*train_cogact_robot"),
        (["training.num_epochs=abc"], r"training.num_epochs=abc: expected a whole number .it is 600 by default"),
        (["training.num_epochs=1.5"], "training.num_epochs=1.5: expected a whole number"),
        (["optimizer.learning_rate=1e-4x"], "optimizer.learning_rate=1e-4x: expected a number"),
        (["pretrained.path=a/epoch=1.ckpt"], "needs quotes: .*pretrained.path="),
    ],
)
def test_what_hydra_refuses_is_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["+task.dataset.extra=1"],
        ["hydra.run.dir=x"],
        ["-m", "training.seed=1,2"],
        ["optimizer.learning_rate=1", "training.rollout_every=null", "training.resume=a/run", "policy.crop_shape=null"],
        ["experiment=finetune_8d", "training.max_train_steps=3"],
    ],
)
def test_what_hydra_accepts_is_left_alone(arguments):
    check(*arguments)


def test_the_command_to_continue_repeats_the_overrides_of_the_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- task.dataset_path=a b\n- training.resume=False\n")
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: {job: {config_name: mine}}")
    command = (
        f"python train.py --config-name=mine 'task.dataset_path=a b' training.resume=True hydra.run.dir={tmp_path}"
    )
    assert resume_command(tmp_path) == command


def test_the_command_to_continue_starts_as_many_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    end = f"train.py --config-name=train_cogact_robot training.resume=True hydra.run.dir={tmp_path}"
    assert resume_command(tmp_path) == f"torchrun --nproc-per-node 4 {end}"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert resume_command(tmp_path) == f"torchrun --nnodes 2 --nproc-per-node 4 {end}"


def test_ctrl_c_before_the_first_update_and_a_second_one_say_what_is_left(tmp_path, capsys):
    end_at_once = runpy.run_path(str(REPOSITORY / "train.py"))["end_at_once"]
    with pytest.raises(SystemExit, match="130"):
        end_at_once(tmp_path)
    text = capsys.readouterr().err
    assert text == "ended at once: nothing was saved; the same command starts it again\n"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.ckpt").touch()
    with pytest.raises(SystemExit, match="130"):
        end_at_once(tmp_path)
    text = capsys.readouterr().err
    assert "updates since its last checkpoint are lost\ngo on with: python train.py " in text
    assert f"training.resume=True hydra.run.dir={tmp_path}\n" in text


def test_a_signal_that_a_library_swallowed_ends_the_start(tmp_path, monkeypatch, capsys):
    train = runpy.run_path(str(REPOSITORY / "train.py"))["train"]
    stop, where = train.__globals__["STOP"], OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}})
    monkeypatch.setattr(HydraConfig, "get", lambda: where)
    monkeypatch.setitem(train.__globals__, "warn_of_data", lambda cfg: setattr(stop, "signal", signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        train(OmegaConf.create({"_target_": "builtins.dict"}))
    assert capsys.readouterr().err.startswith("ended at once: nothing was saved")


def test_a_finished_run_whose_numbers_cannot_be_read_stays_a_good_one(tmp_path, capsys):
    runpy.run_path(str(REPOSITORY / "train.py"))["print_findings"](tmp_path / "nowhere")
    text = capsys.readouterr()
    assert "the run is finished, but its results cannot be read" in text.err
    assert "nowhere" in text.err


def test_a_refusal_does_not_wait_for_the_report(tmp_path):
    words = [sys.executable, "-X", "importtime", str(REPOSITORY / "train.py"), "training.num_epoch=1"]
    refused = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert refused.returncode == 2
    assert "training.num_epochs" in refused.stderr
    assert "diffusion_policy.report" not in refused.stderr
