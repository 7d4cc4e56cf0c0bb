"""A fleet's history done again from nothing: what the audit compares, and corrections write down."""
