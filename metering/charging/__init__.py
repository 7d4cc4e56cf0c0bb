"""From work items to charges and balances, in one transaction."""
