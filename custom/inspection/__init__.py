"""What a received bundle would do, found without importing or running anything of it."""
