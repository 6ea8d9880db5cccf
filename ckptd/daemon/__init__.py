"""When a pass is made: events, timers, threads, signals."""
