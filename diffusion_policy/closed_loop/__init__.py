"""A checkpoint in a simulator: does it do the task, how often, and what goes wrong where it does not?"""
