"""The network to train, with its first weights and its normalisation as configured."""

from typing import Any

import torch
from timm.layers import convert_splitbn_model, convert_sync_batchnorm
from torch.nn.modules.batchnorm import _BatchNorm

from ddfnet.checkpoints import load_weights, read_checkpoint
from ddfnet.config import ModelConfig, TrainConfig
from ddfnet.distributed import Processes, check_synchronized_batch_norm
from ddfnet.errors import UserError
from ddfnet.models.build import build_model


def build_network(config: ModelConfig, num_classes: int | None, in_chans: int) -> Any:
    """A timm model in float32 on the CPU. Weights of a checkpoint take the place of first ones.

    Raises:
        UserError: The model does not exist, or lacks what is asked of it.
    """
    model: Any = build_model(
        config,
        config.model,
        num_classes,
        in_chans,
        new_classifier=True,
        drop_rate=config.drop,
        drop_path_rate=config.drop_path,
        drop_block_rate=config.drop_block,
    )
    _set_batch_norm(model, config)
    _initialise_head(model, config)
    if config.initial_checkpoint:
        load_weights(model, read_checkpoint(config.initial_checkpoint), config.initial_checkpoint)
    if config.grad_checkpointing:
        if not hasattr(model, 'set_grad_checkpointing'):
            raise UserError(f'model {config.model} has no gradient checkpointing: leave --grad-checkpointing out')
        model.set_grad_checkpointing(enable=True)
    return model


def convert_batch_norm(model: Any, config: TrainConfig, processes: Processes) -> Any:
    """The model with statistics over all processes (--sync-bn), or apart for each augmentation split (--split-bn)."""
    if config.batch_norm.split_bn:
        return convert_splitbn_model(model, config.augmentation.aug_splits)
    if config.batch_norm.sync_bn:
        check_synchronized_batch_norm(processes.device)
        return convert_sync_batchnorm(model) if processes.distributed else model
    return model


def _set_batch_norm(model: torch.nn.Module, config: ModelConfig) -> None:
    settings = {'momentum': config.bn_momentum, 'eps': config.bn_eps}
    given = {name: value for name, value in settings.items() if value is not None}
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if given and not layers:
        raise UserError(f'model {config.model} has no BatchNorm: leave --bn-momentum and --bn-eps out')
    for layer in layers:
        for name, value in given.items():
            setattr(layer, name, value)


@torch.no_grad()
def _initialise_head(model: Any, config: ModelConfig) -> None:
    if config.head_init_scale is None and config.head_init_bias is None:
        return
    head = model.get_classifier()
    if not isinstance(head, torch.nn.Linear | torch.nn.Conv2d) or head.bias is None:
        raise UserError(
            f'model {config.model} has no classifier with weights and biases: leave --head-init-scale and '
            '--head-init-bias out'
        )
    if config.head_init_scale is not None:
        head.weight.mul_(config.head_init_scale)
        head.bias.mul_(config.head_init_scale)
    if config.head_init_bias is not None:
        head.bias.fill_(config.head_init_bias)
