# Sourced by every script that needs Python: make .venv with uv if it is there, else with venv and pip.

usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Built with a profile of what programs do, as distributions build theirs, and pyenv does not unless it is asked to: plain
# Python takes a third less time there, and the tests a tenth.
is_optimized() {
    "$1" -c '
import ensurepip, sys, sysconfig
arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
sys.exit(sys.base_prefix != "/usr" and "--enable-optimizations" not in arguments)' >/dev/null 2>&1
}

# The one that PYTHON names; else the first that is optimized, or the first.
find_python() {
    first=""
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python /usr/bin/python3; do
        if [ -n "$candidate" ] && usable "$candidate"; then
            if [ "$candidate" = "${PYTHON:-}" ] || is_optimized "$candidate"; then
                echo "$candidate"
                return 0
            fi
            first="${first:-$candidate}"
        fi
    done
    [ -z "$first" ] || { echo "$first" && return 0; }
    echo "No Python 3.11 or newer was found. Install one, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

# make_venv "" | make_venv dev: the second with what the checks need. The first step that fails ends the script, which has
# to have `set -e`, and calls this by itself: before `||` the shell would go on.
# A stamp says what .venv was made from, so that a run does not ask the network again.
make_venv() {
    wanted="$(cat pyproject.toml uv.lock | cksum) ${1:-run}"
    have="$(cat .venv/.made-from 2>/dev/null || true)"
    if [ "$have" = "$wanted" ] || { [ -z "$1" ] && [ "$have" = "${wanted% run} dev" ]; }; then
        return 0
    fi
    if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then
        echo "Setting up .venv with uv ..." >&2
        if [ -n "$1" ]; then uv sync --quiet --locked >&2; else uv sync --quiet --locked --no-dev --inexact >&2; fi
    else
        python="$(find_python)"
        echo "Setting up .venv with $python ..." >&2
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e . >&2
        if [ -n "$1" ]; then
            .venv/bin/python -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["dependency-groups"]["dev"]))
' >.venv/dev-requirements.txt
            # Of 200 MB of modules the tests import a tenth; Python compiles these when it does.
            .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
                -r .venv/dev-requirements.txt >&2
        fi
    fi
    echo "$wanted" >.venv/.made-from
}
