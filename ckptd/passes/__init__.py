"""One pass over a work dir, in the order that is the promise."""
