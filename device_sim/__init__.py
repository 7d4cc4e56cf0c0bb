"""Simulated devices that publish over MQTT and keep a ground truth of what they sent."""
