"""The training log: a CSV beside the weights, and TensorBoard where it is installed."""

import csv
import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.files import explain_os_error, write_text

COLUMNS = (
    "step",
    "samples",
    "loss",
    "psnr_masked_db",
    "gradient_norm",
    "lr",
    "mask",
    "mask_ratio",
    "samples_per_s",
    "loader_wait",
    "skipped",
    "seconds",
)


class TrainingLog:
    """Appends rows to RUN/log.csv.

    Args:
        from_step: on resuming, rows of later steps are dropped: they will be written again.
        metrics: columns of what is trained, besides those of every run.

    Attributes:
        board: TensorBoard's writer; None where it is not installed or does not start.
    """

    def __init__(self, folder: Path, from_step: int, metrics: tuple[str, ...]) -> None:
        columns = (*COLUMNS, *metrics)
        path = folder / "log.csv"
        kept: list[dict[str, str]] = []
        if from_step > 0 and path.is_file():
            # a crash can leave half a row behind
            steps = ((row, row.get("step") or "") for row in _rows(path))
            kept = [row for row, step in steps if step.isdecimal() and int(step) <= from_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_text(path, text.getvalue())
        self.file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        self.writer = csv.DictWriter(self.file, columns, restval="")
        self.board = _board(folder / "tensorboard", from_step)

    def write(self, step: int, **values: Any) -> None:
        """Append a row; columns that are not given stay empty."""
        try:
            digits = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
            self.writer.writerow({"step": step, **digits})
            self.file.flush()
            if self.board is not None:
                for key, value in values.items():
                    if isinstance(value, int | float):
                        self.board.add_scalar(key, value, step)
        except OSError as error:
            raise explain_os_error(error, self.file.name) from error

    def close(self) -> None:
        # TensorBoard's writer repeats in closing what ended it
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            if self.board is not None:
                self.board.close()


def _board(folder: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=from_step + 1)
    except (ImportError, AttributeError, TypeError):
        # not there, or older than the numpy or protobuf beside it
        return None


def read_log(path: Path | str) -> list[dict[str, float | str | None]]:
    """Read a log.csv: one dictionary a row, numbers as floats, empty cells as None.

    Raises:
        InputError: it is damaged.
    """
    return [{k: _value(v) for k, v in row.items() if k} for row in _rows(Path(path))]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))
    except csv.Error as error:
        raise InputError(f"{path} is damaged: {error}", "remove it") from None


def _value(text: str | None) -> float | str | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return text
