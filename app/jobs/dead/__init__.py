"""Jobs that were given up: what is kept of them, how they are found, and the two ways out: requeue and discard."""
