"""The page: its content for each input, and how a browser shows it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Browser, chromium
from log_factory import document, pose, write_log
from report_factory import checkpoint_with_ledger, open_loop, write_run
from tiny_run import write_dataset

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.playback import dataset_of_log, playbacks_of_episode, playbacks_of_log
from diffusion_policy.report import ReportError, report_page
from diffusion_policy.report.replay import replay_data
from diffusion_policy.report.report_page import Sources, make_report, read_open_loop, write_report
from diffusion_policy.report.sections_of_errors import guard_section, guarded, motion_of, served_interventions
from diffusion_policy.run_log import LogStep, RunLog, read_log, write_inference_log

GRASP = [1.0] * 6 + [0.02] * 5 + [0.97] * 4


def jpeg() -> bytes:
    frame = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (36, 1, 3))
    return cv2.imencode(".jpg", frame)[1].tobytes()


@dataclass
class Files:
    checkpoint: Path
    dataset: Path
    run: Path
    log: Path
    server_log: Path
    open_loop: Path

    def sources(self, *names: str) -> Sources:
        every = Sources((self.dataset,), self.checkpoint, self.run, (self.log, self.server_log), (self.open_loop,))
        empty: dict[str, Any] = {"datasets": (), "logs": (), "open_loop": (), "closed_loop": ()}
        values = {name: getattr(every, name) if name in names else empty.get(name) for name in vars(every)}
        return Sources(**values)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A dataset, a run, a log on an episode of the dataset, a log of a server, open-loop errors."""
    folder = tmp_path_factory.mktemp("sources")
    dataset = write_dataset(folder / "set.zarr")
    buffer = ReplayBuffer.open(dataset)
    poses, actions = buffer["robot_eef_pose"][:13], buffer["action"][:13]
    steps = [
        LogStep(
            i,
            np.append(poses[i], 1.0),
            np.repeat(actions[i][None], 4, axis=0),
            {"timestamp": 0.1 * i},
            {"image": jpeg()},
        )
        for i in range(13)
    ]
    over = write_inference_log(folder, steps, {"dataset": str(dataset), "episode": 0, "weights": "ema_model"})
    log = document(GRASP, 3)
    for i, step in enumerate(log["steps"]):
        step["timing"] = {
            "server_recv": i + 0.0,
            "process_start": i + 0.001,
            "infer_start": i + 0.02,
            "infer_end": i + 0.2,
        }
    server = folder / "inference_log_20260108_101112.json"
    server.write_text(json.dumps(log))
    checkpoint = checkpoint_with_ledger(folder / "grown.ckpt")
    return Files(checkpoint, dataset, write_run(folder / "run"), over, server, open_loop(folder / "errors.json"))


ALL = ("datasets", "checkpoint", "run", "logs", "open_loop")


@pytest.mark.parametrize(
    ("given", "sections"),
    [
        (("datasets",), "findings data gripper trajectories replay"),
        (("logs",), "findings data gripper trajectories latency guard replay"),
        (("run",), "findings training horizon"),
        (("open_loop",), "findings open-loop"),
        (("checkpoint",), "findings ledger"),
        (ALL, "findings data ledger training gripper open-loop trajectories latency guard replay"),
    ],
    ids=["dataset", "logs", "run", "open loop", "checkpoint", "all"],
)
def test_sections_appear_for_what_is_given(
    files: Files, given: tuple[str, ...], sections: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights(monkeypatch)
    _, page = make_report(files.sources(*given))
    assert [part.split('"')[0] for part in page.split('<section id="')[1:]] == sections.split()
    assert page.count('type="application/json"') == 1 + ("replay" in sections)


def test_several_datasets_have_a_section_each(files: Files, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other.zarr")
    _, page = make_report(Sources((files.dataset, other)))
    anchors = [part.split('"')[0] for part in page.split('<section id="')[1:]]
    assert anchors == ["findings", "data", "data-2", "gripper", "trajectories", "replay"]
    assert page.count('id="plot-lengths"') == page.count('id="plot-lengths-2"') == 1
    assert f"{other}</p>" in page


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of these tests has an empty checkpoint; only its numbers are used."""
    monkeypatch.setattr("diffusion_policy.run_folder.reading.RunFolder.deployable", None)


def test_the_verdict_is_one_sentence_about_the_cause(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    no_weights(monkeypatch)
    verdict, page = make_report(files.sources("datasets"))
    assert verdict.level == "doubt"
    assert verdict.sentence.startswith("It can be trained on, with doubts: 4 episodes")
    assert page.index(verdict.sentence) < page.index("<section")
    bad, _ = make_report(files.sources("open_loop"))
    assert bad.level == "bad"
    assert bad.sentence.startswith("Do not deploy it: open loop: 9 mm")


def test_open_loop_errors_are_described_in_words(files: Files) -> None:
    _, page = make_report(files.sources("open_loop"))
    assert "Gripper: 6 of 7 recorded events found in 2 samples (95 % interval 49%-97%), 0 early and 6 late" in page
    assert "minus a copy of the measured gripper: -0.3 (95 % interval -0.4 to -0.2)" in page
    assert "samples are 1 to 4 apart" in page


def test_errors_of_an_older_file_are_shown_without_what_it_lacks(files: Files, tmp_path: Path) -> None:
    document = json.loads(files.open_loop.read_text())
    del document["reports"][0]["spread"], document["reports"][0]["beside_copycat"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    _, page = make_report(Sources(open_loop=(old,)))
    assert "samples are" not in page
    assert "position error per step of the chunk: policy 9 at the first" in page


def test_good_logs_make_a_good_verdict(tmp_path: Path) -> None:
    log = write_log(tmp_path / "inference_log_1.json", GRASP * 3)
    verdict, _ = make_report(Sources(logs=(log,)))
    assert verdict.level == "good"
    assert verdict.sentence == (
        "Nothing forbids a rollout: the gripper opens and closes in 1 of 1 logs (95 % interval 21%-100%); "
        "no trouble found."
    )


def test_text_from_files_is_escaped_and_nothing_is_fetched(files: Files) -> None:
    _, page = make_report(files.sources("open_loop"))
    assert "best<b>.ckpt" not in page
    assert "hold &lt;pose" in page
    assert "default-src 'none'" in page.replace("&#39;", "'")
    shell = page.split("<script>")[0]
    assert "src=" not in shell
    assert "<link" not in shell


def test_the_page_is_written_whole_and_not_too_large(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    write_report(out, files.sources("logs"))
    assert out.stat().st_size < 15 * 2**20
    monkeypatch.setattr(report_page, "MOST_BYTES", 1000)
    with pytest.raises(ReportError, match="more than 15"):
        write_report(out, files.sources("logs"))
    assert os.listdir(tmp_path) == ["report.html"]


def test_nothing_to_report_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nothing to report on"):
        make_report(Sources())
    torn = tmp_path / "torn.json"
    torn.write_text('{"reports": [{}]}')
    with pytest.raises(ReportError, match="not the JSON of"):
        read_open_loop(torn)


def test_a_log_is_put_beside_the_recording_only_if_it_is_the_same(files: Files) -> None:
    log, buffer = read_log(files.log), ReplayBuffer.open(files.dataset)
    playback = playbacks_of_log(log, buffer)[0]
    assert playback is not None
    assert playback.recorded is not None
    np.testing.assert_array_equal(playback.recorded, buffer["action"][:13, 7])
    assert list(playback.frames(0)) == ["image"]
    assert dataset_of_log(log) == files.dataset
    other = RunLog(log.path, 3, {**log.meta, "episode": 2}, log.steps)
    holed = replace(log, steps=log.steps[:5] + log.steps[9:])
    beside = playbacks_of_log(holed, buffer)[0]
    assert beside is not None
    assert beside.recorded is not None
    np.testing.assert_array_equal(beside.recorded, np.delete(playback.recorded, range(5, 9)))
    unlike = playbacks_of_log(other, buffer)[0]
    assert unlike is not None
    assert unlike.recorded is None


def test_a_frame_that_does_not_decode_is_left_out(files: Files) -> None:
    playback = playbacks_of_log(read_log(files.server_log))[0]
    assert playback is not None
    assert playback.frames(0) == {}


def test_a_recorded_episode_plays_what_was_commanded(files: Files) -> None:
    buffer = ReplayBuffer.open(files.dataset)
    playback = playbacks_of_episode(buffer, 1)[0]
    assert len(playback) == 12
    np.testing.assert_allclose(playback.chunks[0, 3], buffer["action"][16, :3])
    np.testing.assert_allclose(playback.chunks[-1, -1], buffer["action"][24, :3])
    data = replay_data(playback, most_frames=5)
    assert data["steps"] == [0, 3, 6, 9]
    assert data["cameras"] == ["image"]
    assert data["frames"][0][0].startswith("data:image/jpeg;base64,")


def test_the_guard_looks_at_logged_chunks(files: Files, tmp_path: Path) -> None:
    log = read_log(files.server_log)
    assert guarded(motion_of(log))["step distance"] == 0
    jump = [LogStep(0, np.array([*pose(0), 1.0]), np.array([[0.39, 0.0, 0.2, *pose(0)[3:], 1.0]]))]
    assert guarded(motion_of(RunLog(tmp_path / "jump", 3, {}, (*jump,))))["step distance"] == 1
    far = [LogStep(0, np.array([*pose(0), 1.0]), np.array([[0.3, 0.0, 0.2, *pose(0)[3:], 1.0]])), *jump * 2]
    assert guarded(motion_of(RunLog(tmp_path / "far", 3, {}, tuple(far)))).total() == 2


def test_what_a_server_logged_of_its_guard_is_counted(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    lines = [
        {"step": 0, "interventions": {"step distance": 3}},
        {"event": "error", "code": "refused", "message": "workspace: action 0 is outside"},
        {"event": "error", "code": "late", "message": "too late"},
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = RunLog(tmp_path, 4, {}, logged_steps(1))
    assert served_interventions(log) == {"step distance": 3, "refused: workspace": 1}
    section = guard_section([log])
    assert section is not None
    assert "Of 2 chunks 1 were refused; 3 actions of the others were limited." in section.body


def logged_steps(count: int) -> tuple[LogStep, ...]:
    return tuple(LogStep(i, np.array([*pose(i), 1.0]), np.array([[*pose(i), 1.0]])) for i in range(count))


@pytest.fixture(scope="module")
def page(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(out, files.sources(*ALL))
    return out


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        opened.emulate("light")
        opened.open(page)
        opened.wait_for("document.documentElement.dataset.figures !== undefined")
        yield opened


def test_every_section_and_figure_is_drawn_without_a_word_in_the_console(browser: Browser) -> None:
    plots = browser.evaluate("document.querySelectorAll('.plot > div').length")
    assert plots == int(browser.evaluate("document.documentElement.dataset.figures")) > 10
    assert browser.evaluate("[...document.querySelectorAll('.plot > div')].every(d => d.querySelector('.main-svg'))")
    flat = "[...document.querySelectorAll('section, .plot > div')].filter(e => e.getBoundingClientRect().height < 60)"
    assert browser.evaluate(f"{flat}.length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    titles = browser.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title).join(' ')")
    assert "Zoom" in titles
    assert "Share" not in titles
    boxes = "[...document.querySelectorAll('#ledger .treemap .slice path.surface')].map(p => getComputedStyle(p).fill)"
    assert len(set(browser.evaluate(boxes))) == 3, "what was copied, what has grown, and the frame around them"
    assert browser.messages == []


def test_the_slider_moves_by_keyboard_and_the_frame_with_it(browser: Browser) -> None:
    browser.evaluate("document.querySelector('.replay-one:not([hidden]) input').focus()")
    before = browser.evaluate("document.querySelector('.replay-one output').value")
    browser.key("ArrowRight", 39)
    assert browser.evaluate("document.querySelector('.replay-one').dataset.step") == "1"
    after = browser.evaluate("document.querySelector('.replay-one output').value")
    assert before.startswith("step 0 of 13")
    assert after.startswith("step 1 of 13, 0.1 s; arm at")
    browser.key("End", 35)
    assert browser.evaluate("document.querySelector('.replay-one').dataset.step") == "12"
    assert browser.evaluate("document.querySelector('.replay-one img').src").startswith("data:image/jpeg")
    assert browser.evaluate("document.querySelector('.replay-one .views polyline').getAttribute('points').length") > 20
    assert browser.messages == []


def test_play_runs_to_the_end(browser: Browser) -> None:
    browser.evaluate("document.querySelector('.replay-one button').click()")
    assert browser.evaluate("document.querySelector('.replay-one button').textContent") == "Pause"
    browser.wait_for("document.querySelector('.replay-one').dataset.step === '12'")
    browser.wait_for("document.querySelector('.replay-one button').textContent === 'Play'")


def test_another_replay_is_chosen(browser: Browser) -> None:
    choose = "const s = document.querySelector('select.which'); s.value = 'r1'; s.dispatchEvent(new Event('change'));"
    browser.evaluate(choose)
    shown = "[...document.querySelectorAll('.replay-one')].filter(r => !r.hidden).map(r => r.dataset.replay)"
    assert browser.evaluate(shown) == ["r1"]
    assert not browser.evaluate("document.querySelector('[data-replay=r1] .noframe').hidden")


def test_pictures_and_controls_have_names(browser: Browser) -> None:
    assert browser.evaluate("[...document.images].every(i => i.alt.length > 8)")
    assert browser.evaluate("[...document.querySelectorAll('.plot > div')].every(d => d.ariaLabel.length > 8)")
    assert browser.evaluate("[...document.querySelectorAll('input')].every(i => i.ariaLabel)")
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    own = "[...document.querySelectorAll('[id]')].filter(e => !e.closest('.js-plotly-plot > *')).map(e => e.id)"
    assert browser.evaluate(f"{own}.filter((id, i, all) => all.indexOf(id) !== i)") == []


CONTRAST = """(() => {
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number).reduce(
    (sum, value, i) => sum + [0.2126, 0.7152, 0.0722][i] * channel(value), 0);
  const under = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll('p, td, th, figcaption, a, .tag, summary, h2')];
  return Math.min(...texts.map((e) => { const over = light(getComputedStyle(e).color);
    return (Math.max(over, under) + 0.05) / (Math.min(over, under) + 0.05); }));
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, scheme: str) -> None:
    browser.emulate(scheme)
    browser.wait_for(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    assert browser.evaluate(CONTRAST) >= 4.5
    assert browser.messages == []


def test_a_narrow_window_needs_no_sideways_scrolling(browser: Browser) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=False)
    browser.wait_for("innerWidth === 420 && document.documentElement.scrollWidth <= innerWidth", seconds=30)
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_it_prints_in_black_on_white(browser: Browser) -> None:
    browser.emulate("dark", media="print")
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    wide = "[...document.querySelectorAll('.plot > div')].filter(d => d.querySelector('.main-svg').clientWidth > {})"
    browser.wait_for(f"{wide.format('d.clientWidth')}.length === 0 && document.body.clientWidth === 700")
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    browser.wait_for(f"{wide.format('400')}.length > 0")
    pages = browser.call("Page.printToPDF", printBackground=True)["data"]
    assert len(pages) > 10_000
    browser.emulate("light")
