"""The README's promises: its code runs, and what it names is there."""

import re
from pathlib import Path

import timm
import torch

import ddfnet

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


def test_parameter_counts_of_the_model_table():
    rows = re.findall(r'^\| (`ddf_.*?) \| ([\d,]+) \|', README, flags=re.MULTILINE)
    counts = {name: int(count.replace(',', '')) for names, count in rows for name in re.findall(r'`(\w+)`', names)}
    assert counts.keys() == set(timm.list_models(module=ddfnet.models.ddf_resnet.__name__.rsplit('.', 1)[-1]))
    for name, count in counts.items():
        assert sum(p.numel() for p in timm.create_model(name, device=torch.device('meta')).parameters()) == count


def test_files_that_are_named_exist():
    names = re.findall(r'(?:\./)?((?:scripts|configs|docs|tests)/[\w./]*\w)', README)
    assert len(names) > 3
    assert [name for name in names if not (ROOT / name).exists()] == []
