"""Generated from protos/turnwise/v1 by protos/generate.py."""
