"""Minecraft as VPT sees it: actions, and their translation to MineDojo's spaces."""
