"""The control socket: a command asks the process that owns a directory."""
