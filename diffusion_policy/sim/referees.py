"""Referees: the simulations that compute how the tabletop's objects move; physics by default, kinematics for speed."""

from __future__ import annotations

from diffusion_policy.commands import pip_install
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.scene import Scene
from diffusion_policy.sim.tabletop import Tabletop

PHYSICS = "physics"
KINEMATIC = "kinematic"
REFEREES = (PHYSICS, KINEMATIC)


def make_tabletop(scene: Scene, referee: str = PHYSICS) -> Tabletop:
    """Creates the tabletop of a scene with that referee; only the physics referee loads MuJoCo.

    Raises:
        WorkspaceError: no referee of that name, or MuJoCo is not installed.
    """
    if referee == KINEMATIC:
        return Tabletop(scene)
    if referee != PHYSICS:
        raise WorkspaceError(f"no referee {referee!r}; expected one of {', '.join(REFEREES)}")
    try:
        from diffusion_policy.sim.physics_tabletop import PhysicsTabletop
    except ImportError as error:
        raise WorkspaceError(
            f"the physics referee needs MuJoCo, which cannot be loaded ({error}); "
            f"`{pip_install('mujoco-core')}` installs it, and referee kinematic works without"
        ) from error
    return PhysicsTabletop(scene)
