"""docs/serving.md agrees with the code: the table of errors, and the settings that it names."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from diffusion_policy.serve.settings import read_settings
from diffusion_policy.serve.transport.protocol import ENDING, ErrorCode

PLAIN = re.compile(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", re.MULTILINE)


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text()


def test_the_table_of_errors_is_the_protocol_s(page: str) -> None:
    table = dict(PLAIN.findall(page.split("## Errors\n")[1].split("\n## ")[0]))
    assert table.keys() == set(get_args(ErrorCode))
    assert {code for code, end in table.items() if end.startswith("ends")} == ENDING
    assert all(end.startswith(("ends", "goes on")) for end in table.values())


def test_the_config_shows_the_defaults(repository: Path) -> None:
    file = repository / "config" / "serve.yaml"
    assert read_settings(file, ["ckpt=a"]) == read_settings(None, ["ckpt=a"])
    shown = yaml.safe_load(file.read_text())
    for group in ("engine", "guard", "limits", "traffic", "log"):
        assert shown[group].keys() == vars(getattr(read_settings(None, ["ckpt=a"]), group)).keys(), group


def test_settings_that_the_page_names_exist(page: str) -> None:
    words = set(re.findall(r"\b(?:engine|guard|limits|traffic|log)\.\w+=[\w.-]+", page))
    assert words
    read_settings(None, ["ckpt=a", *(word for word in words if not word.endswith("..."))])
