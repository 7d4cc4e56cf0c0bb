"""Modems asked by AT commands on a serial port: one file a vendor, one that talks."""
