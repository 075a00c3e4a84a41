"""The checks between a camera and a policy, and between a policy and an arm: each may refuse, and says why."""
