"""Small runs on real images: the digits, and trees of image files made from them."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ddfnet.data.digits import Digits

TINY_MODEL = [
    '--model', 'ddf_mul_resnet26', '--in-chans', '1', '--img-size', '32', '--model-kwargs', 'channels=(8,8,16,16)',
]  # fmt: skip
TINY_RUN = [
    *TINY_MODEL, '--dataset', 'digits', '--train-num-samples', '96', '--val-num-samples', '50', '-b', '16', '-j', '0',
    '--epochs', '3', '--warmup-epochs', '1', '--cooldown-epochs', '0', '--lr', '0.02', '--device', 'cpu',
]  # fmt: skip


def image_folders(parent: Path, classes: int = 3, per_class: int = 4) -> Path:
    """Makes PARENT/data/train/<digit>/*.jpg and PARENT/data/val/<digit>/*.png and returns PARENT/data."""
    for split, folder, suffix in (('train', 'train', 'jpg'), ('validation', 'val', 'png')):
        digits = Digits(split, in_chans=3)
        for label in range(classes):
            target = parent / 'data' / folder / f'digit{label}'
            target.mkdir(parents=True, exist_ok=True)
            chosen = [index for index, found in enumerate(digits.labels) if found == label][:per_class]
            for index in chosen:
                image = Image.fromarray(digits.images[index]).convert('RGB').resize((40, 36))
                image.save(target / f'{index}.{suffix}')
    return parent / 'data'


@pytest.fixture
def image_tree(tmp_path: Path) -> Callable[..., Path]:
    """`image_folders` in the test's own folder."""
    return functools.partial(image_folders, tmp_path)


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls a command's entry point with arguments, and returns its exit status."""

    def run(main: Callable[[], int], *arguments: object) -> int:
        monkeypatch.setattr('sys.argv', ['command', *map(str, arguments)])
        try:
            return main()
        except SystemExit as exit_:  # the flag parser's own way out
            return exit_.code  # type: ignore[return-value]

    return run
