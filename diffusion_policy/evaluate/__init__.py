"""Did it learn? Events of the gripper, errors of the pose, and verdicts with their evidence."""
