"""The scripted expert: one task, planned before it is played.

Home, above the block, down, close and dwell, up, above the tray, down, open and dwell, up to rest; with two targets the
same again before the rest. Every move is minimum jerk (Flash and Hogan 1985): it starts and ends at rest, so the
gripper's changes lie in the pauses, as in teleoperation.

With a ``variation`` the expert differs between episodes as people do: tempo, pauses, detours, a hand that is never
quite still, grasps a little off, and now and then a first try that closes beside the block and is corrected.

``plan_on`` is the same expert asked in the middle of an episode, from whatever state somebody else has reached.
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
# Training never looks from an episode's last steps on (windows end half a horizon after it): rest longer than those.
_REST_STEPS = 12
_DROP_APART = 0.042  # metres from the tray's centre to where each of two blocks is let go, along x

# What `plan_on` goes by; metres.
_QUARTER = np.pi / 2  # a cube looks alike after it
_OPEN_ENOUGH = 0.93  # share of the span
_FITS_ALONG, _FITS_ACROSS = 0.015, 0.025  # the block's offset from open fingers that may come down on it
_CLEAR_OF_BLOCK = 0.075  # height of the fingertips from which on they pass over a block
_CLEAR_CARRYING = 0.11  # and from which on a block between them passes over the tray's walls
_RECOVERY_HEIGHT = 0.10
_OVER_TRAY = 0.03
_SHORTEST_MOVE, _PACE = 4, 0.035  # steps; metres a step

# What variation 1 means; smaller values shrink each of these.
_TEMPO, _LEG_TEMPO = 0.35, 0.15  # of the logarithm of a duration: half range per episode, deviation per move
_PAUSE_SHARE, _PAUSE_STEPS = 0.15, (2, 8)
_DETOUR_SHARE, _DETOUR = 0.35, 0.06  # of the long moves; metres sideways and up
_MISS_SHARE, _MISS = 0.25, (0.046, 0.060)  # of the grasps; metres beside the block, where the open hand touches nothing
_MISS_ROOM = 0.08  # metres that must be free around such a try
_GRASP_OFF = 0.003  # metres, deviation
_TREMOR, _TREMOR_MEMORY = 0.0012, 0.8  # metres, deviation; share of it that stays from step to step


@dataclass(frozen=True)
class Command:
    """What the robot is told for one step: pose (7,) wanted at the next step, and gripper, 1 = open."""

    pose: FloatArray
    gripper: int


@dataclass(frozen=True)
class _Leg:
    """One part of the plan: move to (position, yaw) in so many steps, with this gripper command.

    ``bow`` (3,) is how far its middle lies beside the straight line, in metres; only ``long`` legs get one.
    """

    position: Triple
    yaw: float
    steps: int
    gripper: float
    long: bool = False
    bow: Triple = (0.0, 0.0, 0.0)


def plan(scene: Scene, rng: np.random.Generator, variation: float = 0.0) -> list[Command]:
    """Plan the commands of one episode: about 75 with one target, seven and a half seconds.

    Args:
        scene: what stands where, and the task.
        rng: what differs between episodes; at variation 0 only the tempo of each move, by a step.
        variation: 0 to 1, how much the expert differs from itself; see the module's docstring.

    Raises:
        WorkspaceError: ``variation`` is not within 0 and 1.
    """
    if not 0 <= variation <= 1:
        raise WorkspaceError(f"variation is {variation}; expected 0 (always the same) to 1 (as people differ)")
    legs = _legs(scene, rng, variation)
    if variation > 0:
        legs = _vary_moves(legs, rng, variation)
    commands = _commands(legs, np.array(HOME), 0.0)
    return _tremble(commands, rng, variation) if variation > 0 else commands


def _commands(legs: Sequence[_Leg], start: FloatArray, yaw: float) -> list[Command]:
    """Play the legs one after the other from a position (3,) and a yaw."""
    commands: list[Command] = []
    for leg in legs:
        commands += _play(start, yaw, leg)
        start, yaw = np.array(leg.position), leg.yaw
    return commands


def _legs(scene: Scene, rng: np.random.Generator, variation: float) -> list[_Leg]:
    legs: list[_Leg] = []
    for number in range(scene.n_targets):
        legs += _legs_to(scene, number, scene.blocks[number], rng, variation, may_miss=True)
    return [*legs, replace(legs[-1], steps=_REST_STEPS)]


def _legs_to(
    scene: Scene, number: int, block: Block, rng: np.random.Generator, variation: float, *, may_miss: bool
) -> list[_Leg]:
    """Fetch target ``number``, which stands as ``block`` says; a first try that misses, if any, then eight legs."""

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
    missed: list[_Leg] = []
    if may_miss and variation > 0 and rng.random() < _MISS_SHARE * variation:
        missed = _first_try(scene, number, rng, closed)
    return [
        *missed,
        _Leg(above_block, block.yaw, steps(11), GRIPPER_OPEN, long=True),
        _Leg(grasp, block.yaw, steps(8), GRIPPER_OPEN),
        _Leg(grasp, block.yaw, _DWELL_STEPS, closed),
        _Leg(above_block, block.yaw, steps(7), closed),
        _Leg(above_tray, 0.0, steps(12), closed, long=True),
        _Leg(drop, 0.0, steps(7), closed),
        _Leg(drop, 0.0, _DWELL_STEPS, GRIPPER_OPEN),
        _Leg(rest, 0.0, steps(9), GRIPPER_OPEN),
    ]


def _closed(scene: Scene) -> float:
    """The gripper's command at a block."""
    return GRIPPER_OPEN if scene.task == POSE_ONLY else GRIPPER_CLOSED


def plan_on(tabletop: Tabletop, rng: np.random.Generator, variation: float = 0.0) -> list[Command]:
    """Plan the commands that do the rest of the task, from the state in which somebody else has left the tabletop.

    A held block is carried on. Else the fingers open where that touches nothing, the hand rises before it goes
    sideways, and comes down on the block where it lies now; fingers that are open around it already go straight down.
    No plan is certain to succeed: a block may lie where no hand reaches it.

    Args:
        tabletop: as it is now; nothing is moved.
        rng, variation: as of ``plan``; there are no first tries that miss.
    """
    scene = tabletop.scene
    ahead = [number for number in range(scene.n_targets) if not tabletop.is_placed(number)] or [scene.n_targets - 1]
    first, *others = ahead
    lies = _where_it_lies(tabletop, first)
    *_, above, grasp, close, up, above_tray, drop, release, rest = _legs_to(
        scene, first, lies, rng, variation, may_miss=False
    )
    if tabletop.held == first:
        legs = [*_carry_on(tabletop, up, above_tray, drop), drop, release, rest]
    else:
        legs = [*_approach(tabletop, above, grasp), close, up, above_tray, drop, release, rest]
    for number in others:
        legs += _legs_to(scene, number, _where_it_lies(tabletop, number), rng, variation, may_miss=False)
    legs.append(replace(legs[-1], steps=_REST_STEPS))
    if variation > 0:
        legs = _vary_moves(legs, rng, variation)
    commands = _commands(legs, tabletop.pose[:3].copy(), yaw_of(tabletop.pose))
    return _tremble(commands, rng, variation) if variation > 0 else commands


def _where_it_lies(tabletop: Tabletop, number: int) -> Block:
    """Target ``number`` as the hand has to meet it: where it is, turned by quarters until nearest to its yaw."""
    block, hand = tabletop.blocks[number], yaw_of(tabletop.pose)
    level = block.turn[:, int(np.abs(block.turn[2]).argmin())]  # an edge that is level, also of a block that fell over
    turn = float(np.arctan2(level[1], level[0])) - hand
    yaw = hand + turn - _QUARTER * round(turn / _QUARTER)
    return replace(tabletop.scene.blocks[number], xy=(float(block.position[0]), float(block.position[1])), yaw=yaw)


def _carry_on(tabletop: Tabletop, up: _Leg, above_tray: _Leg, drop: _Leg) -> list[_Leg]:
    """With a block between the fingers: up where it was grasped low, and over the tray, unless the hand is there."""
    x, y, z = tabletop.pose[:3].tolist()
    if np.hypot(x - drop.position[0], y - drop.position[1]) < _OVER_TRAY:
        return []
    rise = [replace(up, position=(x, y, _HOVER), yaw=yaw_of(tabletop.pose))] if z < _CLEAR_CARRYING else []
    return [*rise, above_tray]


def _approach(tabletop: Tabletop, above: _Leg, grasp: _Leg) -> list[_Leg]:
    """To open fingers around the block, from wherever the hand is."""
    position, yaw = tabletop.pose[:3], yaw_of(tabletop.pose)
    x, y, z = position.tolist()
    axis = np.array([-np.sin(yaw), np.cos(yaw)])
    offset = np.array(grasp.position[:2]) - position[:2]
    along = abs(float(offset @ axis))
    across = abs(float(offset @ np.array([axis[1], -axis[0]])))
    legs: list[_Leg] = []
    is_open = tabletop.opening > _OPEN_ENOUGH
    around = along < _FITS_ALONG and across < _FITS_ACROSS
    if not is_open and z < _CLEAR_OF_BLOCK and not (around and tabletop.opening * FINGER_SPAN > BLOCK_SIZE):
        # Shut beside a block, or upon it: fingers that open down here would push it.
        closed = _closed(tabletop.scene)
        legs.append(_Leg((x, y, _RECOVERY_HEIGHT), yaw, _steps_for(_RECOVERY_HEIGHT - z), closed))
        z = _RECOVERY_HEIGHT
    if not is_open:
        legs.append(_Leg((x, y, z), yaw, _DWELL_STEPS, GRIPPER_OPEN))
    if not around:
        if z < _CLEAR_OF_BLOCK:
            legs.append(_Leg((x, y, _RECOVERY_HEIGHT), yaw, _steps_for(_RECOVERY_HEIGHT - z), GRIPPER_OPEN))
            z = _RECOVERY_HEIGHT
        height = min(max(z, _RECOVERY_HEIGHT), _HOVER)
        target = (*above.position[:2], height)
        legs.append(replace(above, position=target, steps=_steps_for(float(np.hypot(*offset)) + abs(z - height))))
        z = height
    return [*legs, replace(grasp, steps=_steps_for(abs(z - grasp.position[2])))]


def _steps_for(distance: float) -> int:
    """Steps of a move of so many metres, at the pace of ``plan``."""
    return max(_SHORTEST_MOVE, round(_SHORTEST_MOVE + distance / _PACE))


def _drop_xy(scene: Scene, number: int) -> tuple[float, float]:
    x, y = scene.tray_xy
    return (x, y) if scene.n_targets == 1 else (x + (_DROP_APART if number == 0 else -_DROP_APART), y)


def _first_try(scene: Scene, number: int, rng: np.random.Generator, closed: float) -> list[_Leg]:
    """Down beside the block, close on nothing, up a little, open again; nothing where another block would be hit."""
    block = scene.blocks[number]
    others = np.array([other.xy for other in scene.blocks if other is not block]).reshape(-1, 2)
    across = np.array([np.cos(block.yaw), np.sin(block.yaw)])
    beside = np.array(block.xy) + across * rng.choice([-1.0, 1.0]) * rng.uniform(*_MISS)
    if others.size and np.linalg.norm(others - beside, axis=1).min() < _MISS_ROOM:
        return []
    x, y = float(beside[0]), float(beside[1])
    low, middle = (x, y, _GRASP_HEIGHT), (x, y, _HOVER * 0.6)
    return [
        _Leg((x, y, _HOVER), block.yaw, 11, GRIPPER_OPEN, long=True),
        _Leg(low, block.yaw, 8, GRIPPER_OPEN),
        _Leg(low, block.yaw, _DWELL_STEPS + 1, closed),
        _Leg(middle, block.yaw, 6, closed),
        _Leg(middle, block.yaw, int(rng.integers(1, 5)), closed),
        _Leg(middle, block.yaw, _DWELL_STEPS, GRIPPER_OPEN),
    ]


def _vary_moves(legs: list[_Leg], rng: np.random.Generator, variation: float) -> list[_Leg]:
    """Another tempo, pauses between moves, detours on long ones; the fingers' dwells get longer, never shorter."""
    tempo = np.exp(rng.uniform(-1, 1) * _TEMPO * variation)
    varied: list[_Leg] = []
    for before, leg in zip([None, *legs], legs, strict=False):
        dwells = before is not None and leg.position == before.position
        if dwells:
            varied.append(replace(leg, steps=leg.steps + int(rng.integers(0, 1 + round(4 * variation)))))
            continue
        steps = leg.steps * tempo * np.exp(rng.normal() * _LEG_TEMPO * variation)
        bow = (0.0, 0.0, 0.0)
        if leg.long and rng.random() < _DETOUR_SHARE * variation:
            sideways = rng.uniform(-1, 1, size=2) * _DETOUR * variation
            bow = (float(sideways[0]), float(sideways[1]), float(rng.uniform(0, 1) * _DETOUR * variation))
        varied.append(replace(leg, steps=max(4, round(steps)), bow=bow))
        if rng.random() < _PAUSE_SHARE * variation:
            varied.append(replace(leg, steps=int(rng.integers(*_PAUSE_STEPS))))
    return varied


def _tremble(commands: list[Command], rng: np.random.Generator, variation: float) -> list[Command]:
    """A hand that is never quite still: smooth noise on every commanded position."""
    shaken, noise = [], np.zeros(3)
    fresh = np.sqrt(1 - _TREMOR_MEMORY**2) * _TREMOR * variation
    for command in commands:
        noise = _TREMOR_MEMORY * noise + fresh * rng.normal(size=3)
        pose = command.pose.copy()
        pose[:3] += noise
        shaken.append(Command(pose, command.gripper))
    return shaken


def _play(start: FloatArray, yaw: float, leg: _Leg) -> Iterator[Command]:
    for time in np.linspace(0, 1, leg.steps + 1)[1:]:
        share = time**3 * (10 - 15 * time + 6 * time**2)
        position = start + share * (np.array(leg.position) - start) + np.sin(np.pi * share) ** 2 * np.array(leg.bow)
        yield Command(downward_pose(position, yaw + share * (leg.yaw - yaw)), int(leg.gripper))
