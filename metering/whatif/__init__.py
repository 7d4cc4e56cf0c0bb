"""Rating without a database: what usage would cost under a plan (`fleetmeter rate`)."""
