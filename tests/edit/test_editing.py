"""Datasets from datasets: every step accounted for, frames bit-equal, sources untouched."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import dataset_factory
import numpy as np
import pytest

from diffusion_policy.dataset.episode_metadata import EpisodeMetadata, episode_metadata
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.verification import verify_content
from diffusion_policy.edit import EditError
from diffusion_policy.edit.plan import EditPlan, delete, drop_short, plan_of, split_at_gaps, trim_idle
from diffusion_policy.edit.write import ledger_file, write_edited

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST, SECOND = slice(0, 8), slice(8, dataset_factory.N)


@pytest.fixture(params=dataset_factory.FORMS, name="source")
def source_in_every_form(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return dataset_factory.write(tmp_path / "source.zarr", request.param)


@pytest.fixture(name="one")
def one_source(tmp_path: Path) -> Path:
    return dataset_factory.write(tmp_path / "source.zarr", "format 2")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def held(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    return {key: np.asarray(buffer[key][:]) for key in buffer.keys}


def test_what_is_kept_is_the_same_to_the_bit_and_verified_by_new_hashes(source: Path, tmp_path: Path):
    before = files_of(source)
    buffer = ReplayBuffer.open(source)
    ledger = write_edited(delete(plan_of([buffer]), ["0"]), tmp_path / "out.zarr")
    edited = ReplayBuffer.open(tmp_path / "out.zarr")
    for key, values in held(buffer).items():
        np.testing.assert_array_equal(edited[key][:], values[SECOND])
        assert edited[key].dtype == values.dtype
    assert edited.episode_ends.tolist() == [dataset_factory.N - 8]
    assert files_of(source) == before
    found = verify_content(edited)
    assert found.is_complete
    assert (found.compared, found.n_episodes) == (1, 1)
    assert [entry["why"] for entry in ledger["left_out"]] == ["chosen by 0"]
    assert json.loads(ledger_file(tmp_path / "out.zarr").read_text()) == ledger


def test_a_changed_number_in_the_result_is_found(source: Path, tmp_path: Path):
    write_edited(plan_of([ReplayBuffer.open(source)]), tmp_path / "out.zarr")
    changed = ReplayBuffer.open(tmp_path / "out.zarr", mode="r+")
    changed["action"][9] = 0.123
    (fault,) = verify_content(ReplayBuffer.open(tmp_path / "out.zarr")).faults
    assert fault.array == "data/action"


def test_frames_keep_their_packed_bytes_where_one_lies_in_a_file(tmp_path: Path):
    source = dataset_factory.write(tmp_path / "source.zarr", "jpeg")
    ledger = write_edited(delete(plan_of([ReplayBuffer.open(source)]), ["0"]), tmp_path / "out.zarr")
    assert set(ledger["frames"].values()) == {"as in the source"}
    old, new = ((path / "data" / "image") for path in (source, tmp_path / "out.zarr"))
    assert (new / "0.0.0.0").read_bytes() == (old / "8.0.0.0").read_bytes()


def test_datasets_are_laid_end_to_end(source: Path, tmp_path: Path):
    again = dataset_factory.pack(source, tmp_path / "again.zarr.zip")
    buffers = [ReplayBuffer.open(path) for path in (source, again)]
    plan = delete(plan_of(buffers), ["1-2"])
    write_edited(plan, tmp_path / "out.zarr")
    edited = ReplayBuffer.open(tmp_path / "out.zarr")
    for key, values in held(buffers[0]).items():
        np.testing.assert_array_equal(edited[key][:], np.concatenate([values[FIRST], values[SECOND]]))
    assert [(span.episode.source, span.episode.number) for span in plan.kept] == [(0, 0), (1, 3)]


def test_gaps_make_two_episodes_and_leave_nothing_out(one: Path, tmp_path: Path):
    buffer = ReplayBuffer.open(one, mode="r+")
    times = buffer.read("timestamp")
    buffer["timestamp"][:] = times + np.where(np.arange(len(times)) >= 12, 5.0, 0.0)
    plan = split_at_gaps(plan_of([ReplayBuffer.open(one)]), 1.0)
    assert [span.steps for span in plan.kept] == [(0, 8), (0, 4), (4, 12)]
    write_edited(plan, tmp_path / "out.zarr")
    assert ReplayBuffer.open(tmp_path / "out.zarr").episode_ends.tolist() == [8, 12, 20]
    assert plan.left_out == ()


def test_standing_still_at_the_ends_is_trimmed(one: Path):
    still = [
        [(0, 5)],
        [(2, 4), (6, 12)],
    ]  # the first five steps of one episode, and parts of the other including its last six
    plan = trim_idle(plan_of([ReplayBuffer.open(one)]), 0.2, lambda buffer: still)
    assert [span.steps for span in plan.kept] == [(2, 8), (0, 9)]
    assert [(gone.steps, gone.why) for gone in plan.left_out] == [((0, 2), "stands still"), ((9, 12), "stands still")]


def test_every_step_is_kept_or_left_out(one: Path):
    buffers = [ReplayBuffer.open(one)] * 2
    plan = drop_short(trim_idle(delete(plan_of(buffers), ["3"]), 0.0, lambda buffer: [[(0, 6)], [(0, 3)]]), 4)
    counted = np.zeros((2, dataset_factory.N), dtype=int)
    for part in (*plan.kept, *plan.left_out):
        first = part.episode.rows[0]
        counted[part.episode.source, first + part.steps[0] : first + part.steps[1]] += 1
    assert (counted == 1).all()


@pytest.mark.parametrize(
    ("form", "frame"),
    [("format 2", "9.0.0.0"), ("format 3", "c/9/0/0/0"), ("jpeg", "9.0.0.0")],
    ids=lambda value: value,
)
def test_damaged_episodes_are_found_and_left_out(form: str, frame: str, tmp_path: Path):
    source = dataset_factory.write(tmp_path / "source.zarr", form)
    (source / "data" / "wrist" / frame).unlink()
    buffer = ReplayBuffer.open(source, check_files=False)
    plan = delete(plan_of([buffer]), ["damaged"])
    assert [span.episode.number for span in plan.kept] == [0]
    assert "9" in plan.left_out[0].why
    write_edited(plan, tmp_path / "out.zarr")
    ReplayBuffer.open(tmp_path / "out.zarr")


def test_a_hash_names_an_episode(one: Path, tmp_path: Path):
    write_edited(plan_of([ReplayBuffer.open(one)]), tmp_path / "hashed.zarr")
    buffer = ReplayBuffer.open(tmp_path / "hashed.zarr")
    digest = buffer.root.attrs["episodes"][1]["sha256"]
    assert [span.episode.number for span in delete(plan_of([buffer]), [digest[:10]]).kept] == [0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["7"], r"no episode 7 of 2 \(0 to 1\)"),
        (["first"], "'first' does not name episodes"),
        (["deadbeef"], "no episode deadbeef"),
        (["@absent.json"], "not a file of marks"),
    ],
)
def test_missing_episodes_are_refused(one: Path, words: list[str], message: str):
    with pytest.raises(EditError, match=message):
        delete(plan_of([ReplayBuffer.open(one)]), words)


@pytest.mark.parametrize(
    "operation",
    [
        lambda plan: split_at_gaps(plan, 0.0),
        lambda plan: split_at_gaps(plan, float("nan")),
        lambda plan: trim_idle(plan, -1.0, lambda buffer: []),
        lambda plan: drop_short(plan, 0),
    ],
)
def test_numbers_that_mean_nothing_are_refused(one: Path, operation: Callable[[EditPlan], EditPlan]):
    with pytest.raises(EditError, match="expected"):
        operation(plan_of([ReplayBuffer.open(one)]))


@pytest.mark.parametrize("text", ["{", "[]", '{"delete": 3}', '{"keep": ["1"]}'])
def test_invalid_marks_are_refused(one: Path, tmp_path: Path, text: str):
    (tmp_path / "marks.json").write_text(text)
    with pytest.raises(EditError, match="not a file of marks"):
        delete(plan_of([ReplayBuffer.open(one)]), [f"@{tmp_path / 'marks.json'}"])


def test_datasets_of_other_sizes_are_not_one(one: Path, tmp_path: Path):
    other = dataset_factory.write(tmp_path / "other.zarr", "format 2")
    changed = ReplayBuffer.open(other, mode="r+")
    changed["action"].attrs["names"] = ["x", "y", "z", "rx", "ry", "rz", "width", "gripper"]
    with pytest.raises(EditError, match="differ in data/action"):
        write_edited(plan_of([ReplayBuffer.open(one), ReplayBuffer.open(other)]), tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


def test_nothing_is_overwritten_and_nothing_is_written_of_nothing(one: Path, tmp_path: Path):
    plan = plan_of([ReplayBuffer.open(one)])
    write_edited(plan, tmp_path / "out.zarr")
    with pytest.raises(EditError, match="it is not overwritten"):
        write_edited(plan, tmp_path / "out.zarr")
    with pytest.raises(EditError, match="no step is left"):
        write_edited(delete(plan, ["0-1"]), tmp_path / "empty.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "out.zarr.edit.json", "source.zarr"]


def test_the_command_line_says_what_it_did(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(REPOSITORY / "scripts" / "edit_dataset.py"))["main"]
    out = tmp_path / "out.zarr"
    assert main([str(one), "--delete", "1", "--trim-idle", "0.5", "--dry-run", "--output", str(out)]) == 0
    assert not out.exists()
    assert main([str(one), "--delete", "1", "--output", str(out)]) == 0
    output = capsys.readouterr().out
    (following,) = [line for line in output.splitlines() if line.startswith("look at it: ")]
    assert following.endswith(f"verify_converted_data.py --zarr-path {tmp_path / 'out.zarr'}"), (
        "on one line, to be pasted"
    )
    assert "1 episodes of 2, 8 of 20 steps are kept" in output
    assert "nothing was written (--dry-run)" in output
    assert main([str(one), "--delete", "1", "--output", str(out)]) == 2


def test_records_of_recordings_stay_with_their_steps(one: Path, tmp_path: Path):
    record = {"tasks": ["lift"], "success": False, "interventions": [[0, 2], [3, 6]]}
    dataset_factory.tell(one, record, {"interventions": [["a", 2]], "success": "no"})
    still = [[(0, 5)], []]
    write_edited(trim_idle(plan_of([ReplayBuffer.open(one)]), 0.2, lambda buffer: still), tmp_path / "out.zarr")
    metadata = episode_metadata(ReplayBuffer.open(tmp_path / "out.zarr"))
    assert metadata[0] == EpisodeMetadata(("lift",), success=False, interventions=((1, 4),)), (
        "counted from the first kept step"
    )
    assert metadata[1] == EpisodeMetadata(), "what is no flag is not taken for one"
