"""Payload formats and topics: bytes to values and back. Pure."""
