"""`python -m ddfnet.training.preflight N FLAGS`: finds a user's mistakes in one process, before N are started.

It resolves the flags of train.py, opens the data sets, reads checkpoints and plans the run's folder. It writes nothing,
says nothing and returns 0 where they are right, else 2.
"""

import sys

from ddfnet.checkpoints import read_checkpoint
from ddfnet.config import TrainConfig, load_train_config
from ddfnet.data.loaders import samples_per_step
from ddfnet.distributed import check_synchronized_batch_norm, resolve_device
from ddfnet.errors import command
from ddfnet.models.build import check_compiler, check_model_name, model_in_chans
from ddfnet.training.components import open_datasets
from ddfnet.training.optimization import check_optimizer
from ddfnet.training.run_directory import plan_run
from ddfnet.training.scaling import import_apex


@command
def main(argv: list[str]) -> None:
    """Checks the number of processes and the flags of train.py."""
    check_before_start(load_train_config(argv[1:]), world_size=int(argv[0]))


def check_before_start(config: TrainConfig, world_size: int) -> None:
    """Raises UserError for a mistake that every process would report."""
    device = resolve_device(config.distribution.device)
    if config.batch_norm.sync_bn:
        check_synchronized_batch_norm(device)
    import_apex(config.precision, device)
    check_compiler(config.model.torchcompile, device)
    check_optimizer(config.optimizer)
    check_model_name(config.model.model)
    train_set, _ = open_datasets(config, model_in_chans(config.model, config.model.model))
    samples_per_step(config.batch, world_size, len(train_set))
    for path in filter(None, (config.model.initial_checkpoint, config.model.pretrained_path)):
        read_checkpoint(path)
    _, checkpoint = plan_run(config.run, config.model.model, config.model.img_size or 0)
    if checkpoint is not None:
        read_checkpoint(checkpoint)


if __name__ == '__main__':
    sys.exit(main())
