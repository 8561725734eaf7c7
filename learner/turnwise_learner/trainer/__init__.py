"""One process: reads the journal, assembles transitions, trains, checkpoints, publishes."""
