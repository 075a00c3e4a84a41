"""The checks between camera and policy, and between policy and arm; each may refuse, and gives its reason."""
