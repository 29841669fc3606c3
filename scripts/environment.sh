# Sourced by the other scripts: makes or takes a Python environment with this project in it, and puts it on PATH.
#
#   ensure_environment EXTRA    installs the project, editable, with the extra (demo or test), and builds the kernels
#
# DDFNET_VENV names the environment (default .venv in the checkout); one that exists is used as it is, and what is
# missing is installed into it. A relative name counts from the folder in `called_from`, where the user called from.
# Nothing is done again until pyproject.toml or setup.py change.

case ${DDFNET_VENV:-} in
    '') environment=$PWD/.venv ;;
    /*) environment=$DDFNET_VENV ;;
    *) environment=$called_from/$DDFNET_VENV ;;
esac

require_python() {
    if ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
        echo "error: $1 is not Python 3.10 or later: install one, and name it in PYTHON" >&2
        exit 2
    fi
}

# Kernels for GPUs take minutes to compile: here only where there is a GPU, or where one of torch's variables asks.
build_kernels() {
    if [ -z "${FORCE_CUDA:-}${TORCH_CUDA_ARCH_LIST:-}" ] &&
        ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        FORCE_CUDA=0 python -m ddf build
    else
        python -m ddf build
    fi
}

ensure_environment() {
    local extra=$1 venv=$environment stamp wanted
    if [ ! -x "$venv/bin/python" ]; then
        if [ -e "$venv" ] && [ -n "$(ls -A "$venv")" ]; then
            echo "error: $venv exists and is no Python environment: name another in DDFNET_VENV" >&2
            exit 2
        fi
        require_python "${PYTHON:-python3}"
        echo "making a Python environment in $venv" >&2
        if ! "${PYTHON:-python3}" -m venv "$venv"; then
            echo "error: ${PYTHON:-python3} could not make $venv (Debian and Ubuntu need the package python3-venv);" \
                "remove what it left there and try again" >&2
            exit 2
        fi
    fi
    require_python "$venv/bin/python"
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV=$venv
    if ! python -m pip --version > /dev/null 2>&1 && ! python -m ensurepip > /dev/null 2>&1; then
        echo "error: the environment $venv has no pip: install it there, or name another in DDFNET_VENV" >&2
        exit 2
    fi
    stamp=$venv/.ddfnet-installed-$extra
    wanted=$(pwd; cat pyproject.toml setup.py)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing ddfnet[$extra] into $venv" >&2
        python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
        build_kernels >&2 || echo "going on without compiled kernels, in plain torch" >&2
        printf '%s\n' "$wanted" > "$stamp"
    fi
}
