"""Learning: students, generators, optimisers, callbacks."""
