#!/bin/sh
# Create .venv and install the pinned, hashed packages and isbench itself (editable). Usage: setup.sh PYTHON
set -eu
python=$1
cd "$(dirname "$0")/.."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "setup: isbench needs Python 3.11 to 3.13, and $python is $("$python" -V 2>&1); try make PYTHON=python3.12 ..." >&2
    exit 1
}
if command -v uv >/dev/null 2>&1; then
    echo "setup: installing the pinned packages into .venv with uv"
    [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
    uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements/dev.txt
    uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
else
    echo "setup: installing the pinned packages into .venv with pip (a few minutes; torch is large)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
echo "setup: done"
