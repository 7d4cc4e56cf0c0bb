"""Control: what leaves the platform (commands, webhooks), and what devices answer."""
