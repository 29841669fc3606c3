"""The official numbers, computed by the emulated CUDA kernels."""

from tests.ddf.test_golden import test_module, test_operation

__all__ = ['test_module', 'test_operation']
