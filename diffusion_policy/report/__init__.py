"""Pages for people: one about a fine-tune, runs beside each other, a ledger, and gripper verdicts."""

from diffusion_policy.diagnose import ReportError

__all__ = ["ReportError"]
