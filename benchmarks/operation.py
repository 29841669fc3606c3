"""Measures the cases of the operation's rows, each after a comparison with the definition in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import roofline
from benchmarks.interleaved import CPU, Turns, Visits
from benchmarks.requirements import Measurement, Row
from ddf import check, ddf, reference
from ddf.check import Case
from ddfnet.memory import peak_memory, storage_sizes

Results = Sequence[Tensor]


class Subjects:
    """Passes of the operation and of the depthwise convolution on the same map, in the same layout."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        self.case = case
        self.dtype = dtype
        self.grad_output, self.input, *filters = case.tensors(dtype)
        self.leaves: Any = [tensor.requires_grad_() for tensor in (self.input, *filters)]
        weight = torch.randn(case.size[1], 1, case.kernel_size, case.kernel_size, dtype=dtype)
        self.depthwise_leaves = [self.input, weight.requires_grad_()]

    @property
    def label(self) -> str:
        """The case within its row, which says the kernel size."""
        case = self.case
        parts = ['x'.join(map(str, case.size)), case.kernel_combine]
        parts += [f'stride {case.stride}'] if case.stride > 1 else []
        parts += [f'dilation {case.dilation}'] if case.dilation > 1 else []
        parts += ['channels_last'] if case.channels_last else []
        parts += ['normalised'] if case.norm_gain is not None else []
        return ', '.join(parts)

    def forward(self) -> Results:
        with torch.inference_mode():
            return (self._ddf(),)

    def depthwise_forward(self) -> Results:
        with torch.inference_mode():
            return (self._depthwise(),)

    def backward(self) -> Results:
        """Forward, and backward to the three gradients."""
        output = self._ddf()
        return output.detach(), *torch.autograd.grad(output, self.leaves, self.grad_output)

    def depthwise_backward(self) -> Results:
        """Forward, and backward to the gradients of input and weight."""
        output = self._depthwise()
        return output.detach(), *torch.autograd.grad(output, self.depthwise_leaves, self.grad_output)

    def saved(self) -> list[Tensor]:
        """What autograd keeps between forward and backward."""
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._ddf()
        return kept

    def disagreement(self) -> str:
        """Which results of the timed passes differ from the definition, by how much; '' where all agree."""
        case = self.case
        exact = [tensor.detach().double() for tensor in (self.grad_output, *self.leaves)]
        output, *gradients = check.evaluate(reference, exact, case.settings)
        expected = [output, output, *gradients]
        of_input, of_spatial = (reference.memory_format_of(leaf) for leaf in self.leaves[::2])
        formats = [of_input, of_input, of_input, torch.contiguous_format, of_spatial]
        names = ['output', 'output in training', *(f'gradient of {name}' for name in check.RESULTS[1:])]
        allowed = check.tolerance(self.dtype)
        results = [*self.forward(), *self.backward()]
        errors = [check.error(*each[:2], self.dtype, each[2]) for each in zip(results, expected, formats)]
        wrong = [f'{name} by {error:.1e}' for name, error in zip(names, errors) if not error <= allowed]
        return f'differs from the definition: {", ".join(wrong)} (allowed {allowed:.0e})' if wrong else ''

    def _ddf(self) -> Tensor:
        arguments: Any = (*self.leaves, self.case.kernel_size, *self.case.settings)
        return ddf(*arguments)

    def _depthwise(self) -> Tensor:
        case = self.case
        padding = case.dilation * (case.kernel_size // 2)
        input, weight = self.depthwise_leaves
        return F.conv2d(input, weight, None, case.stride, padding, case.dilation, groups=case.size[1])


@dataclass
class OperationBench:
    """Measures cases; `measure` names one of the methods after it.

    Attributes:
        visits: Times the passes.
        threads: Of torch, outside of the comparison of their numbers.
        limits: What the machine reaches.
    """

    visits: Visits
    threads: int
    limits: roofline.Limits
    _disagreements: dict[tuple[Case, torch.dtype], str] = field(default_factory=dict)

    def measure(self, row: Row, case: Case) -> Measurement:
        """Refused, without a time, where any result of the operation is wrong."""
        subjects = [Subjects(case, dtype) for dtype in self._dtypes(row.measure)]
        if fault := '; '.join(filter(None, map(self._disagreement, subjects))):
            return Measurement(subjects[0].label, fault=fault, refused=True)
        method: Callable[..., Measurement] = getattr(self, row.measure)
        return method(row.key, *subjects)

    def forward(self, row: str, subjects: Subjects) -> Measurement:
        moved = roofline.moved_bytes(subjects.case)
        passes = {'ddf': subjects.forward, 'dw': subjects.depthwise_forward, 'copy': roofline.copy_pass(moved)}
        turns = self.visits.take_turns((row, subjects.case), passes)
        time = turns.statistics('ddf').median
        measurement = _compared(subjects, turns, 'ddf', 'dw')
        measurement.roofline = {
            'bandwidth': turns.statistics('copy').median / time,
            'peak': roofline.flops(subjects.case) / time / self.limits.peak,
        }
        return measurement

    def backward(self, row: str, subjects: Subjects) -> Measurement:
        passes = {'ddf': subjects.backward, 'dw': subjects.depthwise_backward}
        turns = self.visits.take_turns((row, subjects.case), passes)
        return _compared(subjects, turns, 'ddf', 'dw')

    def saved(self, _: str, subjects: Subjects) -> Measurement:
        """What is saved, each storage once, in sizes of the input; it may be the input and the filters."""
        allowed, kept = storage_sizes(subjects.leaves), storage_sizes(subjects.saved())
        size = allowed[subjects.input.untyped_storage().data_ptr()]
        others = {address: nbytes for address, nbytes in kept.items() if address not in allowed}
        fault = f'saves {sum(others.values()) / size:.2f} sizes of x besides input and filters' if others else ''
        return Measurement(
            subjects.label, sum(kept.values()) / size, required=sum(allowed.values()) / size, fault=fault
        )

    def memory(self, _: str, subjects: Subjects) -> Measurement:
        """What a pass allocates at its peak; input, filters and the output's gradient were there before."""
        results = subjects.backward()
        (size,) = storage_sizes([subjects.input]).values()
        floor = sum(storage_sizes(results).values()) / size
        del results
        peaks = []
        for run in (subjects.backward, subjects.depthwise_backward):
            run()
            peaks.append(peak_memory(run, (), CPU))
        if None in peaks:
            return Measurement(subjects.label, note='the peak cannot be measured on this system')
        peak, of_depthwise = (peak / size for peak in peaks)  # type: ignore[operator]
        note = f'output and gradients alone take {floor:.2f}; dw {of_depthwise:.2f}'
        return Measurement(subjects.label, peak, note=note)

    def bfloat16(self, row: str, half: Subjects, single: Subjects) -> Measurement:
        turns = self.visits.take_turns((row, half.case), {'bfloat16': half.forward, 'float32': single.forward})
        return _compared(half, turns, 'bfloat16', 'float32')

    def threads_compared(self, row: str, subjects: Subjects) -> Measurement:
        names = {f'{self.threads} threads': self.threads, '1 thread': 1}
        if self.threads == 1:
            return Measurement(subjects.label, note='needs --num-threads of at least 2')
        try:
            turns = self.visits.take_turns(
                (row, subjects.case),
                dict.fromkeys(names, subjects.forward),
                lambda name: torch.set_num_threads(names[name]),
            )
        finally:
            torch.set_num_threads(self.threads)
        return _compared(subjects, turns, *names)

    def _dtypes(self, measure: str) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float32] if measure == 'bfloat16' else [torch.float32]

    def _disagreement(self, subjects: Subjects) -> str:
        """Compared once for all rows that a case is in."""
        key = subjects.case, subjects.dtype
        if key not in self._disagreements:
            self._disagreements[key] = subjects.disagreement()
        return self._disagreements[key]


def _compared(subjects: Subjects, turns: Turns, name: str, baseline: str) -> Measurement:
    times = {each: turns.statistics(each) for each in (name, baseline)}
    return Measurement(subjects.label, turns.ratio(name, baseline), turns.spread(name, baseline), times=times)
