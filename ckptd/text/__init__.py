"""Words for people and programs: tables, lines of a log, JSON."""
