"""Files of rows, read by the contract (:mod:`minillm_core.spec.rows`): what it refuses is the user's error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from minillm_core.errors import UserError
from minillm_core.spec.rows import BadRows, Example, TrainOn, dataset_rows

Row = TypeVar("Row")


def read(path: Path, rows: Callable[[BinaryIO], Iterator[Row]], param: str) -> Iterator[Row]:
    """What a reader of the contract gives of a file. Raises UserError ``dataset_invalid`` at ``param``."""
    with path.open("rb") as stream:
        try:
            yield from rows(stream)
        except BadRows as error:
            raise UserError("dataset_invalid", str(error), param=param) from None


def read_rows(path: Path, param: str = "/dataset/file", *, train_on: TrainOn = "last") -> list[Example]:
    """All examples of a dataset, in the order of its rows. Raises UserError ``dataset_invalid`` at ``param``."""
    return list(read(path, partial(dataset_rows, train_on=train_on), param))
