"""Trains a model on images, in one process:

    python train.py DATA_DIR -c configs/ddf_mul_resnet50.yaml
    python train.py -c configs/digits.yaml

or, through torchrun, in several (`./scripts/distributed_train.sh`). `python train.py --help` lists every flag. A run
leaves its settings, checkpoints, summary.csv, curves and TensorBoard events in output/train/NAME.
"""

import os
import signal
import sys

if __name__ == '__main__':
    handler = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # importing takes seconds, and changes nothing
    from ddfnet.training.command import main

    signal.signal(signal.SIGINT, handler)
    sys.exit(main())
