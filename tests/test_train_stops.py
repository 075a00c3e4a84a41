"""train.py ended from outside: all its processes are signaled, as by batch systems, `timeout` and terminals."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import warm_process

from diffusion_policy.checkpoint import read_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
WORKERS = ("dataloader.num_workers=2", "val_dataloader.num_workers=1")
WITHOUT_WORKERS = ("dataloader.num_workers=0", "val_dataloader.num_workers=0")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def command(dataset, *launcher):
    overrides = [*tiny_run.OVERRIDES, *WORKERS, f"task.dataset_path={dataset}", "training.num_epochs=2000"]
    script = [str(REPOSITORY / "train.py"), "--config-name=train_cogact_robot"]
    return [sys.executable, *launcher, *script, *overrides, "training.sample_every=0", "hydra.run.dir=run"]


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_updates(folder):
    log = folder / "run" / "logs.json.txt"
    return log.is_file() and log.read_text().count("\n") >= 3


def members(group):
    """Processes of a group that are not defunct."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


def assert_saved_and_alone(folder, group, output):
    assert "Traceback" not in output, output
    state = read_checkpoint(folder / "run" / "checkpoints" / "latest.ckpt").run_state
    assert state["progress"]["global_step"] >= 2
    wait_for(lambda: not members(group), 20)


@pytest.mark.slow
def test_sigterm_to_all_processes_saves_and_says_how_to_continue(dataset, tmp_path):
    running = subprocess.Popen(
        command(dataset), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: has_updates(tmp_path))
    assert len(members(running.pid)) >= 3  # with loader workers
    os.kill(running.pid, signal.SIGTERM)
    os.killpg(running.pid, signal.SIGTERM)  # as `timeout` does
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 128 + signal.SIGTERM, output
    assert_saved_and_alone(tmp_path, running.pid, output)
    line = next(line for line in output.splitlines() if line.startswith("stopped by SIGTERM "))
    following = line.partition("; go on with: ")[2]
    assert following.endswith(f"training.resume=True hydra.run.dir={tmp_path / 'run'}")
    resumed = warm_process.run([*shlex.split(following)[1:], "training.num_epochs=1"], REPOSITORY)
    assert "resumed at epoch" in resumed.stdout + resumed.stderr


@pytest.mark.slow
@pytest.mark.exhaustive  # several processes, which agree to stop as one does
def test_sigterm_to_torchrun_and_all_below_it_saves(dataset, tmp_path):
    # torchrun itself is a new interpreter; its children are copies of a process that has everything loaded
    environment = os.environ | {"PYTHON_EXEC": warm_process.python()}
    running = subprocess.Popen(
        [*command(dataset, *TORCHRUN), *WITHOUT_WORKERS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path, start_new_session=True, env=environment,
    )  # fmt: skip
    wait_for(lambda: has_updates(tmp_path))
    groups = {running.pid, *(int(row[0]) for row in all_below(running.pid))}
    for group in groups:
        os.killpg(group, signal.SIGTERM)
    output, errors = running.communicate(timeout=200)
    assert "; go on with: " in errors, output + errors
    assert "--nproc-per-node 2" in errors
    for group in groups:
        assert_saved_and_alone(tmp_path, group, output)


def all_below(pid):
    """Rows (group, pid) of a process and all its descendants."""
    listed = subprocess.run(["ps", "-eo", "pgid=,pid=,ppid="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found, grown = {pid}, True
    while grown:
        more = {row[1] for row in rows if row[2] in found} | found
        grown, found = more != found, more
    return [row for row in rows if row[1] in found]


@pytest.mark.slow
@pytest.mark.exhaustive  # another signal than in the tests above
def test_a_terminal_that_is_closed_saves(dataset, tmp_path):
    child, terminal = pty.fork()
    if child == 0:  # as a shell's foreground job
        os.chdir(tmp_path)
        os.execv(sys.executable, command(dataset))
    shown = b""
    deadline = time.monotonic() + 200
    while not has_updates(tmp_path) and time.monotonic() < deadline:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP, shown.decode()
    assert_saved_and_alone(tmp_path, child, shown.decode())


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (signal.SIGTERM, signal.SIGHUP))]
)
def test_a_signal_while_a_run_starts_is_one_line(dataset, tmp_path, number):
    running = subprocess.Popen(command(dataset), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    wait_for((tmp_path / "run" / ".hydra" / "overrides.yaml").is_file)
    running.send_signal(number)
    _, errors = running.communicate(timeout=200)
    message = "ended at once: nothing was saved; the same command starts it again\n"
    assert (running.returncode, errors) == (128 + number, message)
