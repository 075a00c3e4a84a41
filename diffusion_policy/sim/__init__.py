"""The built-in tabletop: scenes, two referees, a camera and a scripted expert, for the demo and for closed loop.

scene.py and tasks.py hold what stands on the table and what is to be done; tabletop.py (kinematic, fast) and
physics_tabletop.py (MuJoCo, the default referee) move it; drawing.py and camera.py draw it; expert.py plans a
demonstration, recorder.py writes it in the robot's recording format; tabletop_env.py is all of it as a Gymnasium
environment, registered as "diffusion_policy.sim:Tabletop-v0". Everything is made from one seed; nothing is downloaded.
"""

import gymnasium

gymnasium.register(id="Tabletop-v0", entry_point="diffusion_policy.sim.tabletop_env:TabletopEnv")
