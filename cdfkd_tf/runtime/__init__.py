"""Devices, precision, files: what the machine and its libraries ask for."""
