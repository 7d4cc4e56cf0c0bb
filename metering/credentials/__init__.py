"""Who may connect to the broker, and what each may do there."""
