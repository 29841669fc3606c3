"""summary.csv: a row per epoch, with the same columns in every run."""

import csv
from collections.abc import Mapping
from pathlib import Path

COLUMNS = (
    'epoch', 'train/loss', 'train/lr', 'validation/loss', 'validation/top1', 'validation/top5', 'ema/loss', 'ema/top1',
    'ema/top5', 'train/top1', 'train/nonfinite', 'train/replaced',
)  # fmt: skip


class Summary:
    """The rows of a run, as text; cells without a value are empty.

    Args:
        start_epoch: Rows of this epoch and later ones, left by an interrupted run, are dropped.
    """

    def __init__(self, path: Path, start_epoch: int) -> None:
        self.path = path
        self.rows = [row for row in _read(path) if int(row['epoch']) < start_epoch]

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Adds a row and writes the file anew, whole or not at all."""
        self.rows.append({'epoch': str(epoch), **{name: repr(value) for name, value in metrics.items()}})
        columns = list(dict.fromkeys((*COLUMNS, *(name for row in self.rows for name in row))))
        temporary = self.path.with_name(f'{self.path.name}.tmp')
        with open(temporary, 'w', newline='') as file:
            writer = csv.DictWriter(file, columns, restval='')
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))
