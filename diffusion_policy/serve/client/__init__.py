"""What runs on the robot's computer: clients of the server, and the control loop between them and an arm.

    with LineClient("127.0.0.1") as policy:
        policy.reset()
        chunk = policy.infer(images, poses, grippers, timestamps)     # raises ServerError: hold the pose
        # with other state names (``policy.metadata["state_names"]``) or several cameras:
        chunk = policy.infer({"front": [...], "wrist": [...]}, states=states, timestamps=timestamps)
        for action in chunk.due(time.time()): ...

    arm                 what a robot offers: observe, move, hold, stop
    clock               real time, and time that tests and simulations advance
    observation_buffer  readings of cameras and arm, aligned by capture time; a camera that stopped is noticed
    connections         the clients, by line and by WebSocket
    messages            what they send and receive, checked
    requester           requests that do not keep the loop waiting
    strategies          what happens between two chunks: wait, skip, ensemble, warm_start, rtc
    plan                the steps to be executed, by absolute time
    smoothing           a filter over them
    control_loop        moves the arm or holds it, in every control period
    arm_log             what was sent to the arm

Neither torch, zarr, diffusers nor OpenCV is imported. The wheel ``diffusion-policy-client`` (folder client/) holds this
package with what it imports, and no more: what a robot's computer installs (docs/on_the_arm.md).
"""

from diffusion_policy.moved import former_names
from diffusion_policy.serve.client.arm import Arm, ArmError, Picture, Reading
from diffusion_policy.serve.client.arm_log import ArmLog, LinesInMemory, read_arm_log
from diffusion_policy.serve.client.clock import Clock, RealClock, VirtualClock
from diffusion_policy.serve.client.connections import LineClient, WebSocketClient
from diffusion_policy.serve.client.control_loop import ControlLoop
from diffusion_policy.serve.client.loop_settings import DEFAULT_SMOOTHING, LoopSettings
from diffusion_policy.serve.client.messages import Chunk, ServerError, observation
from diffusion_policy.serve.client.observation_buffer import (
    AlignedObservation,
    BufferSettings,
    DoubtError,
    ObservationBuffer,
)
from diffusion_policy.serve.client.plan import Plan, TimedChunk
from diffusion_policy.serve.client.requester import (
    ChunkRequest,
    DelayedRequester,
    PolicyClient,
    PolicyForm,
    ThreadRequester,
)
from diffusion_policy.serve.client.strategies import STRATEGIES, ChunkStrategy, chosen_strategy, make_strategy
from diffusion_policy.serve.transport.continuation import Continuation

__all__ = [
    "DEFAULT_SMOOTHING",
    "STRATEGIES",
    "AlignedObservation",
    "Arm",
    "ArmError",
    "ArmLog",
    "BufferSettings",
    "Chunk",
    "ChunkRequest",
    "ChunkStrategy",
    "Clock",
    "Continuation",
    "ControlLoop",
    "DelayedRequester",
    "DoubtError",
    "LineClient",
    "LinesInMemory",
    "LoopSettings",
    "ObservationBuffer",
    "Picture",
    "Plan",
    "PolicyClient",
    "PolicyForm",
    "Reading",
    "RealClock",
    "ServerError",
    "ThreadRequester",
    "TimedChunk",
    "VirtualClock",
    "WebSocketClient",
    "chosen_strategy",
    "make_strategy",
    "observation",
    "read_arm_log",
]

__getattr__ = former_names(__name__, {"Asker": "PolicyClient", "Query": "ChunkRequest"})
