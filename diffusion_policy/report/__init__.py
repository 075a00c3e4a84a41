"""Pages for people: one about a fine-tune, a comparison of runs, a ledger, and gripper verdicts."""

from diffusion_policy.diagnose import ReportError

__all__ = ["ReportError"]
