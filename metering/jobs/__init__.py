"""Jobs: what the API is asked for and takes longer than a request, done step by step."""
