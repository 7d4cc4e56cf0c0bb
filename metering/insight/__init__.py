"""What the stored usage and charges tell: rollups and reconciliation."""
