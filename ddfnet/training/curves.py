"""curves.png: loss, accuracy and learning rate over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt

_PANELS = (
    ('loss', ('train/loss', 'validation/loss', 'ema/loss')),
    ('accuracy (%)', ('validation/top1', 'validation/top5', 'ema/top1')),
    ('learning rate', ('train/lr',)),
)


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draws the rows of summary.csv; cells that are empty are left out."""
    figure, panels = plt.subplots(1, len(_PANELS), figsize=(13, 3.6), layout='constrained')
    for panel, (label, names) in zip(panels, _PANELS):
        for name in names:
            points = [(int(row['epoch']), float(row[name])) for row in rows if row.get(name)]
            if points:
                panel.plot(*zip(*points), marker='.', label=name)
        panel.set(xlabel='epoch', ylabel=label)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
