"""etcd servers: one, several, with users, and what they say of themselves."""
