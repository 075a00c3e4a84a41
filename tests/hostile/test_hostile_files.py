"""Every file of the corpus is refused in one sentence; nothing in it runs, and memory and time stay small.

The canary is a file that the programs in the corpus would create. It is first shown to work: opened the way that most
code opens checkpoints, the same files do create it.
"""

import copyreg
import pickle
import resource
import shlex
import time
import zipfile

import dill
import pytest
import torch
from hostile import archives, contents, programs

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.tensor_file import open_tensor_file

READERS = {"checkpoint": read_checkpoint, "policy": load_policy, "tensors": open_tensor_file}
MOST_MEMORY = 200 * 2**20
MOST_SECONDS = 10.0
CASES = [*programs.CASES, *contents.CASES, *archives.CASES]
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def command(canary):
    return f"touch {shlex.quote(str(canary))}"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "incoming"
    path.mkdir()
    return path


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded():
    """Isolates the memory of a case."""
    import diffusers.schedulers.scheduling_ddpm

    import diffusion_policy.policy.diffusion_transformer_hybrid_image_policy  # noqa: F401

    assert diffusers.schedulers.scheduling_ddpm


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) == len(BY_NAME)
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", BY_NAME)
def test_is_refused_and_nothing_runs(name, folder, canary):
    case = BY_NAME[name]
    path = case.write(folder, command(canary))
    memory, started = peak_memory(), time.process_time()
    with pytest.raises(WorkspaceError, match=case.refusal) as caught:
        READERS[case.reader](path)
    assert time.process_time() - started < MOST_SECONDS
    assert peak_memory() - memory < MOST_MEMORY
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["os_system", "builtins_eval", "builtins_exec", "stacked_name", "instance"])
def test_the_canary_sings_for_a_plain_unpickler(name, folder, canary):
    with zipfile.ZipFile(BY_NAME[name].write(folder, command(canary))) as archive:
        program = archive.read("archive/data.pkl")
    pickle.loads(program)
    assert canary.exists()


@pytest.mark.parametrize("name", ["deep_inside_the_optimizer", "object_with_setstate"])
def test_the_canary_sings_for_the_usual_way_of_loading(name, folder, canary):
    torch.load(BY_NAME[name].write(folder, command(canary)), pickle_module=dill, weights_only=False)
    assert canary.exists()


def test_an_extension_code_that_some_library_registered_opens_no_reader(folder, canary):
    copyreg.add_extension("posix", "system", 1)
    try:
        path = BY_NAME["extension_registry"].write(folder, command(canary))
        with pytest.raises(WorkspaceError, match="the instruction EXT1"):
            read_checkpoint(path)
        assert not canary.exists()
    finally:
        copyreg.remove_extension("posix", "system", 1)
