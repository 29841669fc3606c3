"""TensorBoard events of a run. Everything lies over the optimiser steps that were done, epochs' values included."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


class Events:
    """Writes into the run's folder.

    Args:
        first_step: Events of later steps, left by an interrupted run, are hidden.
        settings: The run's configuration, flat. TensorBoard shows it beside the last metrics.
    """

    def __init__(self, path: Path, first_step: int, settings: Mapping[str, Any], metrics: list[str]) -> None:
        self.writer = SummaryWriter(str(path), purge_step=first_step + 1)
        shown = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()
        }
        # as SummaryWriter.add_hparams does, which would put them into a second run
        experiment, start, self._end = hparams(shown, dict.fromkeys(metrics, 0.0))
        for summary in (experiment, start):
            self.writer._get_file_writer().add_summary(summary)

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Adds the values that there are."""
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)

    def picture(self, name: str, picture: Tensor, step: int) -> None:
        """Adds a picture, (3, H, W) in [0, 1]."""
        self.writer.add_image(name, picture, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, finished: bool) -> None:
        if finished:
            self.writer._get_file_writer().add_summary(self._end)
        self.writer.close()
