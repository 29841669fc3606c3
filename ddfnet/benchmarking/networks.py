"""Models as subjects to time: any that timm knows, DDF networks among them."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfnet.benchmarking.subjects import Job, Work, compile_if
from ddfnet.config import BenchmarkConfig, ModelSource
from ddfnet.counting import count_gmacs, count_params
from ddfnet.errors import UserError
from ddfnet.models.build import build_model, check_forward, model_in_chans, resolve_input
from ddfnet.precision import Precision


def check_model_kwargs(config: BenchmarkConfig, names: Iterable[str]) -> None:
    """Raises UserError for --model-kwargs that none of the models takes."""
    problem = None
    for name in names if config.model_kwargs else ():
        try:
            _build(config, name)
            return
        except UserError as error:
            problem = problem or error
    if problem:
        raise UserError(f'--model-kwargs: {problem}; expected arguments that the model takes')


def _build(config: BenchmarkConfig, name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The model, and (C, H, W) of its images."""
    source = ModelSource(img_size=config.img_size, model_kwargs=config.model_kwargs)
    in_chans = model_in_chans(source, name)
    model = build_model(source, name, None, in_chans)
    return model, resolve_input(source, model, in_chans)['input_size']


class Network:
    """A model at its own or the configured image size, with random weights and images.

    Raises:
        UserError: The model is not known, or does not take such images.
    """

    def __init__(self, job: Job, config: BenchmarkConfig, precision: Precision) -> None:
        self.config = config
        self.precision = precision
        model, input_size = _build(config, job.name)
        self.input_size: tuple[int, ...] = input_size
        check_forward(model, input_size, job.batch_size, train=config.train)
        self.params = count_params(model)
        self.model = precision.place(model).eval()
        self.gmacs = count_gmacs(lambda: self.model(self._images(1)))
        self.model.train(config.train)

    def work(self, batch_size: int, compiled: bool) -> Work:
        """A forward pass, or a step of SGD."""
        model = compile_if(self.model, compiled, self.config)
        images = self._images(batch_size)
        state = [*self.model.parameters(), *self.model.buffers(), images]
        if self.config.train:
            return self._step(model, images, state)

        @torch.inference_mode()
        def run() -> Any:
            with self.precision.autocast():
                return model(images)

        return Work(run, lambda: state)

    def _images(self, batch_size: int) -> Tensor:
        return self.precision.lay_out(torch.randn(batch_size, *self.input_size, device=self.precision.device))

    def _step(self, model: Any, images: Tensor, state: list[Tensor]) -> Work:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        scaler = self.precision.grad_scaler()
        labels = torch.zeros(len(images), dtype=torch.long, device=self.precision.device)

        def run() -> None:
            optimizer.zero_grad()
            with self.precision.autocast():
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        def held() -> list[Tensor]:
            grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            momenta = [value for values in optimizer.state.values() for value in values.values()]
            return [*state, *grads, *filter(torch.is_tensor, momenta)]

        return Work(run, held)
