"""`python -m ddfnet.training.preflight FLAGS`: finds a user's mistakes in one process, before several are started.

It checks what can be checked without reading the data set or building the model: flags, device, model's name, folders
and checkpoints. It says nothing and returns 0 where they are right, else 2.
"""

import sys
from pathlib import Path

from ddfnet.config import TrainConfig, load_train_config
from ddfnet.data.datasets import locate
from ddfnet.distributed import resolve_device
from ddfnet.errors import UserError, command
from ddfnet.models.build import check_model_name
from ddfnet.training.run_directory import plan_run


@command
def main(argv: list[str]) -> None:
    """Checks the flags of train.py."""
    check_before_start(load_train_config(argv))


def check_before_start(config: TrainConfig) -> None:
    """Raises UserError for a mistake that every process would report."""
    resolve_device(config.distribution.device)
    check_model_name(config.model.model)
    for split in (config.data.train_split, config.data.val_split):
        locate(config.data.dataset, config.data.data_dir, split)
    initial = config.model.initial_checkpoint
    if initial and not Path(initial).is_file():
        raise UserError(f'checkpoint not found: {initial} is not a file')
    plan_run(config.run, config.model.model, config.model.img_size or 0)


if __name__ == '__main__':
    sys.exit(main())
