#!/usr/bin/env bash
# One compiled library in several releases of torch: builds it with the active environment's torch, then loads and
# checks the same file in an environment of its own for each release named.
#
#     ./scripts/check_torch_versions.sh 2.11.0 2.13.0
#     ./scripts/check_torch_versions.sh --tests 2.11.0      # most tests of tests/ddf there as well
#
# The environments are made in output/torch, or the folder named in DDFNET_TORCH_ENVIRONMENTS, and used again the next
# time. A release for CUDA needs some 5 GB and minutes of downloading; the checks take seconds, the tests minutes.
# PYTHON names the interpreter that has torch and a compiler beside it. Exit status 1 where a release fails.
set -euo pipefail
called_from=$PWD
root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tests=
if [ "${1:-}" = --tests ]; then
    tests=1
    shift
fi
if [ $# -eq 0 ] || [[ " $*" == *" -"* ]]; then
    echo "usage: $0 [--tests] VERSION..., such as 2.11.0" >&2
    exit 2
fi
case ${DDFNET_TORCH_ENVIRONMENTS:-} in
    '') environments=$root/output/torch ;;
    /*) environments=$DDFNET_TORCH_ENVIRONMENTS ;;
    *) environments=$called_from/$DDFNET_TORCH_ENVIRONMENTS ;;
esac
python=${PYTHON:-python}
if ! "$python" -c 'import torch' 2> /dev/null; then
    echo "error: $python cannot import torch: activate an environment that has it, or name one in PYTHON" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$root/ddf" "$folder/ddf"
rm -f "$folder/ddf/"*.so
mkdir "$folder/tests"
cp -r "$root/tests/"{__init__.py,conftest.py,ddf,golden} "$folder/tests"
cp "$root/pyproject.toml" "$folder"
cd "$folder"
unset DDF_BACKEND DDF_CXXFLAGS
export PYTHONDONTWRITEBYTECODE=1
"$python" -m ddf build
export DDF_BUILD=0 DDF_CACHE_DIR=$folder/cache

check_release() {
    local there=$environments/$1/bin/python report
    if [ ! -x "$there" ]; then "$python" -m venv "$environments/$1" || return 1; fi
    if ! "$there" -c 'import torch' 2> /dev/null; then
        "$there" -m pip install --quiet --disable-pip-version-check "torch==$1" numpy || return 1
    fi
    "$there" -m ddf || return 1
    report=$("$there" -m ddf check) || { echo "$report"; return 1; }
    echo "$report" | tail -n +2
    if [[ ${report%%$'\n'*} != *" $folder/ddf/libddf.so" ]]; then
        echo "the library was not loaded" >&2
        return 1
    fi
    if [ -n "$tests" ]; then
        "$there" -m pip install --quiet --disable-pip-version-check pytest hypothesis numpy || return 1
        # left out: what needs ONNX, and what compiles
        "$there" -m pytest -q tests/ddf --ignore-glob='*/test_'{export,build,extension,copies,sanitizers,torch_versions_script}.py || return 1
    fi
}

failed=()
for version in "$@"; do
    echo "== torch $version"
    check_release "$version" || failed+=("$version")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
echo "the same library agrees in: $*"
