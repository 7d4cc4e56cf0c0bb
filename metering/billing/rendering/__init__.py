"""Documents as people and their systems read them: CSV, HTML, PDF and e-invoices."""
