"""The arm's log and the server's logs, joined by request id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.client.arm_log import ArmLogContent
from diffusion_policy.serve.transport.continuation import REQUEST_ID
from diffusion_policy.tables import Column, Table, numbers


@dataclass(frozen=True)
class JoinedRequest:
    """One request as the arm and the server saw it; a field is None where its log has no value.

    Attributes:
        request_id: the id that both logs share.
        time: seconds on the loop's clock when it was sent.
        delay_ms: from ``time`` to the answer.
        inference_ms: time that the policy took on the server.
        server: what the server's log has for it: "action", the code of an error, or "nothing".
        outcome: "moved", "unused", or the code of the error that the arm held for.
        commands: number of control periods in which its actions were executed.
        age_ms: age of the oldest of these actions, from the capture of the observation that it answers.
        seam_mm, seam_deg: the jump from the previous chunk.
        interventions: what the motion guard changed.
    """

    request_id: str
    time: float
    delay_ms: float | None
    inference_ms: float | None
    server: str
    outcome: str
    commands: int
    age_ms: float | None
    seam_mm: float | None
    seam_deg: float | None
    interventions: int


def join(log: ArmLogContent, runs: Sequence[Path]) -> list[JoinedRequest]:
    """Joins an arm's log with the run folders of its server.

    Raises:
        WorkspaceError: a folder is not a run folder, or none of them has any of the requests.
    """
    served: dict[str, dict[str, Any]] = {}
    for run in runs:
        served |= {line[REQUEST_ID]: line for line in read_lines(run)[1] if isinstance(line.get(REQUEST_ID), str)}
    requests = log.of("request")
    if requests and not served.keys() & {line["request_id"] for line in requests}:
        names = ", ".join(str(run) for run in runs)
        raise WorkspaceError(
            f"{names}: none of the arm's {len(requests)} requests is in them; expected the runs that the server logged "
            "while the arm moved"
        )
    return [_joined(line, log, served.get(line["request_id"])) for line in requests]


def _joined(request: dict[str, Any], log: ArmLogContent, line: dict[str, Any] | None) -> JoinedRequest:
    name, sent = request["request_id"], request["time"]
    answer, failed, moves = (
        [entry for entry in log.of(event) if entry["request_id"] == name] for event in ("answer", "error", "move")
    )
    seam = (answer[0]["seam"] if answer else None) or {}
    timing = {} if line is None else line.get("timing", {})
    spent = [timing[key] for key in ("infer_start", "infer_end") if isinstance(timing.get(key), float)]
    return JoinedRequest(
        request_id=name,
        time=sent,
        delay_ms=1000 * (answer[0]["time"] - sent) if answer else None,
        inference_ms=1000 * (spent[1] - spent[0]) if len(spent) == 2 else None,
        server="nothing" if line is None else str(line.get("code", "action")),
        outcome="moved" if moves else str(failed[0]["code"]) if failed else "unused",
        commands=len(moves),
        age_ms=1000 * max(move["age_s"] for move in moves) if moves else None,
        seam_mm=seam.get("millimetres"),
        seam_deg=seam.get("degrees"),
        interventions=0 if line is None else sum(line.get("interventions", {}).values()),
    )


def joined_table(requests: Sequence[JoinedRequest]) -> Table:
    """One row per request."""
    caption = (
        "s: when it was requested; answer, infer and age: milliseconds from request to answer, of inference, of the "
        "oldest step executed; n: commands; mm, deg: seam; guard: what the motion guard changed"
    )
    columns = numbers("s", "answer", "infer", "n", "age", "mm", "deg", "guard")
    table = Table(
        Column("request", no_wrap=True),
        Column("server", no_wrap=True),
        Column("arm", no_wrap=True),
        *columns,
        caption=caption,
    )
    start = requests[0].time if requests else 0.0
    for one in requests:
        values = (one.delay_ms, one.inference_ms, one.commands, one.age_ms, one.seam_mm, one.seam_deg)
        shown = [_formatted(value) for value in values]
        moment = f"{one.time - start:.2f}"
        table.add(one.request_id, one.server, one.outcome, moment, *shown, str(one.interventions or ""))
    return table


def _formatted(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
