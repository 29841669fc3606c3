"""Run by the tests in one process and in several: averaged gradients of the first step, saved by the first process.

    python -m tests.ddfnet.gradients FILE [flags of train.py]

BatchNorm is in eval mode and numbers are float64, so that the gradients depend on the joined batch alone.
"""

import sys

import torch

from ddfnet.config import load_train_config
from ddfnet.distributed import start_processes, stop_processes
from ddfnet.training.components import build_components, wrap_for_processes


def main(path: str, flags: list[str]) -> None:
    processes = start_processes('cpu')
    components = build_components(load_train_config(flags), processes)
    for module in components.task.double().modules():
        if hasattr(module, 'zero_init_last'):
            torch.nn.init.ones_(module.bn3.weight)
    wrap_for_processes(components, processes)
    components.task.eval()
    images, targets = next(components.train_loader.epoch(0))
    components.task(images.double(), targets)['loss'].backward()
    if processes.is_primary:
        torch.save({name: parameter.grad for name, parameter in components.model.named_parameters()}, path)
    stop_processes()


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2:])
