"""Who may use the dashboard: operators and their roles, sessions, one-time links, and a throttle on guesses."""
