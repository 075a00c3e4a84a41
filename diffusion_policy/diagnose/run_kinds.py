"""Findings about a run by its kind: trained on recordings, or on the rewards of an environment."""

from __future__ import annotations

from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, ok, run_checks
from diffusion_policy.diagnose.training_evidence import config_of_run
from diffusion_policy.diagnose.training_findings import checkpoints, config_findings, run_findings, stopped
from diffusion_policy.run_folder.reading import RunFolder


def findings_of_run(run: RunFolder, data: DatasetEvidence | None = None) -> list[Finding]:
    """Returns findings about the config, then the numbers; where both cover a point, the numbers are kept.

    Reinforcement learning has only numbers.
    """
    if run.learns_from_rewards:
        return run_checks(REINFORCEMENT_CHECKS, run)
    found = run_findings(run)
    evidence = config_of_run(run)
    if evidence is None:
        return found
    known = {finding.code for finding in found}
    return [finding for finding in config_findings(evidence, data) if finding.code not in known] + found


def success_of_episodes(run: RunFolder) -> Finding | None:
    """Whether the last episodes succeed more often than the first, by intervals that do not overlap.

    Episodes that succeed early end first, so a window that is not full yet holds too many successes.
    """
    code = "reinforcement"
    lines = [line for line in run.metrics if all(line.get(key) is not None for key in _SHARE)]
    if not lines:
        remedy = "raise training.iterations or ppo.frames, or lower simulator.env.max_steps"
        return Finding(code, "warning", "no episode ended during training", remedy, about=run.name)
    full = run.flat_config().get("ppo.window_episodes", max(line["window_episodes"] for line in lines))
    whole = [line for line in lines if line["window_episodes"] >= full]
    if len(whole) < 2:
        text = f"success in {_share(lines[-1])} of its {lines[-1]['window_episodes']:.0f} episodes"
        early = "too few to compare with its first ones, of which those that succeeded ended early"
        return Finding(code, "note", f"{text}: {early}", "play longer", about=run.name)
    first = whole[0]
    text = f"success in {_share(first)} of the first {full:.0f} episodes, {_share(lines[-1])} of the last"
    if lines[-1]["success_share_high"] < first["success_share_low"]:
        remedy = "lower optimizer.learning_rate or raise ppo.kl_coefficient; best.ckpt dates from before"
        return Finding(code, "warning", f"{text}: it unlearned", remedy, about=run.name)
    if lines[-1]["success_share_low"] > first["success_share_high"]:
        return ok(code, text, run.name)
    return Finding(code, "note", f"{text}: no difference is shown", "play longer", about=run.name)


_SHARE = ("success_share", "success_share_low", "success_share_high", "window_episodes")


def _share(line: dict[str, float]) -> str:
    return f"{line['success_share']:.0%} (95 %: {line['success_share_low']:.0%} to {line['success_share_high']:.0%})"


REINFORCEMENT_CHECKS = (stopped, success_of_episodes, checkpoints)
