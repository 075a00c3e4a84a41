"""Bytes to messages and back: the line protocol and WebSocket, their connections, and the one worker behind both."""
