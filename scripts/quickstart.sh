#!/usr/bin/env bash
# From a bare machine with Python 3.10 to a trained network:
#
#     ./scripts/quickstart.sh
#
# makes .venv (or takes the environment named in DDFNET_VENV), installs, builds the kernels, trains ddf_mul_resnet26 on
# scikit-learn's digits, and validates it. The last line is the validation as JSON. Safe to run again: what is done is
# not done twice.
set -euo pipefail
called_from=$PWD
CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/environment.sh
ensure_environment demo

run=output/quickstart/digits
python -m ddf | head -n 1
python train.py -c configs/digits.yaml --output output/quickstart --experiment digits --resume auto
echo
echo "curves:      $run/curves.png and $run/summary.csv"
echo "TensorBoard: ${VIRTUAL_ENV}/bin/tensorboard --logdir $run"
echo "validation of the last epoch's weights:"
python validate.py --checkpoint "$run/last.pth.tar" --workers 0
