"""Payments by a provider, and what follows when bills are not paid."""
