"""DDF models, registered with timm on import."""

from .ddf_resnet import DDFBottleneck

__all__ = ['DDFBottleneck']
