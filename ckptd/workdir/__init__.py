"""What ckptd keeps in and beside one work dir: lock, state, journal, pointer, pins, trash."""
