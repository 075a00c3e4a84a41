"""What a user sees during a run."""

import io
import re

import pytest
import rich
from rich.console import Console

from diffusion_policy.workspace.progress import TrainingBar

VALIDATED = {
    "val_loss": 0.0736,
    "val_position_error_mm": 3.214,
    "val_rotation_error_deg": 1.41,
    "val_gripper_f1": 0.953,
}


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns."""
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80)
    monkeypatch.setattr(rich, "_console", console)
    return console.file


def shown(screen):
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))


def test_everything_is_there_in_eighty_columns(screen):
    with TrainingBar(28_200, 100, 200) as bar:
        bar.update(101, 0, 2.0, 0.0)  # no rate after the first update
        bar._bar._bar.refresh()
        assert "loss 2.0000" in "".join(shown(screen))
        assert " 0 samples/s" not in "".join(shown(screen))
        bar.update(28_100, 198, 0.01234, 4000.0)
        bar.validated(VALIDATED)
        bar.validated({"val_loss": 0.0701})  # the sampler runs less often; its last figures stay
    *_, line, words = [line for line in shown(screen) if line.strip()]
    assert line.startswith("epoch 199/200 ")
    assert re.search(r" 28100/28200 loss 0.0123 4000 samples/s [-0-9]:", line)
    assert words.strip() == "held-out loss 0.0701  position 3.21 mm  rotation 1.41 deg  gripper F1 0.95"


def test_an_invisible_bar_is_not_drawn(screen):
    with TrainingBar(10, 0, 1, visible=False) as bar:
        bar.update(1, 0, 0.5, 1.0)
        bar.validated(VALIDATED)
    assert screen.getvalue() == ""
