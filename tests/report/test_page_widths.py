"""Pages on narrow screens: nothing is off the screen, and no text is squeezed to one word per line."""

import json
from collections.abc import Iterator
from pathlib import Path

import dataset_factory
import pytest
from browser import Browser, chromium
from evaluation_factory import write_tiny_checkpoint
from log_factory import write_log
from report_factory import checkpoint_with_ledger, closed_loop, metrics, open_loop, write_run
from tiny_run import write_dataset

from diffusion_policy.adapt.files import open_target, plan_file, rules_of
from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.evaluate.gripper_table import validate_logs
from diffusion_policy.report.comparison import compare
from diffusion_policy.report.dataset_page import PageSettings, open_set, write_dataset_page
from diffusion_policy.report.gripper_page import write_page as write_gripper_page
from diffusion_policy.report.ledger_page import write_page
from diffusion_policy.report.report_page import Sources, write_report

WIDTHS = [1400, 1000, 800, 390]
# Text with no more than this much on a line is squeezed.
NARROWEST = 110
# Every box with text of its own that shows more than three lines of it in less than NARROWEST px;
# column headings may.
SQUEEZED = f"""(() => {{
  const all = (root) => [...root.querySelectorAll('*')];
  return all(document.body).filter((e) => {{
    const spoken = (n) => n.nodeType === 3 && /^\\s*\\S.{{15,}} .{{10,}}/.test(n.textContent);
    const own = [...e.childNodes].some(spoken);
    const box = e.getBoundingClientRect();
    return own && box.height > 70 && box.width > 0 && box.width < {NARROWEST} && !e.closest('svg, script, style, th');
  }}).map((e) => `${{e.tagName}} ${{e.textContent.trim().slice(0, 60)}}`);
}})()"""
# Boxes with overflowing content; on a phone, tables of numbers may scroll.
OFF_SCREEN = """(() => {
  const all = (root) => [...root.querySelectorAll('*')];
  const wide = all(document.body).filter((e) => e.matches('.scroll') && e.scrollWidth > e.clientWidth + 1);
  return wide.map((e) => `${e.className} ${e.scrollWidth} in ${e.clientWidth}: ${e.textContent.trim().slice(0, 60)}`);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def ledger_page(folder: Path) -> Path:
    pose, eight = (write_tiny_checkpoint(folder / f"{width}.ckpt", width=width) for width in (7, 8))
    write_page(folder / "ledger.html", plan_file(pose, open_target(eight), rules_of(["pose_to_gripper"])), "7 -> 8")
    return folder / "ledger.html"


def gripper_page(folder: Path) -> Path:
    for i, commands in enumerate([[1.0] * 6 + [0.02] * 5 + [0.97] * 4, [0.98] * 30, [1.0, 0.0] * 20]):
        write_log(folder / f"inference_log_20260108_10111{i}.json", commands)
    (folder / "inference_log_20260108_101119.json").write_text(json.dumps({f"key_{i}" * 20: 1 for i in range(500)}))
    write_gripper_page(folder / "gripper.html", validate_logs([folder]))
    return folder / "gripper.html"


def comparison_page(folder: Path) -> Path:
    runs = [write_run(folder / name, metrics()) for name in ("2026.01.08_a_run_of_a_long_name", "another")]
    (folder / "compare.html").write_text(compare(runs).page())
    return folder / "compare.html"


def report_page(folder: Path) -> Path:
    log = write_log(folder / "inference_log_20260108_101112.json", [1.0] * 6 + [0.02] * 5 + [0.97] * 4)
    checkpoint = checkpoint_with_ledger(folder / "grown.ckpt")
    assert read_checkpoint(checkpoint).provenance
    rolled_out = closed_loop(folder / "rollouts_of_a_checkpoint_with_a_long_name.json", "1" * 30 + "c" * 8 + "d" * 2)
    dataset, errors = write_dataset(folder / "set.zarr"), open_loop(folder / "errors.json")
    run = write_run(folder / "run")
    sources = Sources((dataset,), checkpoint, run, (log,), (errors,), closed_loop=(rolled_out, rolled_out))
    write_report(folder / "report.html", sources)
    return folder / "report.html"


def dataset_page(folder: Path) -> Path:
    dataset = write_dataset(folder / "a_dataset_with_quite_a_long_name_of_its_own.zarr")
    dataset_factory.tell(dataset, {"tasks": ["put the red block into the tray " * 9], "success": False}, {}, {}, {})
    few = PageSettings(frames=3)
    write_dataset_page(folder / "episodes.html", [open_set(dataset, few), open_set(dataset, few)], few)
    return folder / "episodes.html"


@pytest.mark.parametrize(
    "make",
    [
        gripper_page,
        dataset_page,
        # The report's own test looks at a narrow window; the others have its skeleton.
        *(pytest.param(make, marks=pytest.mark.exhaustive) for make in (report_page, ledger_page, comparison_page)),
    ],
    ids=lambda make: make.__name__,
)
def test_a_page_fits_every_screen(make, tmp_path: Path, browser: Browser) -> None:
    browser.open(make(tmp_path))
    for width in WIDTHS:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.wait_for(f"document.documentElement.scrollWidth <= {width}", seconds=10)  # figures are redrawn
        assert browser.evaluate(OFF_SCREEN) == [] or width < 800, f"{width} px"
        assert browser.evaluate(SQUEEZED) == [], f"{width} px"


def test_a_foreign_file_fills_no_screen(tmp_path: Path, browser: Browser) -> None:
    browser.open(gripper_page(tmp_path))
    browser.call("Emulation.setDeviceMetricsOverride", width=800, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.evaluate("Math.max(...[...document.querySelectorAll('tr')].map((r) => r.offsetHeight))") < 250
