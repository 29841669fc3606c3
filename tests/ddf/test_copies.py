"""Copies of the package: alone in a folder, inside another package, and several in one process."""

import shutil

import pytest

import ddf

from . import packages

# a loaded library shows in the process's memory map, so that the second copy's would be seen
COMPARE = """
import sys, torch, {first} as first, {second} as second
generator = torch.Generator().manual_seed(0)
arguments = [torch.randn(size, generator=generator) for size in ((2, 4, 6, 7), (2, 4, 3, 3), (2, 9, 6, 7))]
results = []
for copy in (first, second):
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]
    output = copy.ddf(*leaves)
    results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
assert all(torch.equal(*pair) for pair in zip(*results)), results
module = second.DDFPack(8)
twin = first.DDFPack(8)
twin.load_state_dict(module.state_dict())
assert torch.equal(module(torch.ones(1, 8, 5, 5)), twin(torch.ones(1, 8, 5, 5)))
assert first.build_info().served_by == '', first.build_info()
assert second.build_info().path == first.build_info().path
assert second.build_info() is second.load()
with open('/proc/self/maps') as maps:
    print(*{{line.split()[-1] for line in maps if 'libddf' in line}})
print(second.build_info())
"""


def put_library(package):
    shutil.copy(ddf.build_info().path, package / 'libddf.so')
    return package


@pytest.fixture
def project(tmp_path):
    """A folder with the packages `ddf` and `mylib.ddf`, neither with a compiled library."""
    packages.copy_package(tmp_path / 'ddf')
    packages.copy_package(tmp_path / 'mylib' / 'ddf')
    (tmp_path / 'mylib' / '__init__.py').touch()
    return tmp_path


@pytest.mark.slow
def test_copied_folder_builds_and_checks_itself(tmp_path):
    package = packages.copy_package(tmp_path / 'mylib' / 'ddf')
    status, output, errors = packages.run(tmp_path, '-m', 'mylib.ddf', 'build')
    assert (status, errors) == (0, '')
    assert 'compiled for cpu' in output.splitlines()[0]
    assert output.splitlines()[0].endswith(f', {package / "libddf.so"}')
    shutil.move(package, tmp_path / 'other' / 'ddf')
    status, output, errors = packages.run(tmp_path / 'other', '-m', 'ddf', 'check', DDF_BUILD='0')
    assert (status, errors) == (0, ''), errors
    assert output.splitlines()[0].endswith(f', {tmp_path / "other" / "ddf" / "libddf.so"}')
    assert any(line.endswith('cases per line, and gradcheck: all agree') for line in output.splitlines())


@pytest.mark.parametrize(('first', 'second'), [('ddf', 'mylib.ddf'), ('mylib.ddf', 'ddf')])
def test_two_copies_in_one_process(project, first, second):
    folders = {'ddf': project / 'ddf', 'mylib.ddf': project / 'mylib' / 'ddf'}
    library = put_library(folders[first]) / 'libddf.so'
    status, output, errors = packages.run(project, '-c', COMPARE.format(first=first, second=second))
    assert (status, errors) == (0, '')
    loaded, headline, served_by = output.splitlines()[:3]
    assert loaded == str(library)  # and nothing else
    assert headline.endswith(f', {library}')
    assert served_by == f'served by: {first}, {folders[first]}'
    assert not (project / 'cache').exists()


def test_copy_is_built_in_place_beside_another(project):
    put_library(project / 'ddf')
    (project / 'mylib' / '__init__.py').write_text('import ddf')
    shutil.rmtree(project / 'mylib' / 'ddf' / 'csrc')
    packages.write_small_sources(project / 'mylib' / 'ddf' / 'csrc')
    status, output, errors = packages.run(project, '-m', 'mylib.ddf', 'build')
    assert (status, errors) == (0, '')
    assert f'served by: ddf, {project / "ddf"}' in output
    assert 'note: the C++ sources here' in output
    built = project / 'mylib' / 'ddf' / 'libddf.so'
    assert f'note: {built} was built; it is loaded where this copy of the package is imported first' in output
    assert built.exists()


REFUSED = """
import torch
{first}
try:
    import mylib.ddf
except ImportError as error:
    print(error)
"""


def test_another_version_is_refused(project):
    (project / 'mylib' / 'ddf' / '_version.py').write_text("__version__ = '0.0.1'\n")
    status, output, errors = packages.run(project, '-c', REFUSED.format(first='import ddf'), DDF_BACKEND='reference')
    assert (status, errors) == (0, '')
    assert output.strip() == (
        f'ddf 0.0.1 ({project / "mylib" / "ddf"}) cannot be imported: ddf {ddf.__version__} ({project / "ddf"}) '
        'already is, and one process holds the operators of one version only. Bring both to the same version, or '
        'import only one'
    )


def test_operators_of_another_package_are_refused(project):
    foreign = "library = torch.library.Library('ddf', 'DEF')"
    status, output, errors = packages.run(project, '-c', REFUSED.format(first=foreign), DDF_BACKEND='reference')
    assert (status, errors) == (0, '')
    assert output.startswith(f'ddf {ddf.__version__} ({project / "mylib" / "ddf"}) cannot be imported: another package')


REPEAT = """
import importlib, sys, torch, ddf
arguments = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3), torch.ones(1, 9, 2, 2)
expected, info = ddf.ddf(*arguments), ddf.build_info()
for name in [name for name in sys.modules if name.partition('.')[0] == 'ddf']:
    importlib.reload(sys.modules[name])
assert torch.equal(ddf.ddf(*arguments), expected)
for name in [name for name in sys.modules if name.partition('.')[0] == 'ddf']:
    del sys.modules[name]
import ddf
assert torch.equal(ddf.ddf(*arguments), expected)
assert ddf.build_info() is info
sys.path.insert(0, 'links')
import elsewhere
assert torch.equal(elsewhere.ddf(*arguments), expected)
assert elsewhere.build_info() is info
"""


def test_importing_again_changes_nothing(project):
    put_library(project / 'ddf')
    (project / 'links').mkdir()
    (project / 'links' / 'elsewhere').symlink_to(project / 'ddf')
    status, output, errors = packages.run(project, '-c', REPEAT)
    assert (status, output, errors) == (0, '', '')
