"""Writes the tables of docs/cuda.md: `python -m scripts.cuda_report`; with --check, says whether they are true.

Needs nvcc, cuobjdump and a C++ compiler, and minutes of compiling where nothing is kept. Exit status 1 where --check
finds another table, 2 where something is missing.
"""

import argparse
import difflib
import re
import sys
import tempfile
from pathlib import Path

from ddf import nvcc

from . import tables
from .compiler import ReportError, measure
from .launches import Recorder

DOCUMENT = Path(__file__).resolve().parents[2] / 'docs' / 'cuda.md'
_SECTION = re.compile(r'(<!-- (\S+) begins -->\n\n).*?(\n<!-- \2 ends -->)', re.DOTALL)


def recorded_release(text: str) -> str:
    """The nvcc that the tables of a document come from."""
    match = re.search(r'Compiled by nvcc (\S+)', text)
    return match[1] if match else ''


def refreshed(text: str, made: dict[str, str]) -> str:
    """The document with every table between its markers replaced. Raises ReportError where markers are missing."""
    named = [match[2] for match in _SECTION.finditer(text)]
    if sorted(named) != sorted(made):
        raise ReportError(f'the markers of {DOCUMENT.name} are {named}, the tables {list(made)}; make them agree')
    return _SECTION.sub(lambda match: match[1] + made[match[2]] + match[3], text)


def regenerate(text: str, cache: Path) -> str:
    """The document as compiler and launch code have it now; compilations are kept in `cache`."""
    toolkit = nvcc.find_toolkit()
    made = tables.make(measure(toolkit, cache), Recorder(cache), toolkit.release)
    return refreshed(text, made)


def main() -> int:
    parser = argparse.ArgumentParser('python -m scripts.cuda_report', description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit status 1 where a table differs')
    parser.add_argument('--cache', type=Path, metavar='FOLDER', help='keep compilations for the next time')
    arguments = parser.parse_args()
    text = DOCUMENT.read_text()
    try:
        with tempfile.TemporaryDirectory() as folder:
            new = regenerate(text, arguments.cache or Path(folder))
    except (ReportError, nvcc.ToolkitError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if not arguments.check:
        DOCUMENT.write_text(new)
    lines = difflib.unified_diff(text.splitlines(True), new.splitlines(True), str(DOCUMENT), 'made now')
    sys.stdout.writelines(lines)
    return int(arguments.check and new != text)


if __name__ == '__main__':
    sys.exit(main())
