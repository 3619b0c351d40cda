#!/usr/bin/env bash
# The default tests with other releases of libraries, in a fresh environment that is removed afterwards:
#     PYTHON=python3.12 bash benchmarks/versions.sh transformers==5.24.0 av==19.0.2
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install -q -r requirements-dev.txt
"$environment/bin/pip" install -q "$@"
"$environment/bin/python" -m pytest -q
