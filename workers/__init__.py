"""The processes that do the work: generation, maintenance, webhooks; and the engine that generation runs."""
