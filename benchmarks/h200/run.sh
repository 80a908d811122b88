#!/usr/bin/env bash
# The plugin against a real vLLM on one H200, and `vllm bench serve` beside it.
#   bash benchmarks/h200/run.sh OUT [PYTHON] [SELECTION] [PYTEST ARGUMENTS ...]
# PYTHON has vLLM, pytest and what the plugin needs. Writes result files, logs and the peer's figures to OUT.
set -uo pipefail
out=$1 python=${2:-python3} selection=${3:-}
class=${GPUCAP_CLASS:-h200} qps=${GPUCAP_QPS:-20} suite=${GPUCAP_SUITE:-benchmarks/h200}
mkdir -p "$out"
# Where the plugin is not installed it is taken from the working directory.
"$python" -c 'import importlib.metadata as m; m.version("pytest-gpucap")' 2> /dev/null || load=(-p pytest_gpucap.plugin)
plugin=(${load[@]+"${load[@]}"} -p no:cacheprovider -o addopts= -o filterwarnings= --import-mode=importlib)
settings=(--gpucap-vllm-python "$python" --gpucap-dir "$out/gpucap" --gpucap-require)

echo "== a class that is not here is refused"
"$python" -m pytest "${plugin[@]}" "${settings[@]}" "$suite" --gpu-class t4 --target-qps 1
echo "exit code $? (4 expected)"

echo "== the suite"
"$python" -m pytest "${plugin[@]}" "${settings[@]}" "$suite" --gpu-class "$class" --target-qps "$qps" \
  ${selection:+-k "$selection"} --gpucap-json "$out/result.json" --junit-xml "$out/junit.xml" -v -rA "${@:4}"
echo "exit code $?"
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm --format=csv
exit 0
