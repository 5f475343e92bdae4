"""A day of a large fleet in minutes: virtual time, modelled engines, the real queue on a real Redis."""
