"""Minecraft as VPT sees it: actions, and what translates them."""
