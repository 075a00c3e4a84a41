"""What is printed: prose is folded, and what is copied stays whole."""

from __future__ import annotations

import pytest
from printed import printed

from diffusion_policy.tables import Column, Printable, Table, Text

COMMAND = "python scripts/verify_converted_data.py --zarr-path data/zarr/a_dataset_with_a_long_name.zarr --all"


@pytest.mark.parametrize(
    "shown",
    [COMMAND, Text(COMMAND, no_wrap=True), Text("next: ", (COMMAND, "bold"), no_wrap=True)],
    ids=["str", "text", "parts"],
)
@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_command_is_on_one_line_whatever_the_width(shown: Printable, width: int):
    assert COMMAND in printed(shown, width)


def test_prose_is_folded_at_words():
    lines = printed(Text("one two three four five six"), 12).splitlines()
    assert [line.strip() for line in lines] == ["one two", "three four", "five six"]


def test_a_cell_is_folded_and_never_cut():
    table = Table("name", Column("n", right=True))
    table.add(COMMAND, "3")
    assert "".join(printed(table, 40).split()).replace("3", "").endswith("".join(COMMAND.split()))
