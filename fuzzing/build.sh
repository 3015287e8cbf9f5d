#!/bin/bash
# Builds every harness into $OUT, with its seed corpus, dictionary and options. OSS-Fuzz and ClusterFuzzLite run it in
# their builder for Python; `scripts/fuzz-harnesses` runs it here. $SRC/vhostuser is a checkout without extension modules.
set -euo pipefail
cd "$SRC/vhostuser"

# Without a C compiler the data path is installed interpreted, which is what Atheris can follow.
CC=false pip3 install .

for harness in fuzzing/fuzz_*.py; do
    compile_python_fuzzer "$harness" --paths .
done
python3 -m fuzzing.corpus "$OUT"
