"""The page of a dataset: what it lists, what it shows within its size limit, and marks for an edit."""

from __future__ import annotations

import html
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dataset_factory
import numpy as np
import pytest
import tiny_run
from browser import Browser, chromium

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.split import episode_identities
from diffusion_policy.edit import EditError
from diffusion_policy.edit.marks import dataset_marks, read_marks
from diffusion_policy.report import ReportError
from diffusion_policy.report.dataset_page import PageSettings, numbers_of, open_set, write_dataset_page

REPOSITORY = Path(__file__).resolve().parents[2]
LENGTHS = (13, 12, 14)


def script(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = runpy.run_path(str(REPOSITORY / "scripts" / f"{name}.py"))["main"]
    return main


def held(page: Path, name: str) -> Any:
    """Returns a data element of a page."""
    found = re.search(rf'<script type="application/json" id="data-{name}">(.*?)</script>', page.read_text())
    return None if found is None else json.loads(found[1])


def written(page: Path, *paths: Path, **settings: Any) -> str:
    chosen = PageSettings(**settings)
    return write_dataset_page(page, [open_set(path, chosen) for path in paths], chosen)


def viewed(folder: Path, *paths: Path, **settings: Any) -> Path:
    written(folder / "page.html", *paths, **settings)
    return folder / "page.html"


@pytest.fixture(name="one")
def dataset_of_three(tmp_path: Path) -> Path:
    path = tiny_run.write_dataset(tmp_path / "one.zarr", lengths=LENGTHS)
    record = {"tasks": ["lift </script> it"], "success": False, "interventions": [[2, 5]]}
    return dataset_factory.tell(path, {}, record, {"success": True})


@pytest.mark.parametrize("form", dataset_factory.FORMS)
def test_datasets_of_every_form_are_viewed_joined_and_packed(form: str, tmp_path: Path) -> None:
    source = dataset_factory.write(tmp_path / "set.zarr", form)
    packed = dataset_factory.pack(source, tmp_path / "set.zarr.zip")
    page = viewed(tmp_path, source, packed)
    listed, last = held(page, "dataset"), held(page, "episode-3")
    assert [entry["steps"] for entry in listed["episodes"]] == [8, 12, 8, 12]
    assert listed["datasets"][0]["sha256"] == listed["datasets"][1]["sha256"]
    assert {name: len(pictures) for name, pictures in last["pictures"].items()} == {"image": 12, "wrist": 12}
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in last["pictures"]["wrist"])
    pose = ReplayBuffer.open(source)["robot_eef_pose"][8:, :3]
    np.testing.assert_allclose(last["arms"][0]["positions"], pose, atol=1e-4)
    gripper = ReplayBuffer.open(source)["action"][8:, 7]
    np.testing.assert_allclose(last["grippers"][0]["command"], gripper)


def test_tasks_and_flags_are_shown_and_no_text_of_a_dataset_is_markup(one: Path, tmp_path: Path) -> None:
    page = viewed(tmp_path, one)
    listed = held(page, "dataset")
    assert [entry["success"] for entry in listed["episodes"]] == [None, False, True]
    assert [entry["driven"] for entry in listed["episodes"]] == [None, 3, None]
    assert [listed["tasks"][entry["task"]] for entry in listed["episodes"]] == ["", "lift </script> it", ""]
    assert held(page, "episode-1")["interventions"] == [[2, 5]]


def write_rows(path: Path, key: str, change: Callable[[np.ndarray], None]) -> None:
    buffer = ReplayBuffer.open(path, mode="r+")
    rows = np.array(buffer[key][:])
    change(rows)
    buffer[key][:] = rows


def jump(path: Path) -> None:
    write_rows(path, "robot_eef_pose", lambda rows: rows.__setitem__((slice(20, None), 0), 9.0))


def gap(path: Path) -> None:
    write_rows(path, "timestamp", lambda rows: rows.__setitem__(slice(20, 25), rows[20:25] + 60))


def not_finite(path: Path) -> None:
    write_rows(path, "action", lambda rows: rows.__setitem__((20, 1), np.nan))


def black(path: Path) -> None:
    write_rows(path, "image", lambda rows: rows.__setitem__(slice(20, 22), 0))


def lost(path: Path) -> None:
    (path / "data/image/20.0.0.0").unlink()


def never_grips(path: Path) -> None:
    write_rows(path, "action", lambda rows: rows.__setitem__((slice(13, 25), 7), 1.0))


@pytest.mark.parametrize(
    ("harm", "level", "says", "steps"),
    [
        (jump, "warning", "robot_eef_pose jumps by", [6, 8]),
        (gap, "warning", "60.1 s to the next step", [6, 8]),
        (not_finite, "error", "data/action is not finite at 1 steps", [7, 8]),
        (black, "warning", "image is black for 2 steps", [7, 9]),
        (lost, "error", "data/image/20.0.0.0 ", [7, 8]),
        (never_grips, "note", "the gripper neither closes nor opens", [0, 12]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_findings_name_episode_and_steps(
    one: Path, tmp_path: Path, harm: Callable[[Path], None], level: str, says: str, steps: list[int]
) -> None:
    harm(one)
    page = viewed(tmp_path, one, all_frames=harm is black)
    episodes = held(page, "dataset")["episodes"]
    found = [entry for entry in episodes[1]["findings"] if entry["text"].startswith(says)]
    assert [(entry["severity"], entry["steps"]) for entry in found] == [(level, steps)]
    assert not any(entry["text"].startswith(says) for other in (0, 2) for entry in episodes[other]["findings"])
    if harm is lost:
        assert held(page, "episode-1")["pictures"]["image"].count(None) == 1, "no other picture in its place"
    if harm is not_finite:
        positions = held(page, "episode-1")["arms"][0]["positions"]
        assert None not in positions, "measured positions are whole"


def test_a_page_has_a_size_and_states_what_it_left_out(tmp_path: Path) -> None:
    path = tiny_run.write_dataset(tmp_path / "many.zarr", lengths=(12,) * 24)
    page = tmp_path / "page.html"
    message = written(page, path, megabytes=0.25)
    listed = held(page, "dataset")
    assert page.stat().st_size < 0.25 * 2**20
    assert len(listed["episodes"]) == 24
    shown = len(listed["shown"])
    assert 1 < shown < 24
    assert f"{shown} have pictures and curves, as many as fit into 0.25 MB" in message
    assert html.escape(message) in page.read_text()
    assert np.ptp(listed["shown"]) > 12, "spread over the dataset"
    message = written(page, path, episodes=numbers_of(["3", "5-6"]), frames=4)
    assert held(page, "dataset")["shown"] == [3, 5, 6]
    assert held(page, "episode-5")["pictured"] == [0, 4, 7, 11]
    assert "3 have pictures and curves, the requested ones;" in message
    assert "12 of 36 frames are shown (33%)" in message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"megabytes": 0.02}, r"the list of 3 episodes alone takes .*--max-megabytes 1"),
        ({"megabytes": float("nan")}, "a page of nan MB"),
        ({"frames": 0}, "with 0 frames per episode"),
        ({"episodes": [3]}, "no episode 3; there are 3"),
    ],
    ids=["small", "nan", "no frame", "no episode"],
)
def test_what_makes_no_page_is_refused(one: Path, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ReportError, match=says):
        viewed(tmp_path, one, **settings)
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(ReportError, match="does not name episodes"):
        numbers_of(["2-x"])


def test_marks_are_of_one_dataset(one: Path, tmp_path: Path) -> None:
    buffer = ReplayBuffer.open(one)
    other = ReplayBuffer.open(tiny_run.write_dataset(tmp_path / "other.zarr", lengths=(12, 13)))
    file = tmp_path / "marks.json"
    file.write_text(json.dumps({"delete": ["1"], "datasets": dataset_marks([buffer])}))
    assert read_marks(file, [buffer], must_say=True) == ["1"]
    for sources, says in (
        ([other], "its marks belong to .*one.zarr"),
        ([buffer, other], "its marks count over .*one.zarr"),
    ):
        with pytest.raises(EditError, match=says) as refused:
            read_marks(file, sources)
        assert "view_dataset" in str(refused.value), "with the command that makes the page again"
    assert episode_identities(buffer)[0].key != episode_identities(other)[0].key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"delete": ["1"]}', "does not name the datasets"),
        ('{"delete": ["1"], "datasets": []}', "does not name the datasets"),
        ('{"delete": ["1"], "datasets": [3]}', "does not name the datasets"),
        ('{"delete": []}', "no episode is marked"),
        ('{"delete": "12"}', "not a list of numbers"),
        ('{"delete": [[1]]}', "not a list of numbers"),
        ("[1]", "not a file of marks"),
        ("[" * 100_000, "not a file of marks"),
        ("\x00", "not a file of marks"),
    ],
)
def test_what_is_not_a_file_of_marks_is_refused(one: Path, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "marks.json"
    file.write_text(text)
    with pytest.raises(EditError, match=says) as refused:
        read_marks(file, [ReplayBuffer.open(one)], must_say=True)
    assert "\n" not in str(refused.value)


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.key(key, ord(key.upper()) if len(key) == 1 else 0)


def test_episodes_marked_in_a_browser_are_deleted(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gap(one)
    page, downloads = tmp_path / "page.html", tmp_path / "downloads"
    assert script("view_dataset")([str(one), "--output", str(page)]) == 0
    with chromium(tmp_path / "profile") as browser:
        browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        browser.open(page)
        name = "document.querySelector('#episodes .name').textContent"
        assert browser.evaluate(name) == "0 episode_0000"
        press(browser, "ArrowDown", "ArrowRight", "ArrowRight")
        assert browser.evaluate(name) == "1 episode_0001"
        readout = browser.evaluate("document.querySelector('#episodes output').value")
        assert readout.startswith("step 2 of 12, ")
        assert "a person drives" in readout
        browser.evaluate("document.querySelector('.found button').click()")
        assert browser.evaluate("document.querySelector('#episodes output').value").startswith("step 6 of 12")
        press(browser, "ArrowUp", "n", "m", "ArrowDown", "m", "m")
        assert browser.evaluate("document.querySelector('.marking .count').textContent") == "1 marked"
        browser.evaluate("filter.value = 'marked'; filter.dispatchEvent(new Event('change'))")
        assert browser.evaluate("[...rows].filter((row) => !row.hidden).length") == 1
        press(browser, "s")
        browser.wait_for("document.querySelector('.marking .count').textContent === '1 marked, saved'", seconds=10)
        marks = downloads / "one.zarr.marks.json"
        for _ in range(100):
            if marks.is_file():
                break
            browser.evaluate("new Promise((done) => setTimeout(done, 100))")
        assert browser.messages == []
    assert json.loads(marks.read_text())["delete"] == ["1"]
    edit = script("edit_dataset")
    assert edit([str(one), "--delete-marked", str(marks), "--output", str(tmp_path / "edited.zarr")]) == 0
    assert ReplayBuffer.open(tmp_path / "edited.zarr").episode_ends.tolist() == [13, 27]
    again = [str(tmp_path / "edited.zarr"), "--delete-marked", str(marks), "--output", str(tmp_path / "twice.zarr")]
    assert edit(again) == 2, "the numbers of these marks are those of another dataset"
    assert "its marks belong to" in capsys.readouterr().err
