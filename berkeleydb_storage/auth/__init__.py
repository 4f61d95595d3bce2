"""Who may come in, and what he may do: users, passwords, networks, patience with failures."""
