"""Times the DDF operation against convolution and depthwise convolution, or models against each other:

    python inference_time.py
    python inference_time.py --op --sizes 56 -b 8 --train
    python inference_time.py --model ddf_mul_resnet50 resnet50 -b 1 16 --json times.json --plot times.png

The first takes about a minute, on whatever device there is, and says which of the paper's maps it left out for that;
--budget gives it more. Tables go to stdout, progress to stderr. `python inference_time.py --help` lists every flag.
"""

import os
import signal
import sys

if __name__ == '__main__':
    handler = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # importing takes seconds, and changes nothing
    from ddfnet.inference_time import main

    signal.signal(signal.SIGINT, handler)
    sys.exit(main())
