"""Rollouts of a policy in a simulator, and their results."""
