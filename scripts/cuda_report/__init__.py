"""The numbers of docs/cuda.md, from the compiler, the launch code and formulas: `python -m scripts.cuda_report`."""
