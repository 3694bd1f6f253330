#!/usr/bin/env bash
# Builds the wheel, installs it in an empty environment and runs the main job from another folder.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/.venv/bin/python" -m build --wheel --no-isolation --outdir "$work" "$here" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$here/constraints.txt")"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$here/constraints.txt" "$work"/instructgym-*.whl
cd "$work"
"$work/venv/bin/instructgym" run quickstart --out "$work/run" --set train.steps=2048
test -s "$work/run/dataset/sft_alpaca.jsonl"
echo "wheel: installed in an empty environment and ran the main job"
