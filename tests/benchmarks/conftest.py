"""Benchmarks are programs outside the package, whose modules import each other by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
