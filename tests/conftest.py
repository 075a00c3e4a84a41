"""Fixtures shared by all tests."""

import atexit
import contextlib
import fcntl
import gc
import lzma
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm_process
from parsed_once import parse_configs_once

REPOSITORY = Path(__file__).resolve().parents[1]
IN_MEMORY = Path("/dev/shm")
NEEDED = 4 << 30  # bytes; a run holds about half a gigabyte at a time
FOLDERS = "of_a_test_run_"


def pytest_configure(config: pytest.Config) -> None:
    """All temporary files of a run but pytest's own are in one folder, which is removed at its end.

    A folder that a killed run left is removed by the next one: nobody holds its lock. A training run uses one thread:
    otherwise it chooses by the load, and last bits of two runs would differ.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "PYTEST_XDIST_WORKER" in os.environ:
        atexit.register(end_at_once, os.getpid())
        return
    place = where_temporary_files_go()
    for left in place.glob(f"{FOLDERS}*"):
        with contextlib.suppress(OSError), (left / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS, dir=place))
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if config.getoption("numprocesses", None):
        warm_process.start_shared()

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()

    config.add_cleanup(remove)


def end_at_once(worker: int) -> None:
    """Skips the teardown of a test process's thousands of modules, which takes four seconds."""
    if os.getpid() == worker:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def where_temporary_files_go() -> Path:
    """In memory where it has room: to make and remove half a million small files takes minutes on a disk.

    TMPDIR, if it is set, is respected. Programs that tests write are executed, which containers may forbid there.
    """
    if "TMPDIR" in os.environ or not os.access(IN_MEMORY, os.W_OK):
        return Path(tempfile.gettempdir())
    mounted = os.statvfs(IN_MEMORY)
    fits = mounted.f_bavail * mounted.f_frsize >= NEEDED and not mounted.f_flag & os.ST_NOEXEC
    return IN_MEMORY if fits else Path(tempfile.gettempdir())


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """Restores the default signal handlers: background jobs may ignore SIGINT and SIGHUP, which tests would inherit."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def environment_as_activated() -> None:
    """Makes `python` the interpreter that runs the tests, as after `source .venv/bin/activate`; messages use it."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Disables flushing, which is most of the time of writing; tests of flushing patch it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", warm_process.leave_to_the_kernel)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_parsing_of_the_same() -> None:
    """Resolving a config takes an eighth of the time."""
    parse_configs_once()


def pytest_collection_finish() -> None:
    """Exempts tests and modules from garbage collection, since they live to the end, and makes it rarer.

    With torch, Hydra and ten thousand tests loaded it takes a twelfth of the time otherwise.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and reference numbers, kept next to the checkout and never in it."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("real recordings and reference numbers (../shared/data) are not on this machine")
    return path


@pytest.fixture(scope="session")
def reference_checkpoint(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7-D checkpoint written by the reference, unpacked."""
    path = tmp_path_factory.mktemp("reference") / "cogact_7d_tiny.ckpt"
    with lzma.open(shared_data / "reference" / "cogact_7d_tiny.ckpt.xz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return path


@pytest.fixture(scope="session")
def trial(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the inputs of a trial ("40", with its arguments, if any) once, and returns their folder."""
    written: dict[tuple[str, ...], Path] = {}

    def write(number: str, *arguments: str) -> Path:
        if (number, *arguments) not in written:
            (script,) = (shared_data / "trials").glob(f"{number}_*.py")
            folder = tmp_path_factory.mktemp(f"trial_{number}")
            warm_process.run([script, folder, *arguments], folder).check_returncode()
            written[number, *arguments] = folder
        return written[number, *arguments]

    return write
