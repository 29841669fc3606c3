"""curves.png: loss, accuracy and learning rate over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

_PANELS = (
    ('loss', ('train/loss', 'validation/loss', 'ema/loss')),
    ('top-1 (%)', ('train/top1', 'validation/top1', 'ema/top1')),
    ('learning rate', ('train/lr',)),
)
_MOST_MARKED = 40  # points; more of them would hide the line


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draws the rows of summary.csv; cells that are empty are left out."""
    from matplotlib.figure import Figure  # here, since importing it takes a tenth of a run's start
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 3.6), layout='constrained')
    for panel, (label, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS):
        for number, name in enumerate(names):
            points = [(int(row['epoch']), float(row[name])) for row in rows if row.get(name)]
            if points:
                marker = '.' if len(points) <= _MOST_MARKED else None
                panel.plot(*zip(*points), marker=marker, color=f'C{number}', linewidth=1.3, label=name)
        panel.set(xlabel='epoch', ylabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
        if len(rows) == 1:
            panel.set_xlim(int(rows[0]['epoch']) - 1, int(rows[0]['epoch']) + 1)
        if panel.lines:
            panel.legend()
    figure.savefig(path, dpi=110)
