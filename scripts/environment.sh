# Sourced by the other scripts: makes or takes a Python environment with this project in it, and puts it on PATH.
#
#   ensure_environment EXTRA    installs the project, editable, with the extra (demo or test), and builds the kernels
#
# DDFNET_VENV names the environment (default .venv in the checkout); one that exists is used as it is, and what is
# missing is installed into it. Nothing is done again until pyproject.toml or setup.py change.

ensure_environment() {
    local extra=$1 venv=${DDFNET_VENV:-.venv} stamp wanted
    if [ ! -x "$venv/bin/python" ]; then
        local python=${PYTHON:-python3}
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "error: $python is not Python 3.10 or later: install one, or name it in PYTHON" >&2
            exit 2
        fi
        echo "making a Python environment in $venv" >&2
        if ! "$python" -m venv "$venv"; then
            rm -rf "$venv"
            echo "error: $python has no venv module (Debian and Ubuntu: the package python3-venv)" >&2
            exit 2
        fi
    fi
    venv=$(cd "$venv" && pwd)
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV=$venv
    stamp=$venv/.ddfnet-installed-$extra
    wanted=$(pwd; cat pyproject.toml setup.py)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing ddfnet[$extra] into $venv" >&2
        python -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
        python -m ddf build >&2 || echo "going on without compiled kernels, in plain torch" >&2
        printf '%s\n' "$wanted" > "$stamp"
    fi
}
