"""What do webhooks meet outside? Endpoints of all kinds, and what each of them was told."""
