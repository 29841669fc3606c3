"""The README's promises: its code runs, and what it names is there."""

import re
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import ddfnet  # noqa: F401  registers the models

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_code_runs():
    blocks = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        shapes = re.findall(r'^y = .*# (\(.*\))$', block, flags=re.MULTILINE)
        scope: dict = {}
        for statement in block.split('\n\n'):
            exec(statement, scope)
            if shapes and 'y' in scope and f'# {shapes[0]}' in statement:
                assert str(tuple(scope['y'].shape)) == shapes.pop(0)
        assert not shapes


def test_model_table():
    rows = re.findall(r'^\| (`ddf_.*?) \| ([\d,]+) \| ([\d.]+) \|', README, flags=re.MULTILINE)
    table = {name: (count, gmacs) for names, count, gmacs in rows for name in re.findall(r'`(\w+)`', names)}
    assert table.keys() == set(timm.list_models('ddf_*'))
    for name, (count, gmacs) in table.items():
        model = timm.create_model(name, device=torch.device('meta')).eval()
        assert f'{sum(parameter.numel() for parameter in model.parameters()):,}' == count
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224, device='meta'))
        assert f'{counter.get_total_flops() / 2e9:.2f}' == gmacs


def test_files_that_are_named_exist():
    names = re.findall(r'(?:\./)?((?:scripts|configs|docs|tests)/[\w./]*\w)', README)
    assert len(names) > 3
    assert [name for name in names if not (ROOT / name).exists()] == []
