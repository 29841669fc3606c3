"""ResNets whose 3x3 convolutions are decoupled dynamic filters (arXiv 2104.14107, section 4.1), in timm's registry.

`timm.create_model('ddf_mul_resnet50', ...)` takes what timm's ResNet takes. Settings of the filters go through
`block_args`, for example `block_args=dict(head=2, se_ratio=0.3)`; `block_args=dict(branches='spatial')` and
`'channel'` are the paper's ablations.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, register_notrace_module
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from ddf import DDFPack
from ddf.batch_norm import rectified
from ddf.guards import is_plain
from ddf.pointwise import pointwise
from ddf.residual import add_residual, downsampled

from .max_pool import MaxPool2d

register_notrace_module(DDFPack)  # what it calls depends on its input


class DDFBottleneck(Bottleneck):
    """timm's Bottleneck with its 3x3 convolution replaced by DDFPack; `cardinality` only widens it.

    Args:
        kernel_size: Taps of the dynamic filters in each direction, odd and at least 3.
        head: Spatial filters per pixel.
        se_ratio: Hidden channels of the channel branch over the block's width.
        kernel_combine: 'mul' or 'add'.
        branches: 'both', or the one filter that is predicted: 'spatial' or 'channel'.
        *args, **kwargs: Those of timm's Bottleneck.

    Raises:
        TypeError: A setting of the filters has the wrong type.
        ValueError: A setting of the filters does not fit, or reduce_first is not 1: the filters keep the channels.
    """

    def __init__(
        self,
        *args: Any,
        kernel_size: int = 3,
        head: int = 1,
        se_ratio: float = 0.2,
        kernel_combine: str = 'mul',
        branches: str = 'both',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        convolution = self.conv2
        if convolution.in_channels != convolution.out_channels:
            raise ValueError(
                'block_reduce_first must be 1 for DDF blocks, whose filters keep the number of channels, got '
                f'{convolution.in_channels} channels in and {convolution.out_channels} out'
            )
        self.conv2 = DDFPack(  # type: ignore[assignment]
            convolution.in_channels,
            kernel_size,
            convolution.stride[0],
            convolution.dilation[0],
            head,
            se_ratio,
            kernel_combine=kernel_combine,
            branches=branches,
            device=kwargs.get('device'),
            dtype=kwargs.get('dtype'),
        )

    def forward(self, x: Tensor) -> Tensor:
        """That of timm's Bottleneck. In evaluation on a CPU the filters and the layers around them are one call; so is
        what follows the last convolution, there and in training. Convolutions of large maps are matrix products."""
        shortcut = x
        if torch.jit.is_scripting():
            x = self.conv3(self.aa(self._filtered(self.conv1(x))))  # type: ignore[misc]
        else:  # not compiled by TorchScript
            x = pointwise(self.aa(self._filtered(pointwise(x, self.conv1))), self.conv3)  # type: ignore[misc]
            output = self._add_in_one_call(x, shortcut)
            if output is not None:
                return output
        x = self.bn3(x)
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += self._shortcut(shortcut)
        return self.act3(x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        if torch.jit.is_scripting():
            return self.downsample(x)
        else:  # not compiled by TorchScript
            return downsampled(x, self.downsample)

    def _filtered(self, x: Tensor) -> Tensor:
        """What follows the first convolution, up to the activation behind the filters."""
        if torch.jit.is_scripting():
            x = self.conv2(self.act1(self.bn1(x)))
            return self.act2(self.drop_block(self.bn2(x)))
        else:  # not compiled by TorchScript
            return self._filtered_in_few_calls(x)

    def _filtered_in_few_calls(self, x: Tensor) -> Tensor:
        filters: Any = self.conv2
        has_drop_block = not is_plain(self.drop_block, nn.Identity)
        if is_plain(filters, DDFPack) and not has_drop_block:
            output = filters.in_one_call(x, (self.bn1, self.act1), (self.bn2, self.act2))
            if output is not None:
                return output
        x = filters(rectified(x, self.bn1, self.act1))
        return self.act2(self.drop_block(self.bn2(x))) if has_drop_block else rectified(x, self.bn2, self.act2)

    def _add_in_one_call(self, x: Tensor, shortcut: Tensor) -> Tensor | None:
        drops = self.drop_path is not None and (self.drop_path.training or not is_plain(self.drop_path, DropPath))
        if self.se is not None or drops or not is_plain(self.conv3, nn.Conv2d):
            return None
        return add_residual(x, self.bn3, self.act3, shortcut, self.downsample)


class DDFResNet(ResNet):
    """timm's ResNet, whose stem pools faster on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pool: Any = self.maxpool
        if is_plain(pool, nn.MaxPool2d):
            self.maxpool: Any = MaxPool2d.like(pool)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225),
        'first_conv': 'conv1',
        'classifier': 'fc',
        'license': 'apache-2.0',
        **kwargs,
    }


_LAYERS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

default_cfgs = generate_default_cfgs(
    {f'ddf_{combine}_resnet{depth}.untrained': _cfg() for combine in ('mul', 'add') for depth in _LAYERS}
)


def _create(variant: str, pretrained: bool, block_args: Mapping[str, Any] | None = None, **kwargs: Any) -> ResNet:
    _, combine, network = variant.split('_')
    settings = {} if block_args is None else block_args
    _check_block_args(settings)
    return build_model_with_cfg(
        DDFResNet,
        variant,
        pretrained,
        block=DDFBottleneck,
        block_args={'kernel_combine': combine, **settings},
        **{'layers': _LAYERS[int(network.removeprefix('resnet'))], **kwargs},
    )


def _check_block_args(settings: Mapping[str, Any]) -> None:
    if not isinstance(settings, Mapping):
        raise TypeError(f"block_args must be a mapping such as {{'head': 2}}, got {settings!r}")
    # those of the filters, and the one of timm's Bottleneck that its ResNet does not set
    known = [*inspect.getfullargspec(DDFBottleneck.__init__).kwonlyargs, 'attn_layer']
    for name in settings.keys() - set(known):
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f'did you mean {nearest[0]}?' if nearest else f'it takes {", ".join(known)}'
        raise TypeError(f'block_args has no {name!r}: {hint}')


@register_model
def ddf_mul_resnet26(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Layers 2, 2, 2, 2, filters multiplied: the small one, for trying out."""
    return _create('ddf_mul_resnet26', pretrained, **kwargs)


@register_model
def ddf_mul_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters multiplied: 16.8 M parameters, 79.1 % top-1 on ImageNet as published."""
    return _create('ddf_mul_resnet50', pretrained, **kwargs)


@register_model
def ddf_mul_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters multiplied: 28.1 M parameters, 80.2 % top-1 on ImageNet as published."""
    return _create('ddf_mul_resnet101', pretrained, **kwargs)


@register_model
def ddf_mul_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters multiplied: 37.5 M parameters, no published accuracy."""
    return _create('ddf_mul_resnet152', pretrained, **kwargs)


@register_model
def ddf_add_resnet26(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Layers 2, 2, 2, 2, filters added: the small one, for trying out."""
    return _create('ddf_add_resnet26', pretrained, **kwargs)


@register_model
def ddf_add_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters added: 16.8 M parameters, 78.8 % top-1 on ImageNet as published."""
    return _create('ddf_add_resnet50', pretrained, **kwargs)


@register_model
def ddf_add_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters added: 28.1 M parameters, 79.9 % top-1 on ImageNet as published."""
    return _create('ddf_add_resnet101', pretrained, **kwargs)


@register_model
def ddf_add_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters added: 37.5 M parameters, no published accuracy."""
    return _create('ddf_add_resnet152', pretrained, **kwargs)
