"""A checkpoint in a simulator: does it do the task, how often, and what goes wrong when it does not?"""
