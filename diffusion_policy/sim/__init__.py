"""The built-in tabletop: scenes, two referees, a camera and a scripted expert, for the demo and closed-loop evaluation.

scene.py and tasks.py define the objects on the table and the tasks. tabletop.py (kinematic, fast) and
physics_tabletop.py (MuJoCo, the default) are the referees: they compute how objects move. drawing.py and camera.py
render images. expert.py plans a demonstration, and recorder.py writes it in the robot's recording format.
tabletop_env.py is a Gymnasium environment, registered as "diffusion_policy.sim:Tabletop-v0". A seed determines
everything, and nothing is downloaded.
"""

import gymnasium

gymnasium.register(id="Tabletop-v0", entry_point="diffusion_policy.sim.tabletop_env:TabletopEnv")
