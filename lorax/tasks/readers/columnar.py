"""Tables by column, through pyarrow: parquet and arrow files; only fields that are asked for become values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorax.errors import UserError
from lorax.tasks.readers.opening import opened
from lorax.tasks.readers.rows import UNREAD, Format, Row, Rows, Unreadable

if TYPE_CHECKING:
    import pyarrow


def read_parquet(path: Path, format: Format) -> Rows:
    """Return the rows of a parquet file.

    Raises:
        UserError: pyarrow is not installed; the file is damaged, or no parquet file.
    """
    pyarrow = arrow(path)
    with opened(path) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream if stream.seekable() else pyarrow.BufferReader(stream.read()))
            names = table.schema_arrow.names
            columns = [name for name in dict.fromkeys(names) if _is_used(name, names, format)]
            batches = table.iter_batches(batch_size=4096, columns=columns)
            return Rows(list(_rows(path, names, batches)))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: {_first_line(error)}") from error


def read_arrow(path: Path, format: Format) -> Rows:
    """Return the rows of one arrow file, stream or file format (`data-00000-of-00001.arrow`).

    Raises:
        UserError: pyarrow is not installed; the file is damaged, or no arrow file.
    """
    pyarrow = arrow(path)
    with opened(path) as stream:
        try:
            content = pyarrow.BufferReader(stream.read())
            try:
                table = pyarrow.ipc.open_stream(content).read_all()
            except pyarrow.ArrowInvalid:
                content.seek(0)
                table = pyarrow.ipc.open_file(content).read_all()
            names = table.column_names
            columns = [name for name in dict.fromkeys(names) if _is_used(name, names, format)]
            return Rows(list(_rows(path, names, table.select(columns).to_batches())))
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: {_first_line(error)}") from error


def arrow(path: Path) -> Any:
    """Return pyarrow.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs the package pyarrow: pip install pyarrow") from None
    return pyarrow


def _is_used(name: str, names: list[str], format: Format) -> bool:
    return names.count(name) == 1 and (format.used is None or name in format.used)


def _rows(path: Path, names: list[str], batches: Iterator[pyarrow.RecordBatch]) -> Iterator[Row]:
    """Yield rows; a field that was not asked for, or whose name occurs twice, has a value that says so when used."""
    rest: dict[str, Any] = {
        name: UNREAD if names.count(name) == 1 else Unreadable(f"occurs {names.count(name)} times") for name in names
    }
    number = 0
    for batch in batches:
        columns = {name: _values(batch.column(name)) for name in batch.schema.names}
        for index in range(batch.num_rows):
            yield f"{path}, row {number}", rest | {name: values[index] for name, values in columns.items()}
            number += 1


def _values(column: pyarrow.Array) -> list[Any]:
    """Return a column as Python values; where one has no Python value (a far date), each by itself."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, TypeError, NotImplementedError):
        return [_value(item) for item in column]


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        return Unreadable(f"cannot be read ({_first_line(error)[:80]})")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
