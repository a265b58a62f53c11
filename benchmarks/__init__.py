"""Studies and timings; results go to docs/results, never into a timed assertion of a test."""
