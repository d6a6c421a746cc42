"""One file a command, named like it and holding a click command of that name; and what commands share."""
