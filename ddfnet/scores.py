"""What a validation can measure beside loss and top-k: per-class scores, and accuracy on reassessed ImageNet labels."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor

from ddfnet.distributed import Processes
from ddfnet.errors import UserError, first_line

_BUNDLED = 'imagenet'


class Score(Protocol):
    """Gathers predictions batch by batch; each process those of its own images."""

    def update(self, output: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Takes outputs (N, classes), labels (N,), and positions in the data set (N,), these on the CPU."""

    def compute(self, processes: Processes) -> dict[str, float]:
        """The results over all processes. A collective call."""


class ClassScores:
    """Precision, recall and F1 in percent, as scikit-learn defines their averages; what is undefined counts as 0.

    Counts are integers, so that any number of processes comes to the same.

    Args:
        average: 'micro' over images, 'macro' over the classes that occur or are predicted, 'weighted' over the classes
            by their images.
    """

    def __init__(self, average: str, num_classes: int, device: torch.device) -> None:
        self.average = average
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # right, predicted, present

    def update(self, output: Tensor, targets: Tensor, indices: Tensor) -> None:
        predictions = output.argmax(dim=1)
        ones = torch.ones_like(targets)
        self.counts[0].index_add_(0, targets, (predictions == targets).to(ones.dtype))
        self.counts[1].index_add_(0, predictions, ones)
        self.counts[2].index_add_(0, targets, ones)

    def compute(self, processes: Processes) -> dict[str, float]:
        counts = processes.total(self.counts).cpu().double()
        if self.average == 'micro':
            counts = counts.sum(dim=1, keepdim=True)
        right, predicted, present = counts
        scores = {
            'precision': right / predicted.clamp(min=1),
            'recall': right / present.clamp(min=1),
            'f1_score': 2 * right / (predicted + present).clamp(min=1),
        }
        weights = present if self.average == 'weighted' else ((predicted + present) > 0).double()
        weights = weights / weights.sum().clamp(min=1)
        return {f'{self.average}_{name}': 100 * (values * weights).sum().item() for name, values in scores.items()}


class RealLabels:
    """Top-1 and top-5 in percent on reassessed labels (ReaL, arXiv 2006.07159), by timm, of images that have any.

    Args:
        source: 'imagenet' for timm's labels, or a JSON file: of each of ImageNet's validation images the right classes.
        dataset: Has the images, whose files have ImageNet's names.

    Raises:
        UserError: No such labels, or images that they do not name.
    """

    def __init__(self, source: str, dataset: Any, num_classes: int) -> None:
        count = 50_000 if source == _BUNDLED else _count_real_labels(source)
        path = None if source == _BUNDLED else source
        self.labels = RealLabelsImagenet([''] * count, real_json=path, topk=(1, min(5, num_classes)))
        name = getattr(dataset, 'name', lambda index: f'number {index}')
        self.names = [Path(name(index)).name for index in range(len(dataset))]
        unknown = next((name for name in self.names if name not in self.labels.real_labels), None)
        if unknown:
            raise UserError(
                f'--real-labels go by the names of {count} ImageNet images, such as ILSVRC2012_val_00000001.JPEG, but '
                f'the data has image {unknown}: leave --real-labels out'
            )

    def update(self, output: Tensor, targets: Tensor, indices: Tensor) -> None:
        self.labels.filenames = [self.names[index] for index in indices.tolist()]
        self.labels.sample_idx = 0
        self.labels.add_result(output)

    def compute(self, processes: Processes) -> dict[str, float]:
        right = list(self.labels.is_correct.values())
        sums = torch.tensor([len(right[0]), *map(sum, (right[0], right[-1]))], device=processes.device)
        count, top1, top5 = processes.total(sums).tolist()
        return {'top1': 100 * top1 / max(1, count), 'top5': 100 * top5 / max(1, count), 'real_count': count}


def _count_real_labels(path: str) -> int:
    try:
        labels = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'--real-labels: cannot read {path}: {first_line(error)}') from error
    if not isinstance(labels, list) or not all(isinstance(classes, list) for classes in labels):
        raise UserError(f'--real-labels: expected {path} to hold a list of lists of classes, one for each image')
    return len(labels)
