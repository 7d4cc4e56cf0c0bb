"""What the raw parts do by themselves: the broker, the database, and a pipe that only stores."""
