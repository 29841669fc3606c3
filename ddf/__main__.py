"""`python -m ddf` says what serves the operation in this environment, and what GPUs there are.

`python -m ddf build` compiles the library next to the package, with CUDA kernels where nvcc is; exit status 1 where
that fails.
`python -m ddf check` compares what serves each device with the definition (seconds); exit status 1 on disagreement.
"""

import sys
import time

from . import build, check, extension, fallback, report


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failure, 2 for a wrong call."""
    if not arguments:
        info = extension.build_info()
        print(info, *report.gpus(dict(info.stamp)), *fallback.notes(info.devices), sep='\n')
        return 0
    if arguments == ['build']:
        return _build()
    if arguments == ['check']:
        return check.main()
    print(f'usage: python -m {__package__} [build | check], got: {" ".join(arguments)}', file=sys.stderr)
    return 2


def _build() -> int:
    start = time.monotonic()
    try:
        print(extension.build_in_place())
        print(f'built and loaded in {time.monotonic() - start:.1f} s')
    except build.BuildError as error:
        print(f'ddf: not built: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
