"""From a policy to a robot: the session, its guard and its transports."""
