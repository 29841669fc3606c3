"""Validates a model on images and prints its accuracy as one line of JSON:

    python validate.py DATA_DIR --checkpoint output/train/NAME/model_best.pth.tar
    python validate.py DATA_DIR --model ddf_mul_resnet50 --checkpoint FILE

Model, classes and input come from the checkpoint where it says. `python validate.py --help` lists every flag.
"""

import os
import signal
import sys

if __name__ == '__main__':
    handler = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # importing takes seconds, and changes nothing
    from ddfnet.validation import main

    signal.signal(signal.SIGINT, handler)
    sys.exit(main())
