# Sourced by every script that needs Python. Makes .venv with uv if it is installed, else with venv and pip.

# usable PYTHON: it is 3.11 or newer.
usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# is_optimized PYTHON: it was built with profile-guided optimization, as distributions do and pyenv by default does not.
# Pure Python code then takes a third less time, and the tests a tenth.
is_optimized() {
    "$1" -c '
import ensurepip, sys, sysconfig
arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
sys.exit(sys.base_prefix != "/usr" and "--enable-optimizations" not in arguments)' >/dev/null 2>&1
}

# Prints the Python that PYTHON names; else the first optimized one; else the first.
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

# make_venv "": makes .venv with what a run needs; make_venv dev: with what the checks need too. The caller sets `set -e`,
# and does not call this in a condition, where the shell would go on after a failed step. A stamp holds what .venv was
# made from, so that a later run needs no network.
make_venv() {
    stamp="$(cat pyproject.toml uv.lock | cksum) ${1:-run}"
    old_stamp="$(cat .venv/.made-from 2>/dev/null || true)"
    if [ "$old_stamp" = "$stamp" ] || { [ -z "$1" ] && [ "$old_stamp" = "${stamp% run} dev" ]; }; then
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
            # Not compiled here: of 200 MB of modules the tests import a tenth, which Python compiles then.
            .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
                -r .venv/dev-requirements.txt >&2
        fi
    fi
    echo "$stamp" >.venv/.made-from
}
