"""Who may ask for how much: tenants, API keys, budgets and their ledger, usage."""
