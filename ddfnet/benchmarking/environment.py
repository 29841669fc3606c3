"""What a measurement depends on besides the code that is measured."""

import os
import platform
from pathlib import Path
from typing import Any

import timm
import torch

from ddf import build_info

ALLOCATOR = {'MALLOC_MMAP_THRESHOLD_': str(2**40), 'MALLOC_TRIM_THRESHOLD_': str(2**40)}
_VARIABLES = (
    'OMP_',
    'KMP_',
    'GOMP_',
    'MKL_',
    'ATEN_',
    'DNNL_',
    'ONEDNN_',
    'TORCH',
    'PYTORCH_',
    'CUDA_',
    'DDF_',
    'NVIDIA_TF32',
)


def device_name(device: torch.device) -> str:
    """The device in words: the GPU, or the processor with the number of threads that torch uses."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type == 'cpu':
        threads = torch.get_num_threads()
        return f'{processor_name()}, {threads} thread' + ('s' if threads > 1 else '')
    return device.type


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(names, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def environment(device: torch.device) -> dict[str, Any]:
    """Of the process that calls it: device, processor, threads, versions, allocator, settings."""
    return {
        'device': str(device),
        'device_name': device_name(device),
        'processor': {
            'name': processor_name(),
            'cores': os.cpu_count(),
            'usable_cores': usable_cores(),
            'instructions': torch.backends.cpu.get_cpu_capability(),
            'load_average': os.getloadavg() if hasattr(os, 'getloadavg') else None,
        },
        'threads': {'intra_op': torch.get_num_threads(), 'inter_op': torch.get_num_interop_threads()},
        'allocator': _allocator(),
        'system': platform.platform(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'ddf': str(build_info()).splitlines(),
        'float32_matmul_precision': torch.get_float32_matmul_precision(),
        'cuda': _cuda(device) if device.type == 'cuda' else None,
        'variables': {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _allocator() -> dict[str, str]:
    """The C library and what steers its allocator in this process."""
    names = [*ALLOCATOR, 'LD_PRELOAD', 'GLIBC_TUNABLES']
    others = [name for name in os.environ if name.startswith('MALLOC_') and name not in names]
    given = {name: os.environ[name] for name in names + others if name in os.environ}
    return {'c_library': ' '.join(platform.libc_ver()), **given}


def _cuda(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        'version': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'cudnn_benchmark': torch.backends.cudnn.benchmark,
        'cudnn_allow_tf32': torch.backends.cudnn.allow_tf32,
        'capability': f'{properties.major}.{properties.minor}',
        'memory': properties.total_memory,
        'multiprocessors': properties.multi_processor_count,
    }
