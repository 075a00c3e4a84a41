"""Rollouts of a policy while it trains, where there is something to roll out in."""
