"""Number formats of a run: automatic mixed precision, weights and memory layout."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from ddfnet.config import PrecisionConfig


class Precision:
    """Autocast region, gradient scaler, dtype of the weights and memory format as configured, for one device.

    Sets TF32 and deterministic algorithms for the whole process too.

    amp_dtype 'auto' is float16 on CUDA and bfloat16 elsewhere; the scaler works for float16 only.

    Args:
        autocasts: False where another library than torch does the casts of amp.
    """

    def __init__(self, config: PrecisionConfig, device: torch.device, autocasts: bool = True) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        self.device = device
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        lower = config.model_dtype not in (None, 'float32')
        self.model_dtype: torch.dtype | None = getattr(torch, str(config.model_dtype)) if lower else None
        self.amp_dtype: torch.dtype | None = None
        if config.amp and autocasts:
            automatic = 'float16' if device.type == 'cuda' else 'bfloat16'
            self.amp_dtype = getattr(torch, automatic if config.amp_dtype == 'auto' else config.amp_dtype)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype == torch.float16)

    def lay_out(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the model takes them."""
        return images.to(self.model_dtype or images.dtype).contiguous(memory_format=self.memory_format)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """Moves a float32 model to the device, in its dtype and in the memory format."""
        arguments: dict[str, Any] = {
            'device': self.device, 'dtype': self.model_dtype, 'memory_format': self.memory_format,
        }  # fmt: skip
        return model.to(**arguments)
