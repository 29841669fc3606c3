"""What exporters need that know nothing of `torch.ops.ddf.*`.

    program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    program = program.run_decompositions(ddf.export.decompositions())
    torch.onnx.export(program, f='model.onnx', dynamo=True)

`torch.export` itself, its files and AOTInductor keep the operator; a program that loads such a file imports `ddf`.
"""

from collections.abc import Callable

import torch

from . import reference
from .schemas import forward


def decompositions() -> dict[torch._ops.OperatorBase, Callable]:
    """The operation in standard operators, for `torch.export.ExportedProgram.run_decompositions`.

    Only it is taken apart; add `torch.export.default_decompositions()` for programs of core ATen operators alone.
    """
    return {forward: reference.forward}
