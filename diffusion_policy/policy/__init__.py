"""The policy: observations in, a sequence of actions out."""
