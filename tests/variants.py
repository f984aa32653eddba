"""Runs the tests that train as other processors would, with two threads, and from other seeds.

    python tests/variants.py python -m pytest [ARGUMENT]...

No outcome may hang on the last bits of a training. What is asserted of one is exact (bits within one run, counts,
names), or holds with room, or is constructed. oneDNN at AVX2 is left out: see tests/conftest.py.
"""

import os
import subprocess
import sys

import torch

VARIANTS = [
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX", "KDBENCH_TEST_SEED": "1"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX", "KDBENCH_TEST_THREADS": "2", "KDBENCH_TEST_SEED": "2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "KDBENCH_TEST_THREADS": "2", "KDBENCH_TEST_SEED": "3"},
]


def main(command: list[str]) -> int:
    """Run the command under each variant that this processor can be, and return how many failed."""
    failed = []
    for variant in VARIANTS:
        said = " ".join(f"{name}={value}" for name, value in variant.items())
        if "AVX512" in variant["ONEDNN_MAX_CPU_ISA"] and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            print(f"left out, this processor has no AVX-512: {said}", flush=True)
            continue
        print(said, flush=True)
        if subprocess.run(
            [*command, "-m", "trains and not long and not packages"], env={**os.environ, **variant}
        ).returncode:
            failed.append(said)
    print("\n".join(["failed:", *failed] if failed else ["every variant passed"]))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
