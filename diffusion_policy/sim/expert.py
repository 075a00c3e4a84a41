"""The scripted expert: plans the commands of a whole episode before it starts.

The path: home, above the block, down, close and dwell, up, above the tray, down, open and dwell, up to rest; with two
targets all of it twice before the rest. Every move is minimum jerk (Flash and Hogan 1985): it starts and ends at rest,
so the gripper changes during pauses, as in teleoperation.

With a ``variation`` the expert differs between episodes as people do: in tempo, pauses and detours, with tremor, with
grasps that are slightly off, and sometimes with a failed first grasp next to the block that is then corrected.

``plan_on`` plans the rest of an episode from any state, such as one that a policy has reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.scene import (
    BLOCK_SIZE,
    FINGER_SPAN,
    HOME,
    TRAY_FLOOR,
    Block,
    FloatArray,
    Scene,
    Triple,
    downward_pose,
    yaw_of,
)
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tasks import POSE_ONLY
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN

_HOVER = 0.15
_GRASP_HEIGHT = BLOCK_SIZE / 2 - 0.002
_CLEARANCE = 0.012
_DWELL_STEPS = 6  # until the fingers have moved
# No training window starts in the last steps of an episode (it would end half a horizon later): rest longer than that.
_REST_STEPS = 12
_DROP_APART = 0.042  # meters along x from the tray's center to where each of two blocks is released

# Thresholds of `plan_on`, in meters unless noted.
_QUARTER = np.pi / 2  # radians; a cube looks the same after this rotation
_OPEN_ENOUGH = 0.93  # share of the span
_FITS_ALONG, _FITS_ACROSS = 0.015, 0.025  # largest offset of a block between open fingers that move down around it
_CLEAR_OF_BLOCK = 0.075  # fingertips at or above this height pass over a block
_CLEAR_CARRYING = 0.11  # a held block at or above this height passes over the tray's walls
_RECOVERY_HEIGHT = 0.10
_OVER_TRAY = 0.03
_SHORTEST_MOVE, _PACE = 4, 0.035  # steps; meters per step

# Amounts at variation 1; smaller values shrink them.
_TEMPO, _LEG_TEMPO = 0.35, 0.15  # of the logarithm of a duration: half range per episode, deviation per move
_PAUSE_SHARE, _PAUSE_STEPS = 0.15, (2, 8)
_DETOUR_SHARE, _DETOUR = 0.35, 0.06  # share of the long moves; meters sideways and up
_MISS_SHARE, _MISS = 0.25, (0.046, 0.060)  # share of the grasps; meters from the block, beyond the open hand's reach
_MISS_ROOM = 0.08  # meters that must be free around such a grasp
_GRASP_OFF = 0.003  # meters, standard deviation
_TREMOR, _TREMOR_MEMORY = 0.0012, 0.8  # meters, standard deviation; correlation from step to step


@dataclass(frozen=True)
class Command:
    """The command of one step: target pose (7,) for the next step, and gripper, 1 = open."""

    pose: FloatArray
    gripper: int


@dataclass(frozen=True)
class _Move:
    """One move of the plan: to (position, yaw) in ``steps`` steps, with a constant gripper command.

    ``bow`` (3,) is the offset of its middle from the straight line, in meters; only ``long`` moves have one.
    """

    position: Triple
    yaw: float
    steps: int
    gripper: float
    long: bool = False
    bow: Triple = (0.0, 0.0, 0.0)


def plan(scene: Scene, rng: np.random.Generator, variation: float = 0.0) -> list[Command]:
    """Plans the commands of one episode: with one target about 75, which take seven and a half seconds.

    Args:
        scene: the objects and the task.
        rng: draws what differs between episodes; at variation 0 only the duration of each move, by one step.
        variation: 0 to 1, how much episodes differ; see the module's docstring.

    Raises:
        WorkspaceError: ``variation`` is not within 0 and 1.
    """
    if not 0 <= variation <= 1:
        raise WorkspaceError(f"variation is {variation}; expected 0 (always the same) to 1 (as people differ)")
    moves = _moves(scene, rng, variation)
    if variation > 0:
        moves = _vary_moves(moves, rng, variation)
    commands = _commands(moves, np.array(HOME), 0.0)
    return _add_tremor(commands, rng, variation) if variation > 0 else commands


def _commands(moves: Sequence[_Move], start: FloatArray, yaw: float) -> list[Command]:
    """Interpolates all moves in order, from a position (3,) and a yaw."""
    commands: list[Command] = []
    for move in moves:
        commands += _interpolate(start, yaw, move)
        start, yaw = np.array(move.position), move.yaw
    return commands


def _moves(scene: Scene, rng: np.random.Generator, variation: float) -> list[_Move]:
    moves: list[_Move] = []
    for number in range(scene.n_targets):
        moves += _moves_to(scene, number, scene.blocks[number], rng, variation, may_miss=True)
    return [*moves, replace(moves[-1], steps=_REST_STEPS)]


def _moves_to(
    scene: Scene, number: int, block: Block, rng: np.random.Generator, variation: float, *, may_miss: bool
) -> list[_Move]:
    """Returns the moves that put target ``number``, located at ``block``, into the tray.

    These are the moves of a failed first grasp, if there is one, and eight more.
    """

    def steps(usual: int) -> int:
        return usual + int(rng.integers(-1, 2))

    closed = _closed(scene)
    off_x, off_y = rng.normal(scale=_GRASP_OFF * variation, size=2) if variation > 0 else (0.0, 0.0)
    grasp = (block.xy[0] + off_x, block.xy[1] + off_y, _GRASP_HEIGHT)
    above_block = (*block.xy, _HOVER)
    tray_x, tray_y = _drop_xy(scene, number)
    drop = (tray_x, tray_y, BLOCK_SIZE / 2 + TRAY_FLOOR + _CLEARANCE)
    above_tray = (tray_x, tray_y, _HOVER)
    rest = (tray_x, tray_y, HOME[2])
    missed: list[_Move] = []
    if may_miss and variation > 0 and rng.random() < _MISS_SHARE * variation:
        missed = _failed_grasp(scene, number, rng, closed)
    return [
        *missed,
        _Move(above_block, block.yaw, steps(11), GRIPPER_OPEN, long=True),
        _Move(grasp, block.yaw, steps(8), GRIPPER_OPEN),
        _Move(grasp, block.yaw, _DWELL_STEPS, closed),
        _Move(above_block, block.yaw, steps(7), closed),
        _Move(above_tray, 0.0, steps(12), closed, long=True),
        _Move(drop, 0.0, steps(7), closed),
        _Move(drop, 0.0, _DWELL_STEPS, GRIPPER_OPEN),
        _Move(rest, 0.0, steps(9), GRIPPER_OPEN),
    ]


def _closed(scene: Scene) -> float:
    """Returns the gripper command at a block."""
    return GRIPPER_OPEN if scene.task == POSE_ONLY else GRIPPER_CLOSED


def plan_on(tabletop: Tabletop, rng: np.random.Generator, variation: float = 0.0) -> list[Command]:
    """Plans the commands that complete the task from the current state of a tabletop.

    A held block is carried to the tray. Otherwise the fingers open where they touch nothing, the hand rises, moves
    sideways and comes down on the block at its current position; fingers that are already open around the block move
    straight down. No plan is certain to succeed: a block may be where the hand cannot reach it.

    Args:
        tabletop: the current state, which is not changed.
        rng, variation: as in ``plan``, without failed first grasps.
    """
    scene = tabletop.scene
    ahead = [number for number in range(scene.n_targets) if not tabletop.is_placed(number)] or [scene.n_targets - 1]
    first, *others = ahead
    block = _block_to_grasp(tabletop, first)
    *_, above, grasp, close, up, above_tray, drop, release, rest = _moves_to(
        scene, first, block, rng, variation, may_miss=False
    )
    if tabletop.held == first:
        moves = [*_carry_on(tabletop, up, above_tray, drop), drop, release, rest]
    else:
        moves = [*_approach(tabletop, above, grasp), close, up, above_tray, drop, release, rest]
    for number in others:
        moves += _moves_to(scene, number, _block_to_grasp(tabletop, number), rng, variation, may_miss=False)
    moves.append(replace(moves[-1], steps=_REST_STEPS))
    if variation > 0:
        moves = _vary_moves(moves, rng, variation)
    commands = _commands(moves, tabletop.pose[:3].copy(), yaw_of(tabletop.pose))
    return _add_tremor(commands, rng, variation) if variation > 0 else commands


def _block_to_grasp(tabletop: Tabletop, number: int) -> Block:
    """Returns target ``number`` at its current position, with the yaw, modulo 90 degrees, nearest to the hand's."""
    block, hand = tabletop.blocks[number], yaw_of(tabletop.pose)
    level = block.rotation[
        :, int(np.abs(block.rotation[2]).argmin())
    ]  # an edge that is level, also of a block that fell over
    turn = float(np.arctan2(level[1], level[0])) - hand
    yaw = hand + turn - _QUARTER * round(turn / _QUARTER)
    return replace(tabletop.scene.blocks[number], xy=(float(block.position[0]), float(block.position[1])), yaw=yaw)


def _carry_on(tabletop: Tabletop, up: _Move, above_tray: _Move, drop: _Move) -> list[_Move]:
    """Returns the moves of a held block: up if it is low, then above the tray, unless the hand is there already."""
    x, y, z = tabletop.pose[:3].tolist()
    if np.hypot(x - drop.position[0], y - drop.position[1]) < _OVER_TRAY:
        return []
    rise = [replace(up, position=(x, y, _HOVER), yaw=yaw_of(tabletop.pose))] if z < _CLEAR_CARRYING else []
    return [*rise, above_tray]


def _approach(tabletop: Tabletop, above: _Move, grasp: _Move) -> list[_Move]:
    """Returns the moves from the current state of the hand to open fingers around the block."""
    position, yaw = tabletop.pose[:3], yaw_of(tabletop.pose)
    x, y, z = position.tolist()
    axis = np.array([-np.sin(yaw), np.cos(yaw)])
    offset = np.array(grasp.position[:2]) - position[:2]
    along = abs(float(offset @ axis))
    across = abs(float(offset @ np.array([axis[1], -axis[0]])))
    moves: list[_Move] = []
    is_open = tabletop.opening > _OPEN_ENOUGH
    around = along < _FITS_ALONG and across < _FITS_ACROSS
    if not is_open and z < _CLEAR_OF_BLOCK and not (around and tabletop.opening * FINGER_SPAN > BLOCK_SIZE):
        # Closed fingers next to a block, or on it: opening them at this height would push it.
        closed = _closed(tabletop.scene)
        moves.append(_Move((x, y, _RECOVERY_HEIGHT), yaw, _steps_for(_RECOVERY_HEIGHT - z), closed))
        z = _RECOVERY_HEIGHT
    if not is_open:
        moves.append(_Move((x, y, z), yaw, _DWELL_STEPS, GRIPPER_OPEN))
    if not around:
        if z < _CLEAR_OF_BLOCK:
            moves.append(_Move((x, y, _RECOVERY_HEIGHT), yaw, _steps_for(_RECOVERY_HEIGHT - z), GRIPPER_OPEN))
            z = _RECOVERY_HEIGHT
        height = min(max(z, _RECOVERY_HEIGHT), _HOVER)
        target = (*above.position[:2], height)
        moves.append(replace(above, position=target, steps=_steps_for(float(np.hypot(*offset)) + abs(z - height))))
        z = height
    return [*moves, replace(grasp, steps=_steps_for(abs(z - grasp.position[2])))]


def _steps_for(distance: float) -> int:
    """Returns the number of steps of a move over a distance in meters, at the pace of ``plan``."""
    return max(_SHORTEST_MOVE, round(_SHORTEST_MOVE + distance / _PACE))


def _drop_xy(scene: Scene, number: int) -> tuple[float, float]:
    x, y = scene.tray_xy
    return (x, y) if scene.n_targets == 1 else (x + (_DROP_APART if number == 0 else -_DROP_APART), y)


def _failed_grasp(scene: Scene, number: int, rng: np.random.Generator, closed: float) -> list[_Move]:
    """Returns the moves of a failed grasp next to the block; none where another block would be hit.

    The hand goes down, closes on nothing, rises a little and opens again.
    """
    block = scene.blocks[number]
    others = np.array([other.xy for other in scene.blocks if other is not block]).reshape(-1, 2)
    across = np.array([np.cos(block.yaw), np.sin(block.yaw)])
    miss = np.array(block.xy) + across * rng.choice([-1.0, 1.0]) * rng.uniform(*_MISS)
    if others.size and np.linalg.norm(others - miss, axis=1).min() < _MISS_ROOM:
        return []
    x, y = float(miss[0]), float(miss[1])
    low, middle = (x, y, _GRASP_HEIGHT), (x, y, _HOVER * 0.6)
    return [
        _Move((x, y, _HOVER), block.yaw, 11, GRIPPER_OPEN, long=True),
        _Move(low, block.yaw, 8, GRIPPER_OPEN),
        _Move(low, block.yaw, _DWELL_STEPS + 1, closed),
        _Move(middle, block.yaw, 6, closed),
        _Move(middle, block.yaw, int(rng.integers(1, 5)), closed),
        _Move(middle, block.yaw, _DWELL_STEPS, GRIPPER_OPEN),
    ]


def _vary_moves(moves: list[_Move], rng: np.random.Generator, variation: float) -> list[_Move]:
    """Varies the tempo, adds pauses, and detours to long moves; dwells of the fingers only get longer."""
    tempo = np.exp(rng.uniform(-1, 1) * _TEMPO * variation)
    varied: list[_Move] = []
    for before, move in zip([None, *moves], moves, strict=False):
        dwells = before is not None and move.position == before.position
        if dwells:
            varied.append(replace(move, steps=move.steps + int(rng.integers(0, 1 + round(4 * variation)))))
            continue
        steps = move.steps * tempo * np.exp(rng.normal() * _LEG_TEMPO * variation)
        bow = (0.0, 0.0, 0.0)
        if move.long and rng.random() < _DETOUR_SHARE * variation:
            sideways = rng.uniform(-1, 1, size=2) * _DETOUR * variation
            bow = (float(sideways[0]), float(sideways[1]), float(rng.uniform(0, 1) * _DETOUR * variation))
        varied.append(replace(move, steps=max(4, round(steps)), bow=bow))
        if rng.random() < _PAUSE_SHARE * variation:
            varied.append(replace(move, steps=int(rng.integers(*_PAUSE_STEPS))))
    return varied


def _add_tremor(commands: list[Command], rng: np.random.Generator, variation: float) -> list[Command]:
    """Adds tremor: temporally correlated noise on every commanded position."""
    noisy, noise = [], np.zeros(3)
    fresh = np.sqrt(1 - _TREMOR_MEMORY**2) * _TREMOR * variation
    for command in commands:
        noise = _TREMOR_MEMORY * noise + fresh * rng.normal(size=3)
        pose = command.pose.copy()
        pose[:3] += noise
        noisy.append(Command(pose, command.gripper))
    return noisy


def _interpolate(start: FloatArray, yaw: float, move: _Move) -> Iterator[Command]:
    for time in np.linspace(0, 1, move.steps + 1)[1:]:
        share = time**3 * (10 - 15 * time + 6 * time**2)
        position = start + share * (np.array(move.position) - start) + np.sin(np.pi * share) ** 2 * np.array(move.bow)
        yield Command(downward_pose(position, yaw + share * (move.yaw - yaw)), int(move.gripper))
