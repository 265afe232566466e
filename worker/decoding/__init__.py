"""Decoding of image files in processes that may be killed: strangers' files never meet the engine's own process."""
