"""The code in docs/ runs; its assertions are its own."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / 'docs'
PAGES = [page for page in sorted(DOCS.glob('*.md')) if '```python' in page.read_text()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    blocks = re.findall(r'```python\n(.*?)```', page.read_text(), flags=re.DOTALL)
    assert any('assert' in block for block in blocks)
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
