"""What nvcc makes of the CUDA kernels, and docs/cuda.md, which is made of that; no GPU is needed.

Compilations are kept in pytest's cache, for every state of the sources; without one they take minutes.
"""

import pytest

from ddf import nvcc
from scripts.cuda_report import __main__ as report
from scripts.cuda_report import compiler, launches, tables, traffic
from scripts.cuda_report.compiler import Kernel, Resources
from tests.ddf import packages

MESSAGES = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE' for 'sm_90'
ptxas info    : Function properties for _ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compile time = 41.014 ms
"""  # noqa: E501
CODE = """		Function : _ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;       /* 0x0000000402048981 */
        /*0020*/                   LDG.E.U16.CONSTANT R9, [R2.64+0x2] ;   /* 0x0000020402098981 */
        /*0030*/               @P1 STG.E.128 [R12.64], R4 ;               /* 0x000000040c001986 */
"""
BOUNDS = """.visible .entry _ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE(
.param .align 8 .b8 _ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE_param_0[384]
)
.maxntid 64, 2, 1
.minnctapersm 3
{
"""
SYMBOL = '_ZN3ddf4cuda13gather_planesI13__nv_bfloat16Li3ELi8ELi1EEEvNS0_6GatherE'
SERVES_CPU = """
import torch
from borrowed import build_info, check, ddf, reference
info = build_info()
assert (info.devices, info.path.parent.name, info.notes) == (('cpu', 'cuda'), 'borrowed', ()), info
assert not torch.cuda.is_available()
case = check.Case((2, 4, 7, 9), 3, stride=2, head=2)
grad, *leaves = (tensor.requires_grad_() for tensor in case.tensors(torch.float64))
output = ddf(*leaves, 3, 1, 2, 2, 'mul')
results = [output, *torch.autograd.grad(output, leaves, grad)]
torch.testing.assert_close(results, check.evaluate(reference, case.tensors(torch.float64), case.settings))
print('agrees')
"""
STORED = {'float64': 8, 'float32': 4, 'float16': 2, 'bfloat16': 2}
TILED = ('gather_planes', 'gather_pixels', 'filter_gradients_planes', 'filter_gradients_pixels')
WARPS = 12  # of a multiprocessor, that the registers of every kernel leave room for, but of these
FEWER_WARPS = {('gather_planes', 'float64', 5, 1): 8, **{('filter_gradients_pixels', dtype, 7): 7 for dtype in STORED}}


@pytest.fixture(scope='session')
def cache(pytestconfig):
    return pytestconfig.cache.mkdir('cuda_report')


@pytest.fixture(scope='session')
def toolkit():
    """Of the machine. Loud: what a missing one leaves untested is said."""
    try:
        found = nvcc.find_toolkit()
        compiler.find_cuobjdump(found)
    except (nvcc.ToolkitError, compiler.ReportError) as error:
        pytest.skip(f'NOTHING CHECKED what nvcc makes of the CUDA kernels: {error}')
    missing = {word.removesuffix('+PTX') for word in compiler.ARCHITECTURES} - set(found.supported)
    if missing:
        pytest.skip(f'NOTHING CHECKED what nvcc makes of the CUDA kernels: {found.nvcc} lacks {sorted(missing)}')
    return found


@pytest.fixture(scope='session')
def measured(toolkit, cache):
    """Every kernel on every architecture; the compilation itself fails at a warning."""
    return compiler.measure(toolkit, cache)


@pytest.fixture(scope='session')
def instances(measured):
    """(architecture, kernel, resources) of them all."""
    return [(name, *item) for name, kernels in measured.items() for item in kernels.items()]


def least_accesses(kernel: Kernel) -> tuple[int, int]:
    """Loads and stores of 16 bytes that the tile of an instance asks for."""
    if kernel.name not in TILED:
        return 0, 0
    size, vector, *rest = kernel.numbers
    whole = vector * STORED[kernel.dtype] == 16
    if kernel.name == 'gather_planes':
        if not whole:
            return 0, 0
        if size <= 3:  # each tap of the spatial filter, each row of the map
            return size * size + size * rest[0] * vectors_of_row(size, vector), 1
        return size + 2 * vectors_of_row(size, vector), 2  # in loops: a row of taps, a row of two channels' maps
    if kernel.name == 'gather_pixels':  # four pixels in a row share their reads where the last number says so
        return (size + 3 if rest[0] else 4 * size, 4) if whole else (0, 0)
    accumulated = 8 if kernel.dtype == 'float64' else 4
    if kernel.name == 'filter_gradients_planes':  # sums are stored as accumulators
        stores = size * vector * accumulated // 16 if vector * accumulated >= 16 else 0
        return 1 + vectors_of_row(size, vector) if whole else 0, stores
    return (1 + size if whole else 0), 0


def least_warps(kernel: Kernel) -> int:
    starts = ((kernel.name, kernel.dtype, *kernel.numbers[:count]) for count in (1, 2))
    return next((FEWER_WARPS[start] for start in starts if start in FEWER_WARPS), WARPS)


def vectors_of_row(size: int, vector: int) -> int:
    """Those that `size` taps of a vector of pixels read by more than half: others may be read by fewer bytes."""
    beside, part = divmod(size // 2, vector)
    return 1 + 2 * (beside + (2 * part > vector))


def test_messages_and_code_are_read():
    found = compiler.parse_messages(MESSAGES)
    compiler.count_accesses(CODE, found)
    compiler.read_bounds(BOUNDS, found)
    assert found == {SYMBOL: Resources(168, 16, 32, 2, 1, 1, 1, 4, threads=128, blocks=3)}
    assert compiler.parse_kernel(SYMBOL) == Kernel('gather_planes', 'bfloat16', (3, 8, 1))
    assert compiler.parse_kernel('_ZN3ddf4cuda7forwardERKNS_4CallEPv') is None


@pytest.mark.parametrize('line', ["warning #177-D: variable 'x' was declared but never used", 'ptxas warning : spills'])
def test_warning_is_an_error(line):
    with pytest.raises(compiler.ReportError, match='the compiler warns'):
        compiler.parse_messages(MESSAGES + line)


def test_occupancy_follows_each_limit():
    assert traffic.occupancy('9.0', 32, 256, 0) == 1
    assert traffic.occupancy('8.0', 128, 128, 0) == 0.25  # registers
    assert [traffic.blocks_by_registers(count, 96) for count in (128, 129)] == [5, 4]
    assert traffic.occupancy('8.0', 32, 128, 48 << 10) == 0.1875  # three blocks of 49 KiB
    assert traffic.occupancy('9.0', 16, 32, 0) == 0.5  # blocks
    assert traffic.occupancy('7.5', 16, 1024, 0) == 1


def test_document_keeps_its_text_and_refuses_other_markers():
    text = 'a\n<!-- x begins -->\n\nold\n\n<!-- x ends -->\nb\n'
    assert report.refreshed(text, {'x': 'new\n'}) == text.replace('old', 'new')
    with pytest.raises(compiler.ReportError, match='make them agree'):
        report.refreshed(text, {'y': 'new\n'})


@pytest.mark.slow
def test_traffic_adds_up_over_the_tiles(cache):
    """On one tile every byte moves once; more tiles move more, and a filter as often as groups read it."""
    recorder = launches.Recorder(cache)
    for channels_last in (False, True):
        whole = launches.Work((1024, 4, 8, 8), channels_last=channels_last)
        (launch,) = recorder.forward(whole)
        assert traffic.gather_traffic(whole, launch) == traffic.forward_bytes(whole)
        large = launches.Work((32, 256, 56, 56), channels_last=channels_last)
        (launch,) = recorder.forward(large)
        assert 1 < traffic.gather_traffic(large, launch) / traffic.forward_bytes(large) < 1.5


@pytest.mark.slow
def test_all_kernels_are_compiled(instances):
    names = {kernel.name for _, kernel, _ in instances}
    assert names == {*TILED, 'gather_general', 'filter_gradients_general',
                     'finish_channel_gradient', 'finish_spatial_gradient', 'moments_in_memory'}  # fmt: skip
    assert len({kernel for _, kernel, _ in instances}) * len(compiler.ARCHITECTURES) == len(instances)


@pytest.mark.slow
def test_nothing_spills(instances):
    assert not [(name, str(kernel), found) for name, kernel, found in instances if found.spills]


@pytest.mark.slow
def test_registers_leave_room_for_the_blocks_that_kernels_are_designed_for(measured, instances):
    """The blocks, and with them the ceilings of registers, are those that launch bounds state (tiling.h).

    ptxas keeps to them by itself, at the price of spills, which another test refuses. So what can fail here is foremost
    a kernel that states too few or, as `finish_channel_gradient`, none, and takes what leaves room for too few warps.
    """
    stated = {kernel: found for kernel, found in measured[compiler.ARCHITECTURES[-1]].items() if found.threads}
    assert {kernel.name for _, kernel, _ in instances if kernel not in stated} == {'moments_in_memory'}
    few = []
    for name, kernel, found in instances:
        if kernel in stated:
            threads, blocks = stated[kernel].threads, stated[kernel].blocks
            room = traffic.blocks_by_registers(found.registers, threads)
            if room < blocks or room * threads < 32 * least_warps(kernel):
                few.append((name, str(kernel), room, blocks, found))
    assert not few


@pytest.mark.slow
def test_maps_are_accessed_by_16_bytes(instances):
    few = [
        (name, str(kernel), found, least_accesses(kernel))
        for name, kernel, found in instances
        if found.vector_loads < least_accesses(kernel)[0] or found.vector_stores < least_accesses(kernel)[1]
    ]
    assert not few


@pytest.mark.slow
def test_document_is_what_the_compiler_says(toolkit, measured, cache):
    text = report.DOCUMENT.read_text()
    recorded = report.recorded_release(text)
    if toolkit.release != recorded:
        pytest.skip(f'docs/cuda.md NOT CHECKED: it was made by nvcc {recorded}, here is {toolkit.release}')
    made = tables.make(measured, launches.Recorder(cache), toolkit.release)
    assert report.refreshed(text, made) == text


@pytest.mark.slow
def test_library_with_cuda_kernels_serves_the_cpu_where_no_gpu_is(toolkit, tmp_path):
    """For one architecture and without optimisation, which nothing here depends on and most of the time goes to."""
    packages.copy_package(tmp_path / 'borrowed')
    chosen = {'CUDA_VISIBLE_DEVICES': '', 'DDF_BUILD': '0', 'DDF_CXXFLAGS': '-O1'}
    compiled = {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': '9.0'}
    if toolkit.release >= '13':  # earlier ones need not know the flag
        compiled['NVCC_APPEND_FLAGS'] = '--Ofast-compile=max'
    headline = 'compiled for cpu, cuda'
    for arguments, said, environment in (
        (('-m', 'borrowed', 'build'), headline, compiled),
        (('-c', SERVES_CPU), 'agrees', {}),
        (('-m', 'borrowed'), headline, {}),
    ):
        status, output, errors = packages.run(tmp_path, *arguments, timeout=1200, **chosen, **environment)
        assert (status, errors, said in output) == (0, '', True), (arguments, output, errors)
