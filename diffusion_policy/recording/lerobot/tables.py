"""Parquet files of a dataset, inspected before they are read so that no file takes more memory than allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.commands import install_extra
from diffusion_policy.paths import is_remote, reaching
from diffusion_policy.recording.errors import RecordingError

COPY_AGAIN = "copy the file again from an intact source"
# Limits: rows in a file, numbers of a column in memory, bytes of text in a file, and of text in memory at a time.
_MOST_ROWS, _MOST_NUMBERS, _MOST_TEXT, _MOST_BATCH = 20_000_000, 400_000_000, 256 << 20, 1 << 30

# Pictures are already packed: a column above this size that unpacks by more than this factor cannot hold pictures.
_MOST_PICTURES, _MOST_TIMES = 256 << 20, 1000
_ROWS_OF_PICTURES = 32


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Opens a parquet file with pyarrow; errors name the file.

    Raises:
        RecordingError: pyarrow is not installed, or the file is missing, truncated, damaged or too large.
        PathError: its store cannot be reached.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise RecordingError(f"{file}: LeRobot datasets need pyarrow: {install_extra('lerobot')}") from error
    try:
        with reaching(file), file.open("rb") if is_remote(file) else open(file, "rb") as stream:
            table = pq.ParquetFile(stream)
            if table.metadata.num_rows > _MOST_ROWS:
                raise RecordingError(
                    f"{file}: claims {table.metadata.num_rows} rows; at most {_MOST_ROWS} are read: {COPY_AGAIN}"
                )
            yield table
    except (pa.ArrowException, EOFError, MemoryError, OverflowError, ValueError) as error:
        raise RecordingError(f"{file}: cannot be read as parquet ({_first_line(error)}): {COPY_AGAIN}") from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise RecordingError(f"{file}: cannot be read ({reason}): {COPY_AGAIN}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def column_names(parquet: Any) -> set[str]:
    """Returns the names of the columns of an opened file."""
    return set(parquet.schema_arrow.names)


def pictures_at_a_time(parquet: Any, name: str, file: Path) -> int:
    """Returns how many rows of a picture column may be in memory together, whatever they unpack to.

    Raises:
        RecordingError: the column unpacks to what cannot be pictures, such as zeros that every row refers to.
    """
    largest = 1
    for group in range(parquet.metadata.num_row_groups):
        columns = parquet.metadata.row_group(group)
        for chunk in (columns.column(i) for i in range(columns.num_columns)):
            if not chunk.path_in_schema.startswith(f"{name}."):
                continue
            size, packed = chunk.total_uncompressed_size, max(1, chunk.total_compressed_size)
            if size > _MOST_PICTURES and size > _MOST_TIMES * packed:
                raise RecordingError(
                    f"{file}: column {name!r} unpacks from {packed} to {size} bytes, which no pictures do: {COPY_AGAIN}"
                )
            largest = max(largest, size)
    return max(1, min(_ROWS_OF_PICTURES, _MOST_BATCH // largest))


def read_numbers(file: Path, widths: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Reads columns of numbers as stored: (rows,) for width 0, (rows, width) for vectors.

    Args:
        file: a parquet file.
        widths: numbers in one row, by column; 0 for a plain number.

    Raises:
        RecordingError: see `opened`; or a column is missing, has another type or width, or has empty entries.
    """
    with opened(file) as parquet:
        absent = [name for name in widths if name not in column_names(parquet)]
        if absent:
            raise RecordingError(
                f"{file}: has no column {absent[0]!r}; it has {', '.join(sorted(column_names(parquet))[:20])}"
            )
        for name, width in widths.items():
            _check_size(parquet, name, max(width, 1), file)
        table = parquet.read(columns=list(widths), use_threads=False)
        return {name: _numbers(table.column(name), name, width, file) for name, width in widths.items()}


def _check_size(parquet: Any, name: str, width: int, file: Path) -> None:
    """Checks, before a column is read, that it has as many numbers as its rows and width imply."""
    metadata = parquet.metadata
    n_values = 0
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        chunks = [columns.column(i) for i in range(columns.num_columns)]
        n_values += sum(chunk.num_values for chunk in chunks if chunk.path_in_schema.split(".list.")[0] == name)
    if metadata.num_rows * width > _MOST_NUMBERS or n_values > max(metadata.num_rows * width, metadata.num_rows):
        raise RecordingError(
            f"{file}: column {name!r} claims {n_values} numbers in {metadata.num_rows} rows of {width}; at most "
            f"{_MOST_NUMBERS}, and {width} per row, are read: {COPY_AGAIN}"
        )


def _numbers(column: Any, name: str, width: int, file: Path) -> NDArray[Any]:
    import pyarrow as pa

    values = column.combine_chunks()
    kind = values.type
    n_rows = len(values)
    if values.null_count:
        raise RecordingError(f"{file}: column {name!r} is empty at {values.null_count} of {n_rows} rows: record them")
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    expected = f"{width} numbers per row" if width else "one number per row"
    if is_list:
        values = values.flatten()
        if len(values) != n_rows * max(width, 1) or not _lengths_are(column, max(width, 1)):
            raise RecordingError(f"{file}: column {name!r} has rows of other lengths; expected {expected}")
    elif width > 1:
        raise RecordingError(f"{file}: column {name!r} is {kind}; expected {expected}, as in meta/info.json")
    if values.null_count:
        raise RecordingError(f"{file}: column {name!r} holds {values.null_count} empty numbers: record them")
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
        raise RecordingError(f"{file}: column {name!r} is {kind}; expected {expected}, as in meta/info.json")
    numbers = values.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(numbers.reshape(n_rows, width) if width else numbers.reshape(n_rows))


def _lengths_are(column: Any, width: int) -> bool:
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column)
    return len(lengths) == 0 or pc.min_max(lengths).as_py() == {"min": width, "max": width}


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Reads the rows of a small table with texts, such as tasks, as plain values; missing columns are left out.

    Raises:
        RecordingError: see `opened`; or its texts are too large.
    """
    with opened(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if name in columns]
        # A dictionary may hold one long text that many rows refer to; reading few rows at a time detects it.
        rows = max(1, min(1024, _MOST_BATCH // max(1, _unpacked(parquet, names, file))))
        result: list[dict[str, Any]] = []
        n_signs = 0
        for batch in parquet.iter_batches(batch_size=rows, columns=names, use_threads=False):
            plain = batch.to_pylist()
            n_signs += sum(_signs(value) for row in plain for value in row.values())
            if n_signs > _MOST_TEXT:
                raise RecordingError(f"{file}: unpacks to more than {_MOST_TEXT} bytes of text: {COPY_AGAIN}")
            result += plain
        return result


def _signs(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_signs, value))
    return len(value) if isinstance(value, str | bytes) else 0


def _unpacked(parquet: Any, names: Sequence[str], file: Path) -> int:
    """Returns the bytes of the largest chunk of these columns, according to its metadata."""
    largest, metadata = 0, parquet.metadata
    for group in range(metadata.num_row_groups):
        columns = metadata.row_group(group)
        for chunk in (columns.column(i) for i in range(columns.num_columns)):
            if chunk.path_in_schema.split(".list.")[0] in names:
                largest = max(largest, chunk.total_uncompressed_size)
    if largest > _MOST_TEXT:
        raise RecordingError(f"{file}: a column unpacks to {largest} bytes; at most {_MOST_TEXT} are read")
    return largest
