"""All SQL of the product: typed functions that take a connection."""
