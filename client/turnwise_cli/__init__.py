"""The `turnwise` command: one file a verb."""
