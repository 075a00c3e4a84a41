"""Regenerate reference_policy.json: this project's policy's contents and outputs, once shown equal to the reference.

    python tests/golden/make.py

First runs tests/policy/test_reference_parity.py, which compares the policy with numbers that the reference itself
computed (names and shapes of two sizes, features, predicted noise, DDIM and DDPM actions within 1e-5); if those are
not available, or differ, nothing is written. Then names, shapes and outputs of the policies of golden_policy.py are
written, so that every checkout can be tested against the same names and numbers.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # where tests find their factories

from golden_policy import SIZES, formula_policy, make_policy, outputs  # noqa: E402  found there

PARITY = HERE.parent / "policy" / "test_reference_parity.py"


def check_parity() -> None:
    """Exits with a message unless every comparison with the reference ran and passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", str(PARITY)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    last = finished.stdout.strip().splitlines()[-1]
    if finished.returncode != 0 or "skipped" in last:
        sys.exit(f"nothing was written: the policy is not shown equal to the reference ({last})")


def main() -> None:
    """Compares, then writes."""
    check_parity()
    names = {}
    for size in SIZES:
        with torch.device("meta"):
            names[size] = {key: list(tensor.shape) for key, tensor in make_policy(size).state_dict().items()}
    found = {key: [round(number, 7) for number in tensor.flatten().tolist()]
             for key, tensor in outputs(formula_policy()).items()}  # fmt: skip
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**names, **found}.items())
    (HERE / "reference_policy.json").write_text(f"{{\n{lines}\n}}\n", encoding="ascii")


if __name__ == "__main__":
    main()
