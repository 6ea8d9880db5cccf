"""What is there, whose bytes, whole or not: opens read-only, changes nothing."""
