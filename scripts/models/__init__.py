"""Tiny models of real architectures, made from a config and a seed. Never reads anything but this folder."""
