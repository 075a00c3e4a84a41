"""Transports: the line protocol and WebSocket, their connections, and the worker thread that both share."""
