"""Marks tests of compiled code, which are skipped with a reason if there is no compiler."""

import pytest

from diffusion_policy.model.cpu import kernels

WHY = kernels.why_unavailable()
needs_kernels = pytest.mark.skipif(WHY is not None, reason=f"the compiled kernels cannot be used: {WHY}")
needs_bf16 = pytest.mark.skipif(
    not kernels.multiplies_bf16(), reason=f"products in bf16 need a CPU with AVX512-BF16, and kernels (reason: {WHY})"
)
