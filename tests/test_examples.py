"""The worked examples run, and show what they say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / 'examples').glob('*.py'))


def load_example(name: str) -> ModuleType:
    path = next(path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(f'example_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_says_its_command_and_uses_the_public_interface(path):
    source = path.read_text()
    assert f'    python examples/{path.name}\n' in source
    assert re.findall(r'^(?:from|import) (?:ddf|ddfnet).*', source, flags=re.MULTILINE) in (
        ['from ddf import ddf'],
        ['from ddf import DDFPack'],
    )
    assert any(name.startswith(f'test_{path.stem}_') for name in globals())


def test_carafe_upsampling_beats_bilinear():
    learned, bilinear = load_example('carafe_upsampling').main(steps=60)
    assert learned < 0.5 * bilinear


def test_involution_keeps_less_than_unfolding():
    kept, kept_by_unfolding = load_example('involution').main()
    assert 0 < kept < 0.25 * kept_by_unfolding


def test_weightnet_equals_the_grouped_convolution(capsys):
    load_example('weightnet').main()
    assert capsys.readouterr().out.count('are equal to those of the grouped convolution') == 2


def test_custom_block_learns_digits():
    losses, accuracy = load_example('custom_block').main(epochs=3)
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy > 0.5
