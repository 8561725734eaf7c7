"""One process: gRPC, journal, acknowledgements, policy broadcast, operator calls."""
