#!/usr/bin/env bash
# Unit, golden and contract tests with the oldest versions that pyproject.toml allows, in an environment of their own:
#   bash tests/lowest.sh [FOLDER [TESTS ...]]      FOLDER is made once and used again; about 7 GB, with CUDA's libraries
# What the tests themselves need (pytest, scikit-learn …) is the newest that goes with those.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${TMPDIR:-/tmp}/msltrain-lowest}
shift || true
python=${PYTHON:-python3}
if [ ! -f "$folder/.ready" ]; then
  "$python" -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet uv
  "$folder/bin/uv" pip compile --quiet --python "$folder/bin/python" --resolution lowest-direct pyproject.toml -o "$folder/lowest.txt"
  VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet -r "$folder/lowest.txt" \
    hypothesis pytest pytest-xdist scikit-learn setuptools torchmetrics
  touch "$folder/.ready"
fi
[ $# -gt 0 ] || set -- tests/unit tests/golden tests/contract
PYTHONPATH=$PWD exec "$folder/bin/python" -m pytest -n "${JOBS:-2}" --dist worksteal -m "not slow" "$@"
