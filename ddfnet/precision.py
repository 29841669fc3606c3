"""Number formats of a run: automatic mixed precision and memory layout."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from ddfnet.config import PrecisionConfig


class Precision:
    """Autocast region, gradient scaler and memory format as configured, for one device.

    Sets TF32 and deterministic algorithms for the whole process too.

    amp_dtype 'auto' is float16 on CUDA and bfloat16 elsewhere; the scaler works for float16 only.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        self.device = device
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.amp_dtype: torch.dtype | None = None
        if config.amp:
            automatic = 'float16' if device.type == 'cuda' else 'bfloat16'
            self.amp_dtype = getattr(torch, automatic if config.amp_dtype == 'auto' else config.amp_dtype)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)

    def lay_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self.memory_format)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """Moves a model to the device, in the memory format."""
        arguments: dict[str, Any] = {'device': self.device, 'memory_format': self.memory_format}
        return model.to(**arguments)
