"""The inference server: sessions, their checks, the engine and the transports."""
