"""Results for the terminal as plain data: lines of text and tables, in the order in which they are printed.

Code that computes a result describes it with these; `terminal` prints them, for the entry points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_policy.moved import former_names


class Text:
    """Text, folded at words to the width of the terminal or of its column.

    Args:
        parts: strings, or pairs of a string and its style.
        style: of strings without their own: words such as "bold", "dim" or "red"; empty: none.
        whole: not folded, such as a command to be copied.
    """

    def __init__(self, *parts: str | tuple[str, str], style: str = "", no_wrap: bool = False):
        self.parts = tuple((part, style) if isinstance(part, str) else part for part in parts)
        self.no_wrap = no_wrap

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading; a table without any is printed without headings.
        right: aligned to the right, like numbers.
        whole: its cells are not folded.
        min_width, max_width: in characters; None: as its cells require.
    """

    title: str = ""
    right: bool = False
    no_wrap: bool = False
    min_width: int | None = None
    max_width: int | None = None


def numbers(*titles: str) -> list[Column]:
    """Returns columns with these titles, aligned to the right."""
    return [Column(title, right=True) for title in titles]


class Table:
    """A table.

    Args:
        columns: titles, or columns.
        framed: with lines around it and below its headings.
        title, caption: above and below it.

    Attributes:
        rows: cells by row, as many as columns.
        sections: numbers of the rows with a line above them.
    """

    def __init__(self, *columns: str | Column, framed: bool = False, title: str = "", caption: str = ""):
        self.columns = tuple(Column(column) if isinstance(column, str) else column for column in columns)
        self.framed, self.title, self.caption = framed, title, caption
        self.rows: list[tuple[Text, ...]] = []
        self.sections: list[int] = []

    def add(self, *cells: str | Text, style: str = "") -> None:
        """Appends a row; `style` applies to cells that are strings."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells in a row of {len(self.columns)} columns: {list(map(str, cells))}")
        self.rows.append(tuple(Text(cell, style=style) if isinstance(cell, str) else cell for cell in cells))

    def add_section(self) -> None:
        """Separates the following rows from the previous ones, in a framed table."""
        self.sections.append(len(self.rows))


# What can be printed: strings, with their own line breaks only; text and tables, fitted to the terminal.
Printable = str | Text | Table


def as_texts(lines: Sequence[str], style: str = "") -> list[Text]:
    """Returns each line as text with one style."""
    return [Text(line, style=style) for line in lines]


__getattr__ = former_names(__name__, {"Shown": "Printable"})
