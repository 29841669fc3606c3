"""Times the DDF operation against convolution and depthwise convolution, or models against each other:

    python inference_time.py
    python inference_time.py --model ddf_mul_resnet50 resnet50 -b 16

The first takes about a minute on 2 CPU cores. `python inference_time.py --help` lists every flag.
"""

import sys

from ddfnet.inference_time import main

if __name__ == '__main__':
    sys.exit(main())
