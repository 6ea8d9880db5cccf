"""Readiness and the watchdog's ping; the finished unit."""
