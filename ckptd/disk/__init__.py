"""The few system calls that all others are made of; knows no checkpoint."""
